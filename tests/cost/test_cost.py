"""Cost: held against the wall times in the logs of the paper's own runs, and against itself."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.cost.mfu import PUBLISHED_MFU, RECORD_MFU, Mfu, reference_mfu, roofline_mfu
from fastft.cost.model import Estimate, estimate
from fastft.cost.overheads import FASTFT, REFERENCE, with_cores
from fastft.cost.table import CostQuery, price_recipes
from fastft.cost.work import count_parameters, phase_flops, recipe_work
from fastft.machine.gpus import GPUS
from fastft.model import load_arch
from fastft.model.phases import find_phases
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "rcp"


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


def of_reference(name: str) -> Estimate:
    """The paper's own run, on its 8 A100."""
    arch = load_arch(recipe(name).model.arch)
    return estimate(recipe(name), GPUS["A100"], 8, reference_mfu(arch), REFERENCE)


def test_reference_b16_run_costs_as_in_its_log() -> None:
    """48.3 A100-hours; 424 images/s per GPU; steps of 0.6032 s; the rest is evaluation and starts."""
    run = of_reference("final_b16")
    assert run.gpu_hours == pytest.approx(48.3, rel=0.01)
    assert run.images_per_second == pytest.approx(424, rel=0.01)
    assert run.parts.train == pytest.approx(50 * 625 * 0.6032, rel=0.01)
    assert 0.1 < run.parts.evaluate / run.parts.total < 0.15


def test_reference_l14_run_is_predicted_from_the_b16_log() -> None:
    """105.6 A100-hours; nothing is fitted to this log, whose run also wrote 5 GB checkpoints every epoch."""
    run = of_reference("final_l14")
    assert run.parts.train == pytest.approx(30 * 2500 * 0.5654, rel=0.01)
    assert run.gpu_hours == pytest.approx(105.6, rel=0.06)
    assert run.gpu_hours < 105.6


def test_parameters_match_the_logs() -> None:
    """n_params of the reference's logs, which leave out the frozen patch embedding of the 224 px runs."""
    for name, patch, width, logged in [
        ("final_b16", 16, 768, 85_978_600),
        ("final_l14", 14, 1024, 303_602_664),
    ]:
        counted = count_parameters(load_arch(recipe(name).model.arch), 1000)
        assert counted == pytest.approx(logged + 3 * patch**2 * width, rel=0.002)


def test_hours_scale_with_gpus_epochs_and_mfu() -> None:
    bare = with_cores(FASTFT, 1e6)  # no loader limit
    half, whole = Mfu(0.2, "given", ""), Mfu(0.4, "given", "")
    one = estimate(recipe("final_b16"), GPUS["V100"], 1, whole, bare)
    eight = estimate(recipe("final_b16"), GPUS["V100"], 8, whole, bare)
    short = estimate(recipe("final_b16", "--schedule.stop_epoch=25"), GPUS["V100"], 1, whole, bare)
    slow = estimate(recipe("final_b16"), GPUS["V100"], 1, half, bare)
    assert one.parts.train == pytest.approx(8 * eight.parts.train)
    assert one.parts.train == pytest.approx(2 * short.parts.train)
    assert slow.parts.train == pytest.approx(2 * one.parts.train)


def test_a_slow_loader_shows_as_a_stall() -> None:
    fast, slow = with_cores(FASTFT, 16), with_cores(FASTFT, 0.2)
    mfu = PUBLISHED_MFU["V100"]
    assert estimate(recipe("final_b16"), GPUS["V100"], 8, mfu, fast).parts.stall == 0
    starved = estimate(recipe("final_b16"), GPUS["V100"], 8, mfu, slow)
    assert starved.images_per_second == pytest.approx(slow.loader_rate)
    assert starved.as_dict(None)["limited_by"] == "loader"


def test_v100_hours_are_shown_at_the_vit_figure_the_roofline_and_the_record() -> None:
    """DeiT-B reached 21 % on V100; 52 % is a BERT's. The record is above what any ViT has been seen to reach."""
    assert PUBLISHED_MFU["V100"].value == 0.21 < RECORD_MFU["V100"].value == 0.52
    values = price_recipes([recipe("final_b16")], CostQuery("v100"))
    hours = {e["basis"]: e["gpu_hours"] for e in values["recipes"][0]["estimates"]}
    assert hours["published"] == pytest.approx(74.3, abs=0.1) and hours["record"] == pytest.approx(
        30.7, abs=0.1
    )


