"""Contenders are given the same images and deliver what their row says; the user's own loader is one of them."""

import tarfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from fastft.bench import loader_bench, own
from fastft.bench.augment_bench import entropy_share
from fastft.bench.contenders.spdl import random_crop
from fastft.bench.dataset import RESIZED, Images, Workspace
from fastft.bench.harness import Options, Rounds, alternate
from fastft.bench.measure import LOADER, PEERS, entered, run_plan
from fastft.bench.task import Task, Work, entries, peer_module
from fastft.bench.ways import PERCENTILES, PeakMemory, between, build, first, warm
from tests.written import write_crops

COUNT, SIZE = 6, 32


@pytest.fixture
def workspace(tmp_path: Path, photographs) -> Workspace:
    write_crops(tmp_path / "images", photographs, {"chelsea": 3, "coffee": 3}, suffix="jpg")
    paths = sorted((tmp_path / "images").glob("*/*"))
    return Workspace(tmp_path, Images(paths, "crops"))


@pytest.fixture
def task(workspace: Workspace) -> Task:
    return Task(Work.RECIPE, workspace.files(RESIZED, threads=2), SIZE, batch=2, threads=1)


def test_every_format_of_the_images_has_the_same_jpegs(workspace, task):
    beton = Beton.open(task.files["beton"])
    stored = sorted(beton.read_bytes(k) for k in range(beton.num_samples))
    assert sorted(p.read_bytes() for p in Path(task.files["folder"]).glob("*/*")) == stored
    stem = task.files["shards"].partition("{")[0]
    with tarfile.open(f"{stem}000000.tar") as one, tarfile.open(f"{stem}000001.tar") as two:
        assert sorted(tar.extractfile(m).read() for tar in (one, two) for m in tar.getmembers()) == stored
    raw = Beton.open(workspace.raw())
    assert raw.num_samples == COUNT and raw.sizes.sum() == 3 * int((raw.heights * raw.widths).sum())


@pytest.mark.parametrize("work", [Work.RECIPE, Work.CROP, Work.EVALUATION])
def test_fastft_passes_over_all_images_as_often_as_asked(task, work):
    given = {**task.as_dict(), "work": work, "repeat": 2}
    trial = warm(module=LOADER, name="fastft", task=given, options={})["pass"]()
    assert trial["count"] == 2 * COUNT and 0 < trial["p50_ms"] <= trial["p99_ms"] <= trial["longest_ms"]


def test_percentiles_are_of_the_times_between_batches():
    seconds = [0.0]
    for wait in [0.001] * 95 + [0.05] * 4 + [2.0]:
        seconds.append(seconds[-1] + wait)
    found = between([5 + s for s in seconds])
    assert [round(found[key]) for key in ("p50_ms", "p95_ms", "p99_ms", "longest_ms")] == [1, 1, 50, 2000]
    assert between([5.0]) == {}


STAGED = [(module, e) for module in map(peer_module, PEERS) for e in entries(module) if e.stages]


@pytest.mark.parametrize("entry", [e for _, e in STAGED], ids=lambda e: e.name)
def test_the_stages_of_a_peer_make_a_normalised_image_of_its_bytes(task, entry):
    value = task.paths[0].read_bytes()
    for _, stage in entry.stages(SIZE):
        value = stage(value)
    assert value.shape == (3, SIZE, SIZE) and value.dtype == torch.float32 and -3 < value.mean() < 3


def test_entropy_decoding_is_a_part_of_decoding(task):
    files = [p.read_bytes() for p in Path(task.files["folder"]).glob("*/*")]
    assert 0 < entropy_share(5 * files) < 1


def test_the_start_of_a_loader_includes_its_first_batch_and_the_memory_of_its_workers(task):
    found = first(module=peer_module("torchvision"), name="torchvision v2", task=task.as_dict(), options={})["pass"]()
    assert found["count"] == COUNT and found["seconds"] > 0 and found["memory_mb"] > 20
    with PeakMemory() as peak:
        held = np.ones(100 << 20, np.uint8)
    assert peak.mb > held.nbytes / 1e6


