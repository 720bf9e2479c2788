"""The PTX of both kernels, executed on the CPU, gives the bytes of the CPU back end and does nothing forbidden."""

import numpy as np
import pytest

from fastft.augment.cuda_ops import OPS_THREADS
from fastft.augment.erase import DTYPES
from fastft.augment.resize import MOST_SHRINK

pytest.importorskip("numba.cuda.cudadrv.nvvm")
from tests import EXTENT
from tests.ptx.batches import POLICIES, Batch, cut_pieces, drawn, enhancements_by_tenths, every_op, squeezed
from tests.ptx.gpu import OLDEST, SimulatedGpu

A100, H100 = (8, 0), (9, 0)


def assert_same_bytes(
    batch: Batch, dtype: str, *, arch: tuple[int, int] = OLDEST, order: np.ndarray | None = None
) -> None:
    """The bytes are those of the CPU back end, and nothing is found."""
    gpu = SimulatedGpu(arch, order)
    ours = batch.on(gpu, dtype)
    assert not gpu.findings, "\n".join(map(str, gpu.findings))
    assert len(gpu.launches) == 2
    theirs = batch.expected(dtype)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    different = (ours.view(np.uint8) != theirs.view(np.uint8)).reshape(len(batch.plan), -1).sum(1)
    assert not different.any(), [f"image {b} ({batch.ops(b)}): {n} bytes" for b, n in enumerate(different) if n]


@pytest.fixture(scope="module")
def pictures(photographs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(photographs.values())


# Every policy but the longest in one of the half types, which are one kernel, and every op in one. The others are slow.
FAST = set(zip(POLICIES, 3 * ("float16", "bfloat16"), strict=True)) - {("paper", "float16")}
PAIRS = [
    pytest.param(name, dtype, marks=() if (name, dtype) in FAST else pytest.mark.slow)
    for name in POLICIES
    for dtype in DTYPES
]


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_every_policy(name, dtype, pictures):
    assert_same_bytes(drawn(name, cut_pieces(pictures, 12, (20, 120)), 32), dtype)


@pytest.mark.parametrize(
    "dtype", ["float16", *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES if d != "float16")]
)
def test_every_op(dtype, pictures):
    assert_same_bytes(every_op(pictures, 32), dtype)


@pytest.mark.slow
def test_every_op_at_the_ends_of_its_range(pictures):
    assert_same_bytes(every_op(pictures, 24, [(0, 1), (10, 1), (10, -1)]), "float32")


def test_enhancements_whose_products_are_nearly_whole(pictures):
    assert_same_bytes(enhancements_by_tenths(pictures, 32), "float16")


@pytest.mark.parametrize("size", [1, 33, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 31, 97))])
def test_odd_sizes(size, pictures):
    assert_same_bytes(drawn("erase", cut_pieces(pictures, 6, (size, size + 60), seed=size), size), "float16")


def test_sources_of_a_few_pixels(pictures):
    assert_same_bytes(drawn("paper", cut_pieces(pictures, 10, (1, 9)), 40), "bfloat16")


def test_a_strong_reduction_takes_more_tiles_than_the_launch_has_blocks(pictures):
    """Then tiles are smaller, for their taps to have room, and a block makes several."""
    tall, wide, large = (pictures[0][:400, :3], pictures[1][:2, :400], np.tile(pictures[2], (4, 4, 1))[:1100, :1300])
    assert_same_bytes(squeezed([tall, wide, large, pictures[3]], 16), "float16")


def test_no_byte_depends_on_the_order_of_the_threads(pictures):
    order = np.random.default_rng(0).permutation(np.prod(OPS_THREADS)).astype(np.int32)
    assert_same_bytes(every_op(pictures, 20), "float16", order=order)
    assert_same_bytes(drawn("augmix", cut_pieces(pictures, 4, (20, 60)), 20), "float16", order=order)


def test_the_strongest_reduction(pictures):
    """MOST_SHRINK in both directions; beyond it the loader refuses an image, and the kernel leaves it alone."""
    side = 2 * MOST_SHRINK
    image = np.tile(pictures[0], (2, 2, 1))[: side + 8, : side + 8]
    assert_same_bytes(squeezed([image[:side, :side]], 2), "float16")
    gpu = SimulatedGpu()
    squeezed([image], 2).on(gpu, "float16")
    assert {finding.problem for finding in gpu.findings} == {"uninitialised read"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(2 * EXTENT)))
def test_random_plans(seed, pictures):
    for k, name in enumerate(POLICIES):
        images = cut_pieces(pictures, 48, (2, 200), seed)
        assert_same_bytes(drawn(name, images, 30 + 9 * k + seed, seed=seed), DTYPES[(k + seed) % len(DTYPES)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_in_loops_that_are_unrolled(dtype, pictures):
    magnitudes = [(m, sign) for m in (0.5, 2, 4.4, 6.3, 8.7, 10) for sign in (1, -1)]
    assert_same_bytes(every_op(pictures, 90, magnitudes), dtype)
    assert_same_bytes(enhancements_by_tenths(pictures, 128), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [A100, H100])
def test_other_architectures(arch, pictures):
    for dtype in DTYPES:
        assert_same_bytes(every_op(pictures, 48), dtype, arch=arch)
        for name in POLICIES:
            assert_same_bytes(drawn(name, cut_pieces(pictures, 12, (20, 120)), 48), dtype, arch=arch)