def test_the_roofline_is_below_the_matrix_product_rate_and_pays_for_bytes() -> None:
    """A quarter of the bandwidth lowers it; the larger L/14 has fewer bytes per FLOP."""
    b16, a100 = recipe("final_b16"), GPUS["A100"]
    whole = roofline_mfu(b16, a100, 8).value
    assert 0.4 < whole < 0.75
    assert roofline_mfu(b16, replace(a100, bandwidth=a100.bandwidth / 4), 8).value < 0.6 * whole
    assert roofline_mfu(recipe("final_l14"), a100, 8).value > whole


def test_a_gpu_without_a_published_figure_is_priced_by_the_roofline() -> None:
    values = price_recipes([recipe("final_b16")], CostQuery("rtx 4090"))
    assert values["gpu"] == "RTX4090"
    assert [e["basis"] for e in values["recipes"][0]["estimates"]] == ["roofline", "reference"]
    assert "modelled upper bound: autocast" in values["recipes"][0]["estimates"][0]["source"]


def test_freezing_half_the_layers_is_cheaper_by_its_backward_pass() -> None:
    whole = estimate(recipe("final_l14"), GPUS["A100"], 8, PUBLISHED_MFU["A100"])
    half = estimate(
        recipe("final_l14", "--model.trainable_layers=12"), GPUS["A100"], 8, PUBLISHED_MFU["A100"]
    )
    assert half.parts.train / whole.parts.train == pytest.approx(2 / 3, rel=0.02)


def write_bench(
    path: Path, mfu: float = 0.41, gpu: str = "Tesla V100-SXM2-16GB", loader: float = 800.0, **keys: object
) -> Path:
    def measure(name: str, role: str, median: float, **setting: object) -> dict[str, object]:
        contenders = [{"name": "fastft", "rounds": [median], "median": median}]
        return {"name": name, "unit": "x", "role": role, "setting": setting, "contenders": contenders}

    measures = [measure("step", "mfu", mfu, gpu=gpu), measure("loader", "loader_per_core", loader)]
    path.write_text(json.dumps({"measures": measures, **keys}))
    return path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write_bench(tmp_path / "bench.json")


def test_measured_figures_replace_assumptions_and_are_marked(bench: Path) -> None:
    values = price_recipes(
        [recipe("final_b16")], CostQuery("v100", measured=bench, cores_per_gpu=4, price=2.48)
    )
    measured, published, roofline, record, reference = values["recipes"][0]["estimates"]
    assert (measured["basis"], measured["value"]) == ("measured", 0.41)
    assert [e["basis"] for e in (published, roofline, record, reference)] == [
        "published", "roofline", "record", "reference"
    ]  # fmt: skip
    assert measured["money"] == pytest.approx(2.48 * measured["gpu_hours"])
    basis = {row["name"]: (row["value"], row["basis"]) for row in values["assumptions"]}
    assert basis["loader_rate"] == (3200.0, "measured")
    assert basis["eval_loader_rate"][1] == "assumed"
    assert values["modelled"] is True