def test_a_row_names_what_is_not_the_same_work(workspace, task):
    options = Options(workspace, rounds=1, threads=1, peers=("ffcv", "timm", "webdataset"))
    rows = {c.name: c.differences for c in entered(options, Task(**{**task.as_dict(), "work": Work.CROP}))}
    assert rows["fastft"] == () and "uint8, not normalised" in rows["stock FFCV"]
    assert "timm's transform" in rows["WebDataset"] and rows.keys() >= {"timm", "FFCV, fastft's operations"}
    assert "stock FFCV" not in {c.name for c in entered(options, task)}  # it has no RandAugment


def test_ffmpeg_crops_as_the_other_contenders():
    crop, scale, *_ = random_crop(SIZE).split(",scale")
    assert crop.startswith("crop=w=min(iw\\,sqrt(") and scale.startswith(f"={SIZE}:{SIZE}:flags=bicubic")


OWN = """
def make(folder, batch, size):
    import pathlib
    paths = sorted(pathlib.Path(folder).glob("*/*"))
    return [([path.read_bytes() for path in paths[k : k + batch]], k) for k in range(0, len(paths), batch)]

def once(folder):
    return iter(make(folder, 2, 0))

def both(beton, work, threads):
    return [[work, beton, threads]]

def wants_more(folder, colour):
    return []
"""


def test_a_users_own_loader_is_a_contender(tmp_path, workspace, task):
    (tmp_path / "my_loader.py").write_text(OWN)
    where = f"{tmp_path}/my_loader.py:make"
    options = Options(workspace, rounds=1, threads=1, peers=(), own=where)
    [_, contender] = entered(options, task)
    assert contender.name == where and contender.differences == (own.DIFFERENCE,)
    assert contender.make(**contender.arguments)["pass"]()["count"] == COUNT
    assert own.works(where) == (Work.RECIPE,)
    assert own.works(f"{tmp_path}/my_loader.py:both") == (Work.RECIPE, Work.CROP)


def test_a_loader_without_images_has_no_figure(tmp_path, workspace, task):
    """A generator has batches in the first round only, which is not counted."""
    (tmp_path / "my_loader.py").write_text(OWN)
    options = Options(workspace, rounds=1, threads=1, peers=(), own=f"{tmp_path}/my_loader.py:once")
    [_, contender] = entered(options, task)
    assert contender.make(**contender.arguments)["pass"]()["count"] == COUNT
    rounds = alternate([contender], 1, threads=1)
    assert rounds.skipped == {contender.name: "it delivered no images"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my_loader.py:none", "has no function 'none'"), ("my_loader.py:wants_more", "wants 'colour'. It may take folder"),
        ("missing.py:make", "Give a Python file and a function"), ("my_loader", "Give a Python file and a function"),
    ],
)  # fmt: skip
def test_a_loader_that_cannot_be_called_is_refused(tmp_path, name, reason):
    (tmp_path / "my_loader.py").write_text(OWN)
    with pytest.raises(UserError, match=reason):
        own.works(f"{tmp_path}/{name}")


def test_long_files_have_all_samples_and_take_no_space_for_their_images(workspace):
    one, many = workspace.long(5000), workspace.long(8000, parts=4)
    assert BetonSet.open(one).num_samples == 5000 and BetonSet.open(many).num_samples == 8000
    stat = Path(one).stat()
    assert stat.st_blocks * 512 < stat.st_size - 5000 * 1000  # of 1,024 bytes each


