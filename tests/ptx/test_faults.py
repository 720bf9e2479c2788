"""The checks bite: of the faults put into the kernels' PTX one at a time, those that matter are found."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("numba.cuda.cudadrv.nvvm")
from tests.ptx import memory
from tests.ptx.batches import Batch, cut_pieces, drawn, every_op, squeezed
from tests.ptx.faults import NO_EFFECT, NOT_REACHED, OTHER_BYTES, RACE, Fault, Rehearsal
from tests.ptx.gpu import Launch, SimulatedGpu
from tests.ptx.launch import DIVERGENT_BARRIER

pytestmark = pytest.mark.slow  # `test_checks` shows on small kernels that each check finds its fault
RESIZE, OPS = "resize_kernel", "ops_kernel"
KERNELS = RESIZE, OPS


def rehearse(batches: Sequence[Batch]) -> dict[str, Rehearsal]:
    """The faults of each kernel."""
    launches: dict[str, list[Launch]] = {name: [] for name in KERNELS}
    for batch in batches:
        gpu = SimulatedGpu(record=True)
        for piece in batch.pieces(8):
            piece.on(gpu, "float32")
        for recorded in gpu.launches:
            launches[recorded.kernel.function.__name__].append(recorded)
    return {name: Rehearsal(recorded) for name, recorded in launches.items()}


def batches(photographs: Sequence[np.ndarray], size: int) -> list[Batch]:
    pieces = cut_pieces(photographs, 4, (20, 3 * size))
    tall, wide = photographs[0][:400, :5], photographs[1][:5, :400]
    return [
        every_op(photographs, size),
        *(drawn(name, pieces, size) for name in ("erase", "3aug", "augmix")),
        drawn("none", pieces, size + 17),
        squeezed([tall, wide, photographs[2][:150, :150]], 16),  # several tiles a block
    ]


@pytest.fixture(scope="module")
def small(photographs: dict[str, np.ndarray]) -> dict[str, Rehearsal]:
    return rehearse(batches(list(photographs.values()), 24))


@pytest.fixture(scope="module")
def large(photographs: dict[str, np.ndarray]) -> dict[str, Rehearsal]:
    """Reaches the loops that are unrolled for more pixels."""
    return rehearse(batches(list(photographs.values()), 80))


def outcomes(rehearsal: Rehearsal, fault: Fault) -> Counter[str]:
    """How many instructions have each outcome."""
    return Counter(rehearsal.outcome(fault, site) for site in fault.sites(rehearsal.program))


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_any_one_of_its_barriers_a_kernel_has_a_race(kernel: str, small: dict[str, Rehearsal]) -> None:
    """So none of them is redundant."""
    assert set(outcomes(small[kernel], Fault.REMOVED)) == {RACE}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_barrier_that_one_thread_skips_is_divergent(kernel: str, small: dict[str, Rehearsal]) -> None:
    assert set(outcomes(small[kernel], Fault.SKIPPED)) == {DIVERGENT_BARRIER}


def share_found(found: Counter[str]) -> float:
    """Share of the faults in executed instructions that are noticed."""
    return 1 - found[NO_EFFECT] / (sum(found.values()) - found[NOT_REACHED])


def assert_found(kernel: str, rehearsal: Rehearsal) -> None:
    """The rest shifts reads to equal bytes, or bounds that no value meets: it changes nothing."""
    shifted, bound = outcomes(rehearsal, Fault.SHIFTED), outcomes(rehearsal, Fault.BOUND)
    assert share_found(shifted) > 0.85 and share_found(bound) > 0.2, (shifted, bound)
    kinds = {memory.PROBLEMS[p] for p in (memory.OUT_OF_BOUNDS, memory.UNINITIALISED, memory.RACE)}
    assert kinds <= set(shifted) and kinds <= set(bound)
    assert shifted[OTHER_BYTES] and bound[OTHER_BYTES]


@pytest.mark.parametrize("kernel", KERNELS)
def test_faults_in_accesses_and_bounds_are_found(kernel: str, small: dict[str, Rehearsal]) -> None:
    assert_found(kernel, small[kernel])


@pytest.mark.parametrize("kernel", KERNELS)
def test_faults_in_unrolled_loops_are_found(kernel: str, large: dict[str, Rehearsal]) -> None:
    assert_found(kernel, large[kernel])