@pytest.mark.parametrize(("card", "priced"), [("Tesla V100-SXM2-16GB", "h100"), ("NVIDIA H100 PCIe", "h100")])
def test_mfu_of_another_gpu_is_not_used_and_a_remark_says_so(
    tmp_path: Path, card: str, priced: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bench(tmp_path / "bench.json", gpu=card)
    assert main(["cost", str(RECIPES / "final_b16.yaml"), "--gpu", priced, "--measured", str(path)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "its MFU is not used" in line]
    assert len(said) == 1 and card in said[0] and "H100 of 989 TFLOP/s" in said[0]
    values = price_recipes([recipe("final_b16")], CostQuery(priced, measured=path))
    assert [e["basis"] for e in values["recipes"][0]["estimates"]] == ["published", "roofline", "reference"]


def test_mfu_of_this_gpu_needs_no_remark(bench: Path) -> None:
    assert price_recipes([recipe("final_b16")], CostQuery("v100", measured=bench))["remarks"] == []


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"mfu": 0}, "mfu is 0; it must be above 0 and at most 1"),
        ({"mfu": 52}, "mfu is 52; it must be above 0 and at most 1"),
        ({"mfu": float("nan")}, "NaN, which is not a number"),
        ({"loader": 0}, "loader_per_core is 0; it must be above 0"),
        ({"quick": True}, "quick run, whose figures are meaningless"),
    ],
)
def test_impossible_or_meaningless_figures_are_refused(
    tmp_path: Path, figures: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bench(tmp_path / "bench.json", **figures)
    assert main(["cost", str(RECIPES / "final_b16.yaml"), "--gpu", "v100", "--measured", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_benchmark_file_without_a_role_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"measures": []}')
    with pytest.raises(UserError, match="fastft bench"):
        price_recipes([recipe("final_b16")], CostQuery("v100", measured=path))


def test_validation_images_are_an_assumption_that_can_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet's 50,000, the same share of other data, or what is given; in the estimate as in the list."""
    whole, part = recipe("final_b16"), recipe("final_b16", "--data.train_size=20000")
    shown = {
        (row["value"], row["basis"])
        for row in price_recipes([whole, part], CostQuery("v100"))["assumptions"]
        if row["name"] == "val_images"
    }
    assert shown == {(50_000, "assumed"), (781, "assumed")}

    def evaluation(r: Recipe, val_images: int | None) -> float:
        return estimate(r, GPUS["V100"], 8, PUBLISHED_MFU["V100"], val_images=val_images).parts.evaluate

    assert evaluation(whole, None) == evaluation(whole, 50_000)
    assert evaluation(part, None) == evaluation(part, 781) < evaluation(part, 50_000)
    path = str(RECIPES / "final_b16.yaml")
    assert main(["cost", path, "--gpu", "v100", "--data.train_size=20000", "--val-images=3000"]) == 0
    assert re.search(r"given +validation images: 3000", capsys.readouterr().out)


@pytest.mark.parametrize("override", ["--data.num_classes=10", "--data.train_size=20000"])
def test_no_accuracy_is_expected_on_other_data(override: str) -> None:
    priced = price_recipes([recipe("final_b16", override), recipe("final_b16")], CostQuery("v100"))["recipes"]
    assert [r["expected_top1"] for r in priced] == [None, 85.7]


def test_a_recipe_that_cannot_be_priced_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = RECIPES / "final_b16.yaml", tmp_path / "odd.yaml"
    bad.write_text("model:\n  image_size: 98\n")
    assert main(["cost", str(good), str(bad), "--gpu", "v100"]) == 2
    assert f"{bad}: image size 98" in capsys.readouterr().err


def test_command_prints_recipes_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(RECIPES / f"{name}.yaml") for name in ("final_b16", "final_l14")]
    assert main(["cost", *paths, "--gpu", "v100", "--price", "2.48", "--schedule.stop_epoch=20"]) == 0
    out = capsys.readouterr().out
    assert "final_b16" in out and "final_l14" in out and "modelled" in out and "…" not in out


def test_command_prints_json_and_refuses_unknown_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECIPES / "final_b16.yaml")
    assert main(["cost", path, "--gpu", "v100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"][0]["recipe"] == "final_b16"
    assert main(["cost", path, "--gpu", "k80"]) == 2
    assert "V100" in capsys.readouterr().err


PROGRESSIVE = "--schedule.sizes=0:160,24:224"


def test_flops_and_hours_of_a_run_are_the_sum_of_its_phases() -> None:
    """24 epochs as in a recipe of 160 px, 6 as in frugal_b16; evaluation at 224 px throughout."""
    both = load_recipe("frugal_b16", [PROGRESSIVE])
    large = load_recipe("frugal_b16")
    small = load_recipe("frugal_b16", ["--model.image_size=160"])
    works = [recipe_work(r, recipe_arch(r)) for r in (both, large, small)]
    assert works[0].train == pytest.approx(0.8 * works[2].train + 0.2 * works[1].train)
    assert works[0].evaluate == works[1].evaluate
    gpu, mfu = GPUS["H100"], PUBLISHED_MFU["H100"]
    hours = [estimate(r, gpu, 8, mfu).parts for r in (both, large, small)]
    assert hours[0].train == pytest.approx(0.8 * hours[2].train + 0.2 * hours[1].train)
    assert hours[0].evaluate == hours[1].evaluate


def test_a_loader_that_is_too_slow_for_small_images_only_stalls_there() -> None:
    recipe, gpu, mfu = load_recipe("frugal_b16", [PROGRESSIVE]), GPUS["H100"], PUBLISHED_MFU["H100"]
    rates = {}
    for phase in find_phases(recipe):
        work = phase_flops(recipe, recipe_arch(recipe), phase).train
        rates[phase.size] = gpu.peak_flops * mfu.value / work
    between = replace(FASTFT, loader_rate=(rates[160] + rates[224]) / 2)
    parts = estimate(recipe, gpu, 8, mfu, between).parts
    small = 24 * recipe.steps_per_epoch() * recipe.optim.batch_size / 8
    assert parts.stall == pytest.approx(small * (1 / between.loader_rate - 1 / rates[160]))


def test_the_roofline_of_a_run_lies_between_those_of_its_phases() -> None:
    gpu = GPUS["V100"]
    mixed, large, small = (
        roofline_mfu(load_recipe("frugal_b16", options), gpu, 8).value
        for options in ([PROGRESSIVE], [], ["--model.image_size=160"])
    )
    assert min(large, small) < mixed < max(large, small)
