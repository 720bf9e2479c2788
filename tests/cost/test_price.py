"""Prices: held against the wall times in the logs of the paper's own runs, against published speeds, and against themselves."""

import json
import math
import re
import runpy
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.cost.overheads import Overheads, with_cores
from fastft.cost.price import CostQuery, Estimate, estimate, price_recipes
from fastft.cost.roofline import PLANS, Mfu
from fastft.cost.work import recipe_flops
from fastft.machine.gpus import GPUS
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, load_recipe

GIVEN = Mfu(0.4, "given", "")
COSTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "costs.py"))


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides)


def of_reference(name: str) -> Estimate:
    """The paper's own run, on its 8 A100."""
    title = {"final_b16": "this paper's B/16", "final_l14": "this paper's L/14"}[name]
    run = next(r for r in COSTS["published"]("plan") if (r.gpu, r.name) == ("A100-40", title))
    overheads = Overheads(math.inf, math.inf, pass_start_seconds=2 * 23.7, start_seconds=0.0)  # as B/16's log has it
    return estimate(recipe(name), GPUS["A100-40"], 8, Mfu(run.model_mfu, "given", ""), overheads)


def test_reference_b16_run_costs_as_in_its_log():
    """48.3 A100-hours; 424 images/s per GPU; steps of 0.6032 s; the rest is evaluation and starts."""
    run = of_reference("final_b16")
    assert run.gpu_hours == pytest.approx(48.3, rel=0.01)
    assert run.images_per_second == pytest.approx(424, rel=0.01)
    assert run.train == pytest.approx(50 * 625 * 0.6032, rel=0.01)
    assert 0.1 < run.evaluate / 3600 / run.wall_hours < 0.15


def test_reference_l14_run_is_predicted_from_the_b16_log():
    """105.6 A100-hours; nothing is fitted to this log, whose run also wrote 5 GB checkpoints every epoch."""
    run = of_reference("final_l14")
    assert run.train == pytest.approx(30 * 2500 * 0.5654, rel=0.01)
    assert 0.94 * 105.6 < run.gpu_hours < 105.6


@pytest.mark.slow  # traces the published models; tests/golden has the figures that follow
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_the_shares_to_plan_with_are_those_of_the_published_trainings(plan):
    found = [run.k for run in COSTS["planned_with"](plan)]
    assert pytest.approx((min(found), max(found)), abs=0.005) == (plan.slowest, plan.fastest)


def test_every_gpu_has_one_plan():
    assert sorted(name for plan in PLANS for name in plan.gpus) == sorted(GPUS)


@pytest.mark.parametrize("gpu", ["V100", "A100", "H100"])
def test_the_range_to_plan_with_is_narrow(gpu):
    (priced,) = price_recipes([recipe("final_b16")], CostQuery(gpu)).recipes
    hours = {e.basis: e.gpu_hours for e in priced.estimates}
    assert 1 < hours["slowest"] / hours["fastest"] <= 1.6


@pytest.mark.slow
def test_the_roofline_is_called_no_limit_as_published_steps_were_faster(capsys):
    assert max(run.k for run in COSTS["published"]("others")) > 1
    assert main(["cost", "final_b16", "--gpu", "v100"]) == 0
    out = capsys.readouterr().out
    assert "limit" not in out and "upper bound" not in out


def test_attention_takes_longer_than_matrix_products_of_as_many_flops():
    """4 % of the FLOPs of B/16 at 224 px, 10 % at 384 px, at 0.2 of the peak instead of 0.72."""
    for options, share in (([], 0.041), (["--model.image_size=384"], 0.109), (["--model.trainable_layers=6"], 0.041)):
        r = recipe("final_b16", *options)
        flops = recipe_flops(r, recipe_arch(r))
        assert flops.attention / flops.train == pytest.approx(share, abs=0.002)
    timm = recipe("final_b16", "--model.arch=timm/vit_base_patch16_224", "--model.weights=random")
    assert recipe_flops(timm, recipe_arch(timm)).attention == pytest.approx(12 * 3 * 4 * 197**2 * 768)


def test_a_slow_loader_shows_as_a_stall_and_a_usual_machine_does_not_wait():
    slow = with_cores(0.2)
    starved = estimate(recipe("final_b16"), GPUS["V100"], 8, GIVEN, slow)
    assert starved.images_per_second == pytest.approx(slow.loader_rate)
    assert starved.row(None).limited_by == "loader"
    for gpu in ("V100", "A100", "H100"):
        values = price_recipes([recipe("final_b16"), recipe("fitted_dinov2_b14")], CostQuery(gpu))
        assert {e.limited_by for r in values.recipes for e in r.estimates} == {"GPU"}


def test_a_run_that_stops_at_the_linear_probe_costs_one_forward_pass_per_image(capsys):
    options = ["--model.head_init=probe", "--model.trainable_layers=0", "--schedule.stop_epoch=0"]
    probe = recipe("final_b16", *options)
    forward = recipe_flops(probe, recipe_arch(probe)).forward
    found = estimate(probe, GPUS["V100"], 8, GIVEN)
    assert (found.train, found.limited_by) == (0, "GPU")
    assert found.evaluate == pytest.approx((1_281_167 + 50_000) * forward / (8 * 0.4 * 125e12))
    assert found.images_per_second == pytest.approx(0.4 * 125e12 / forward)
    slow = with_cores(0.2)
    starved = estimate(probe, GPUS["V100"], 8, GIVEN, slow)
    assert (starved.images_per_second, starved.limited_by) == (pytest.approx(slow.eval_loader_rate), "loader")
    assert main(["explain", "final_b16", *options, "--verbose"]) == 0
    assert "none: the run stops at the linear probe" in capsys.readouterr().out
    assert main(["explain", "final_b16", "--schedule.stop_epoch=0"]) == 2
    assert "Set model.head_init to probe" in capsys.readouterr().err


def test_validation_images_are_an_assumption_that_can_be_replaced(capsys):
    """ImageNet's 50,000, the same share of other data, or what is given; in the estimate as in the list."""
    whole, part = recipe("final_b16"), recipe("final_b16", "--data.train_size=20000")
    shown = {
        (row.value, row.basis)
        for row in price_recipes([whole, part], CostQuery("v100")).assumptions
        if row.name == "val_images"
    }
    assert shown == {(50_000, "assumed"), (781, "assumed")}

    def evaluation(r: Recipe, val_images: int | None) -> float:
        return estimate(r, GPUS["V100"], 8, GIVEN, val_images=val_images).evaluate

    assert evaluation(whole, None) == evaluation(whole, 50_000) > evaluation(whole, 0)
    assert evaluation(part, None) == evaluation(part, 781) < evaluation(part, 50_000)
    assert main(["cost", "final_b16", "--gpu", "v100", "--data.train_size=20000", "--val-images=3000"]) == 0
    assert re.search(r"given +validation images: 3,000", capsys.readouterr().out)


def test_command_prints_recipes_side_by_side_or_json(capsys):
    command = ["cost", "final_b16", "final_l14", "--gpu", "v100", "--price", "2.48", "--schedule.stop_epoch=20"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "final_b16" in out and "final_l14" in out and "modelled" in out and "…" not in out
    assert main(["cost", "final_b16", "--gpu", "v100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"][0]["recipe"] == "final_b16"
    assert main(["cost", "final_b16", "--gpu", "k80"]) == 2
    assert "V100" in capsys.readouterr().err