@pytest.mark.parametrize(
    ("threads", "physical", "counts"),
    [(1, 1, [1]), (2, 2, [1, 2]), (6, 3, [1, 2, 3, 4, 6]), (8, 4, [1, 2, 4, 8]), (4, None, [1, 2, 4]), (2, 8, [1, 2])],
)
def test_threads_double_up_to_all_cores_and_stop_at_the_physical_ones(
    workspace, monkeypatch, threads, physical, counts
):
    monkeypatch.setattr("psutil.cpu_count", lambda logical: physical)
    options = Options(workspace, rounds=1, threads=threads)
    assert loader_bench.thread_counts(options) == counts
    assert loader_bench.beyond_cores(options) == [*counts, 2 * threads]
    assert loader_bench.beyond_cores(replace(options, quick=True)) == counts


def test_twice_as_many_threads_run_on_all_cores_and_do_not_stand_for_them(workspace, monkeypatch):
    plan = next(plan for plan in loader_bench.PLANS if plan.key == "loader.recipe")
    options = Options(workspace, rounds=1, threads=2, peers=())
    assert [(v.threads, v.contenders[0].arguments["task"]["threads"]) for v in plan.variants(options)] == [
        (1, 1), (2, 2), (2, 4),
    ]  # fmt: skip
    monkeypatch.setattr("fastft.bench.measure.alternate", made_up_rounds)
    found = {m.key: [case.setting for case in m.cases] for m in run_plan(plan, options)}
    assert found["loader.recipe"] == [{"threads": 1}, {"threads": 2}, {"threads": 4}]
    assert found["loader.recipe.core"] == [{}] and found["loader.between"] == [{"threads": 2}]


def test_what_was_measured_of_a_plan_before_ctrl_c_is_kept(workspace, monkeypatch):
    plan = next(plan for plan in loader_bench.PLANS if plan.key == "loader.recipe")

    def run(contenders, rounds, threads):
        if threads > 1:
            raise KeyboardInterrupt
        return made_up_rounds(contenders, rounds, threads)

    monkeypatch.setattr("fastft.bench.measure.alternate", run)
    found = []
    with pytest.raises(KeyboardInterrupt):
        for measure in run_plan(plan, Options(workspace, rounds=1, threads=2, peers=())):
            found.append(measure)
    assert [(m.key, [case.setting for case in m.cases]) for m in found] == [
        ("loader.recipe.core", [{}]), ("loader.recipe", [{"threads": 1}]),
    ]  # fmt: skip


def made_up_rounds(contenders, rounds, threads) -> Rounds:
    trial = {"wall": 1.0, "cpu": 1.0, "count": 6, **dict.fromkeys(PERCENTILES, 1.0)}
    return Rounds({c.name: c for c in contenders}, {c.name: {"pass": [trial] * rounds} for c in contenders})


ORDER = next(plan for plan in loader_bench.PLANS if plan.key == "loader.order")


def test_a_measure_that_needs_root_says_so_instead(workspace, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    [note] = run_plan(ORDER, Options(workspace, rounds=1, threads=1))
    assert "loader.order was left out" in note and "root" in note


def test_files_larger_than_memory_are_read_in_the_orders_that_their_rows_name(workspace, monkeypatch):
    """Blocks and random order with fastft's loader, and QUASI_RANDOM without the system's cache with FFCV's."""
    monkeypatch.setattr(workspace, "repeated", lambda num_bytes, page_size: workspace.beton(RESIZED))
    [variant] = ORDER.variants(Options(workspace, rounds=1, threads=1, quick=True))
    found = list(variant.contenders)
    made: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("fastft.data.loader.TrainLoader", lambda *_, **given: made.append(("fastft", given)))
    if find_spec("ffcv"):
        monkeypatch.setattr("ffcv.loader.Loader", lambda *_, **given: made.append(("ffcv", given)))
    else:
        found.pop()
    for one in found:
        build(**{name: value for name, value in one.arguments.items() if name != "limit"})
    assert [c.name for c in found][:2] == ["fastft", "fastft, random order"]
    assert made[0][1]["order"] == "blocks" and made[0][1]["block_mib"] == loader_bench.ORDER_BLOCK_MIB
    assert "order" not in made[1][1]
    for _, given in made[2:]:
        assert given["order"].name == "QUASI_RANDOM" and given["os_cache"] is False and given["drop_last"]
