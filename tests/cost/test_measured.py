"""`fastft cost --measured`: images per second of a benchmark in the place of assumptions, and marked as such."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastft.cli import main
from fastft.cost.measured import Measured
from fastft.cost.price import CostQuery, Prices, price_recipes
from fastft.cost.work import recipe_flops
from fastft.machine.bench_result import Result, write_result
from fastft.machine.gpus import GPUS
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import load_recipe
from tests.bench.made_up import Maker, measure, result

V100, H100 = "Tesla V100-SXM2-16GB", "NVIDIA H100 80GB HBM3"
FILES = {"files": "500 px files"}


def benchmark(gpu: str | None = V100, step: float = 500.0, dtype: str = "fp16", loader: float = 900.0) -> Result:
    """A step of B/16 on one kind of GPU, and a loader, with exactly these images per second."""
    make = Maker(spread=0)
    steps = make.case({"fastft": step, "timm": step / 2}, model="ViT-B/16", size=224, dtype=dtype, batch=128)
    measures = [
        measure("step.train", "Training step", [steps], "images/s"),
        measure("loader.crop.core", "Crop and flip", [make.case({"fastft": loader})], setting=FILES),
        measure("loader.eval", "Evaluation", [make.case({"fastft": loader / 2})], setting=FILES),
    ]
    return result(gpu=gpu, measures=measures)


def priced(one: Result, gpu: str = "v100", *recipes: str, **query: Any) -> Prices:
    loaded = [load_recipe(name) for name in recipes or ("final_b16",)]
    return price_recipes(loaded, CostQuery(gpu, measured=Measured.of(one, "bench.json"), **query))


def test_the_measured_step_comes_first_and_gives_the_hours():
    values = priced(benchmark(), price=2.48, cores_per_gpu=4)
    measured, *others = values.recipes[0].estimates
    assert measured.basis == "measured" and "bench.json" in measured.source
    assert [e.basis for e in others] == ["roofline"]  # the measurement replaces the range
    assert measured.images_per_second_per_gpu == pytest.approx(500)
    recipe = load_recipe("final_b16")
    assert measured.value == pytest.approx(500 * recipe_flops(recipe, recipe_arch(recipe)).train / 125e12)
    trained = recipe.epochs * recipe.steps_per_epoch() * recipe.optim.batch_size / (8 * 500)
    assert measured.seconds.train == pytest.approx(trained)
    assert measured.money == pytest.approx(2.48 * measured.gpu_hours)
    basis = {row.name: (row.value, row.basis) for row in values.assumptions}
    assert basis["loader_rate"] == (3600.0, "measured") and basis["eval_loader_rate"] == (1800.0, "measured")
    assert basis["start_seconds"][1] == "assumed" and values.remarks == []


def test_an_extrapolated_rate_names_processor_threads_and_cores():
    one = benchmark()
    rows = {row.name: row for row in priced(one, cores_per_gpu=12).assumptions}
    assert rows["loader_rate"].what.endswith(
        f"extrapolated to 12 cores from 900 with one thread on {one.machine.cpu}, loader.crop.core"
    )
    to_gpu = measure("loader.gpu", "Loader to the GPU", [Maker(spread=0).case({"fastft": 32_000})], setting=FILES)
    one.measures.append(to_gpu)
    (row,) = (row for row in priced(one, cores_per_gpu=12).assumptions if row.name == "loader_rate")
    assert f"from 32,000 with {one.machine.cores} threads on {one.machine.cpu}, loader.gpu" in row.what
    assert {r.name for r in priced(one).assumptions if r.basis == "assumed"} >= {"start_seconds", "pass_start_seconds"}


def test_without_a_gpu_option_the_hours_are_for_the_gpu_of_the_result_or_for_the_main_ones(tmp_path, capsys):
    path = tmp_path / "all.json"
    for gpu, titles in ((H100, ["8 x H100"]), (None, ["8 x V100", "8 x A100", "8 x H100"])):
        write_result(path, benchmark(gpu))
        assert main(["cost", "final_b16", "--measured", str(path)]) == 0
        out = capsys.readouterr().out
        assert [line.partition(" (")[0] for line in out.splitlines() if line.startswith("8 x ")] == titles
        assert ("measured without a GPU" in out) == (gpu is None)


def test_a_slow_measured_loader_shows_as_waiting():
    (measured, *_) = priced(benchmark(loader=50), cores_per_gpu=4).recipes[0].estimates
    assert measured.limited_by == "loader" and measured.images_per_second_per_gpu == pytest.approx(200)


def test_the_loader_to_the_gpu_counts_more_than_crop_and_flip():
    one = benchmark()
    to_gpu = measure("loader.gpu", "Loader to the GPU", [Maker(spread=0).case({"fastft": 32_000})], setting=FILES)
    one.measures.append(to_gpu)
    assert Measured.of(one, "x").loader.value == pytest.approx(32_000 / one.machine.cores)


@pytest.mark.parametrize(
    ("one", "gpu", "remark"),
    [
        (benchmark(H100), "v100", "was measured on NVIDIA H100 80GB HBM3, not on V100"),
        (benchmark(None), "v100", "was measured without a GPU"),
        (benchmark(dtype="fp32"), "v100", "no training step for final_b16's model and size"),
    ],
)
def test_a_step_that_does_not_fit_is_not_used_and_a_remark_says_so(one, gpu, remark):
    values = priced(one, gpu)
    assert remark in values.remarks[0] and len(values.remarks) == 1
    assert [e.basis for e in values.recipes[0].estimates] == ["fastest", "middle", "slowest", "roofline"]


def test_other_models_sizes_and_frozen_blocks_have_steps_of_their_own():
    one = benchmark()
    names = ("final_b16", "final_l14", "final_b16_384", "frugal_b16_half")
    by_recipe = {r.recipe: r.estimates[0].basis for r in priced(one, "v100", *names).recipes}
    assert by_recipe == {name: "measured" if name == "final_b16" else "fastest" for name in names}
    half = Maker(spread=0).case({"fastft": 800}, model="ViT-B/16", size=224, dtype="fp16")
    one.measures.append(measure("step.frozen", "Lower half frozen", [half], "images/s"))
    (frozen,) = priced(one, "v100", "frugal_b16_half", cores_per_gpu=4).recipes
    assert frozen.estimates[0].images_per_second_per_gpu == pytest.approx(800)


def test_the_recipe_end_to_end_counts_more_than_its_step():
    one = benchmark()
    whole = Maker(spread=0).case({"fastft": 450})
    one.measures.append(
        measure(
            "e2e.train", "End to end", [whole], "images/s", setting={"model": "final_b16", "size": 224, "batch": 256}
        )
    )
    (b16, l14) = priced(one, "v100", "final_b16", "final_l14", cores_per_gpu=4).recipes
    assert b16.estimates[0].images_per_second_per_gpu == pytest.approx(450)
    assert "bench e2e" in b16.estimates[0].source and l14.estimates[0].basis == "fastest"


def test_the_command_says_which_hours_are_measured(tmp_path, capsys):
    path = tmp_path / "all.json"
    write_result(path, benchmark())
    assert main(["cost", "final_b16", "--gpu", "v100", "--measured", str(path)]) == 0
    out = capsys.readouterr().out
    assert (
        "measured: images/s from fastft bench" in " ".join(out.split())
        and f"500 images/s of fastft bench step, {path}" in out
    )


def quick() -> Result:
    one = benchmark()
    one.quick = True
    return one


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (quick(), "quick run, whose results mean nothing"),
        (result(measures=[]), "no measure that costs depend on. Run fastft bench all"),
        (benchmark(step=50_000), "of V100's peak. Measure again"),
    ],
)
def test_meaningless_or_impossible_figures_are_refused(tmp_path, refused, one, message):
    path = tmp_path / "bench.json"
    write_result(path, one)
    assert message in refused(["cost", "final_b16", "--gpu", "v100", "--measured", str(path)])


def test_a_file_that_is_no_result_is_refused(tmp_path: Path, refused):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"measures": 3}))
    refused(["cost", "final_b16", "--gpu", "v100", "--measured", str(path)])
    refused(["cost", "final_b16", "--gpu", "v100", "--measured", str(tmp_path / "missing.json")])


def test_the_peak_is_of_the_card_that_was_measured():
    assert Measured.of(benchmark(V100), "x").gpu == GPUS["V100"] and Measured.of(benchmark("a card"), "x").gpu is None
