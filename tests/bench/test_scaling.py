"""The loader on more cores: the queue is simulated correctly, the bytes are counted from the code's buffers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.harness import Rounds
from fastft.bench.image_traffic import (
    ImageShape,
    all_bytes,
    cpu_augmented,
    gpu_augmented,
    image_shape,
    stream_bytes,
)
from fastft.bench.loader_arms import AUGMENT
from fastft.bench.scaling import (
    Host,
    LoaderWork,
    SharedBandwidth,
    bandwidth_limit,
    cores_limit,
    simulate,
    steady_rate,
)
from fastft.bench.scaling_bench import (
    DECODE,
    H100_HOST,
    WHOLE,
    MeasuredLoader,
    _demand,
    host_limits,
    loader_work,
)
from fastft.cost.bottleneck import loader_needs
from fastft.recipe import recipe_from_dict

SECONDS = np.random.default_rng(0).gamma(3, 1e-3 / 3, 1000)  # mean 1 ms


def test_transfers_share_the_bandwidth_equally() -> None:
    """Two transfers at 10 bytes/s together and at most 6 bytes/s each: A of 12 bytes from 0 s, B of 10 from 1 s."""
    memory = SharedBandwidth(10, 6)
    memory.begin(0, 12, 0)
    assert memory.next_end() == 2  # alone: 6 bytes/s
    memory.begin(1, 10, 1)  # A has 6 bytes left, at 5 bytes/s
    assert memory.next_end() == pytest.approx(2.2)
    assert memory.end_next() == 0
    assert memory.next_end() == pytest.approx(2.2 + 4 / 6)  # B has moved 6, the rest alone
    assert memory.end_next() == 1 and memory.next_end() == float("inf")


@pytest.mark.parametrize("cores", [1, 2, 16, 64])
@pytest.mark.parametrize("bandwidth", [4e9, 40e9, 400e9])
def test_without_batches_the_simulation_is_the_queue_s_exact_solution(cores: int, bandwidth: float) -> None:
    work = LoaderWork(SECONDS, 0, 2e6)
    host = Host(cores, bandwidth, core_bandwidth=8e9)
    found = simulate(work, host, batch=20_000, batches=3)
    assert found == pytest.approx(steady_rate(work, host), rel=0.03)


def test_cores_limit_where_memory_is_plentiful_and_memory_where_it_is_not() -> None:
    work = LoaderWork(SECONDS, 0, 2e6)
    roomy, narrow = Host(32, 1e15, 1e15), Host(32, 10e9, 10e9)
    assert steady_rate(work, roomy) == pytest.approx(cores_limit(work, 32), rel=1e-3)
    assert steady_rate(work, narrow) == pytest.approx(bandwidth_limit(work, narrow), rel=0.01) == 5000
    for host in (roomy, narrow, Host(32, 60e9, 8e9)):
        assert steady_rate(work, host) <= min(cores_limit(work, 32), bandwidth_limit(work, host)) * 1.0001


def test_the_time_between_batches_is_that_of_one_thread() -> None:
    """Amdahl: 64 images of 1 ms on 4 threads take 16 ms, then 4 ms in one thread."""
    work = LoaderWork(np.full(8, 1e-3), 4e-3, 0)
    assert simulate(work, Host(4, 1e12, 1e12), batch=64) == pytest.approx(64 / 20e-3)
    assert simulate(work, Host(8, 1e12, 1e12), batch=64, processes=2) == pytest.approx(
        2 * 64 / 20e-3, rel=0.02
    )


def test_a_batch_ends_with_its_slowest_image() -> None:
    work = LoaderWork(np.array([1e-3, 1e-3, 1e-3, 5e-3]), 0, 0)
    assert simulate(work, Host(4, 1e12, 1e12), batch=4) == pytest.approx(4 / 5e-3)
    assert simulate(work, Host(1, 1e12, 1e12), batch=4) == pytest.approx(4 / 8e-3)


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="need as many cores"):
        simulate(LoaderWork(SECONDS, 0, 0), Host(2, 1e9, 1e9), batch=4, processes=4)


def test_the_bytes_of_an_image_are_those_of_its_buffers() -> None:
    """A 100 kB JPEG of which half is decoded to 200 x 200, resized to 224."""
    shape = ImageShape(stored=100e3, region=3 * 200**2, share=0.5, region_rows=200, ops=1.5, size=224)
    image = 3 * 224**2
    assert stream_bytes(cpu_augmented(shape)) == 100e3 + 3 * 4 * image  # a line is read before it is written
    assert stream_bytes(cpu_augmented(shape, consumed=False)) == 100e3 + 2 * 4 * image
    assert stream_bytes(gpu_augmented(shape)) == 100e3 + 3 * 3 * 200**2
    scratch = all_bytes(cpu_augmented(shape)) - stream_bytes(cpu_augmented(shape))
    assert scratch == 100e3 + 1.5 * 100e3 + 2 * 120e3 + 2 * 200 * 3 * 224 + (2 + 2 * 1.5) * image


@pytest.fixture
def loader(tmp_path: Path, photographs: dict[str, np.ndarray]) -> MeasuredLoader:
    for name in ("astronaut", "coffee"):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        Image.fromarray(photographs[name]).save(tmp_path / "photographs" / name / "1.jpg", quality=90)
    path = tmp_path / "photographs.beton"
    convert_folder(tmp_path / "photographs", path, WriteOptions(workers=0))
    trial = loader_work(str(path), 64, batch=2, repeat=1, policy=AUGMENT, erase=0.25)["pass"]()
    return MeasuredLoader(Rounds({"fastft": {"pass": [trial]}}), image_shape(path, AUGMENT, 64))


def test_the_model_is_given_the_loader_s_own_times(loader: MeasuredLoader) -> None:
    """The mean is that of the pass in batches, the spread that of single images; without ops there is less of both."""
    trial = loader.rounds.trials["fastft"]["pass"][0]
    both, decode = (loader.work(cpu_augmented(loader.shape), augment=augment) for augment in (True, False))
    assert len(both.image_seconds) == trial["count"] == 2
    assert both.mean_seconds == pytest.approx(trial["read"] + trial["decode"] + trial["augment"])
    assert 0 < decode.mean_seconds < both.mean_seconds and both.batch_seconds >= 0
    assert 0 < loader.shape.share <= 1 and loader.shape.ops > 0


def test_nothing_goes_faster_than_the_host_s_parts_allow(loader: MeasuredLoader) -> None:
    for kind in (WHOLE, DECODE):
        limits = host_limits(loader, kind, core_bandwidth=10e9)
        together = limits.pop("cores and memory together")
        assert together <= 1.02 * min(limits["cores"], limits["memory bandwidth"])
        half = replace(H100_HOST, memory_peak=H100_HOST.memory_peak / 2, link_peak=H100_HOST.link_peak / 2)
        less = host_limits(loader, kind, core_bandwidth=10e9, host=half)
        for part in ("memory bandwidth", "PCIe"):
            assert less[part] == pytest.approx(limits[part] / 2)


def test_the_gpus_demand_is_that_of_the_cost_model() -> None:
    (demand,) = _demand()
    rates = {c["name"]: c["median"] for c in demand["contenders"]}
    needs = next(row for row in loader_needs(recipe_from_dict("B/16", {}), None) if row["gpu"] == "H100")
    assert rates["B/16, published"] == pytest.approx(needs["images_per_second"][-1])
    assert rates["L/14, published"] < rates["B/16, published"] < rates["B/16, roofline"]
