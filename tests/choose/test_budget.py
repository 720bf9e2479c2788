"""`schedule.budget`: image size and epochs are chosen for a time, from what linear probes measure, and are then fixed."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.choose import budget as rules
from fastft.choose import choose, image_size
from fastft.choose.automatic import resolve
from fastft.choose.budget import REMOVED, Budget, choose_epochs, choose_within, expected_gain, probe_within
from fastft.choose.image_size import TriedSizes
from fastft.cli import main
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.linear_probe import LinearProbe, fit_probe
from fastft.evaluate.predictor import Predictor
from fastft.evaluate.ridge import RidgeHead
from fastft.evaluate.trained import load_trained
from fastft.evaluate.weight_average import average, write_average
from fastft.export import to_safetensors
from fastft.jobs.run import run_recipe
from fastft.jobs.sweep import run_key
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.recipe_file import RECIPES
from fastft.report.run_compare import load_compared, result_rows
from fastft.report.run_figures import used_scores
from fastft.report.run_report import write_run_page
from fastft.run.baseline import read_baseline
from fastft.run.checkpoint import list_checkpoints
from fastft.run.find_weights import find_weights
from fastft.run.inputs import open_inputs
from fastft.run.run_directory import load_run, read_choices
from tests.train.runs import QUIET, differing, end, flags, result_of, rewind

IMAGES = 320  # 10 steps per epoch
SECONDS = {56: 3.2, 84: 6.4, 112: 12.8}  # for a forward pass over them


def probe(size: int, wrong: int, seconds: float) -> LinearProbe:
    right = np.arange(IMAGES) >= wrong
    head = RidgeHead(np.zeros((2, 1)), np.zeros(2), 1.0, 1.0, np.where(right, 0.1, 3.0), right)
    return LinearProbe(size, IMAGES, head, None, seconds)


def decided(*options: str) -> Recipe:
    return resolve(load_recipe("photos", [f"--data.train_size={IMAGES}", *options]))


def chosen(recipe: Recipe, left: float, wrong: tuple[int, int, int] = (120, 112, 108)) -> dict[str, Any]:
    probes = [probe(size, count, SECONDS[size]) for size, count in zip(SECONDS, wrong, strict=True)]
    choices, taken = choose_within(Budget(recipe, lambda: left, 80, 600), TriedSizes(probes, probes, "All were tried"))
    assert taken.size in SECONDS
    return {choice.option: choice for choice in choices}


@pytest.mark.parametrize(
    ("left", "size", "epochs"),
    [(36_000, 112, 100), (3000, 112, 59), (200, 84, 7), (100, 56, 7)],
    ids=["as many as without a budget", "the largest size", "a smaller size", "the smallest size"],
)  # fmt: skip
def test_time_is_given_to_the_image_size_as_long_as_there_are_enough_steps(left, size, epochs):
    found = chosen(decided("--schedule.budget=1h"), left)
    values = size, epochs, None
    assert tuple(found[o].value for o in ("model.image_size", "schedule.epochs", "schedule.stop_epoch")) == values
    assert "the best expected accuracy within 1h" in found["schedule.epochs"].reason
    plans = found["schedule.epochs"].evidence["plans"]
    fits = [plan for plan in plans if plan["epochs"]]
    assert all(plan["seconds"] < left for plan in fits) and max(fits, key=lambda plan: plan["top1"])["size"] == size


@pytest.mark.parametrize(
    ("left", "wrong"), [(30, (120, 100, 80)), (120, (120, 100, 20)), (36_000, (9, 4, 2))],
    ids=["no time to train", "the largest probe is better than a training at a smaller size", "hardly any errors"],
)  # fmt: skip
def test_the_run_stops_at_the_probe_where_training_is_not_expected_to_be_better(left, wrong):
    found = chosen(decided("--schedule.budget=1h"), left, wrong)
    assert (found["model.image_size"].value, found["schedule.stop_epoch"].value) == (112, 0)
    assert (
        "the linear probe is as good as any training that fits is expected to become" in found["schedule.epochs"].reason
    )


def test_epochs_or_size_that_are_set_are_kept():
    found = chosen(decided("--schedule.budget=1h", "--schedule.epochs=8"), 150)
    assert {option: choice.value for option, choice in found.items()} == {"model.image_size": 56}
    found = chosen(decided("--schedule.budget=1h", "--schedule.epochs=8"), 10)  # it does not fit, but was asked for
    assert "no training fits into 1h" in found["model.image_size"].reason
    recipe = decided("--schedule.budget=1h", "--model.image_size=84")
    sizes = probe_within(Budget(recipe, lambda: 300.0, 80, 600), lambda r: probe(r.model.image_size, 100, 6.4), False)
    choices, _ = choose_within(Budget(recipe, lambda: 300.0, 80, 600), sizes)
    assert [choice.option for choice in choices] == ["schedule.epochs", "schedule.stop_epoch"]
    assert 8 <= choices[0].value <= 13
    recipe = decided("--schedule.budget=1h", "--model.head_init=small")
    assert 8 <= choose_epochs(Budget(recipe, lambda: 300.0, 80, 600), 0.02)[0].value <= 13
    assert choose_epochs(Budget(recipe, lambda: 1.0, 80, 600), 0.02)[0].value == 1


def test_a_budget_for_a_run_that_trains_nothing_goes_to_the_best_probe():
    found = chosen(decided("--schedule.budget=1h", "--schedule.stop_epoch=0"), 36_000)
    assert found["model.image_size"].value == 112, "its accuracy is the best, however long a training would be"
    assert "the best linear probe within 1h, because nothing is trained" in found["model.image_size"].reason


def test_evaluation_at_a_larger_size_takes_its_time_at_every_size():
    recipe = decided("--schedule.budget=1h", "--train.eval_image_size=256")
    plain, larger = (Budget(r, lambda: 0.0, 80, 0) for r in (recipe.with_option("train.eval_image_size", None), recipe))
    epochs = [larger.fitting(200.0, 0.01, size)[0] for size in (64, 128, 256)]
    assert epochs == sorted(epochs) and epochs[0] < epochs[2] == plain.fitting(200.0, 0.01, 256)[0]


def tried_within(left: float, wrong: Callable[[int], int]) -> TriedSizes:
    return probe_within(
        Budget(decided("--schedule.budget=1h"), lambda: left, 80, 600),
        lambda r: probe(r.model.image_size, wrong(r.model.image_size), 4 * (r.model.image_size / 56) ** 2), True,
    )  # fmt: skip


def test_a_probe_may_take_a_tenth_of_what_is_left():
    sizes = tried_within(100, lambda size: 195 - size // 8)
    assert [p.size for p in sizes.tried] == [64, 80] and "of the 1 min 40 s that are left" in sizes.why


def test_a_larger_probe_is_tried_where_one_more_gain_would_make_it_better_than_any_training():
    """The magnetic tiles: probes gained 7 points with each size, and a training that fitted hardly any."""
    sizes = tried_within(100, lambda size: 12_000 // size)
    assert [p.size for p in sizes.tried] == [64, 80, 112, 160], "224 px would take more than two fifths of the time"
    sizes = tried_within(1000, lambda size: 100 + 6_400 // size)
    assert sizes.tried[-1].size == 224, (
        "training is better than what 336 px may reach, which takes a seventh of the time"
    )


def test_time_that_training_does_not_need_is_spent_on_larger_probes():
    def fit(recipe: Recipe) -> LinearProbe:
        size = recipe.model.image_size
        return probe(size, 195 - size // 8 if size < 224 else 176, 4 * (size / 56) ** 2)

    budget = Budget(decided("--schedule.budget=1h"), lambda: 160.0, 80, 600)
    begun = probe_within(budget, fit, True)
    more = probe_within(budget, fit, True, begun)
    assert [p.size for p in begun.tried] == [64, 80, 112] and [p.size for p in more.tried] == [64, 80, 112, 160, 224]
    assert more.gaining[-1].size == 160 and "At 224 px the loss is not lower" in more.why
    assert probe_within(budget, fit, True, more) is more, "a larger size does not help"


def test_a_probe_that_ends_the_run_may_take_two_fifths_of_what_is_left():
    def fit(recipe: Recipe) -> LinearProbe:
        size = recipe.model.image_size
        return probe(size, 195 - size // 8, 4 * (size / 56) ** 2)

    recipe = decided("--schedule.budget=1h")
    begun = probe_within(Budget(recipe, lambda: 160.0, 80, 600), fit, True)
    assert begun.tried[-1].size == 112
    two_fifths = 4 * (160 / 56) ** 2  # what a probe at the next size takes
    for share, size in ((1.005, 112), (0.995, 160)):  # of what is left
        budget = Budget(recipe, lambda share=share: two_fifths / (2 / 5 * share), 80, 600)  # type: ignore[misc]
        assert probe_within(budget, fit, True, begun).tried[-1].size == size


def test_the_expected_gain_is_that_of_the_table_and_negative_for_very_few_steps():
    assert [expected_gain(steps) for steps in REMOVED] == pytest.approx(list(REMOVED.values()))
    assert expected_gain(0) == 0 and expected_gain(6) < -0.05 and expected_gain(5000) == max(REMOVED.values())
    gains = [expected_gain(steps) for steps in range(1, 2000)]
    assert gains == sorted(gains)


# the option ---------------------------------------------------------------------------------------------------------------


def test_a_budget_frees_what_is_not_set_beside_it(tmp_path: Path):
    def free(*options: str, reference: str | Path = "demo") -> set[str]:
        return set(load_recipe(reference, options).automatic) & {
            "model.image_size",
            "schedule.epochs",
            "schedule.stop_epoch",
        }

    assert free() == set() and free("--schedule.budget=none") == set()
    assert free("--schedule.budget=5m") == {"model.image_size", "schedule.epochs", "schedule.stop_epoch"}
    assert free("--epochs=9", "--schedule.budget=5m") == {"model.image_size"}
    assert free("--schedule.budget=5m", "--image-size=98") == {"schedule.epochs", "schedule.stop_epoch"}
    assert load_recipe("demo", ["--schedule.budget=5m"]).model.image_size == 42  # until it is decided
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {RECIPES / 'demo.yaml'}\nschedule: {{budget: 5m, epochs: 4}}\n")
    assert free(reference=own) == {"model.image_size"}
    assert free("--schedule.budget=none", reference=own) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule.budget=5x"], "schedule.budget is '5x'. It must be a duration such as 90s, 45m, 1.5h or 2d"),
        (["--schedule.budget=0s"], "schedule.budget is '0s'. It must be a duration such as 90s, 45m, 1.5h or 2d"),
        (
            ["--schedule.budget=5m", "--epochs=3", "--image-size=42"],
            "the command line: schedule.budget has nothing to decide, because model.image_size and schedule.epochs are set. "
            "Omit one",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "explain"])
def test_a_bad_budget_is_one_line_and_exit_code_2(options, message, command, tmp_path, capsys):
    assert main([command, "photos", f"--train.run_dir={tmp_path / 'run'}", *options]) == 2
    said = capsys.readouterr()
    assert said.out + said.err == f"fastft {command}: {message}\n" and not (tmp_path / "run").exists()


def test_explain_says_what_the_budget_will_decide(capsys):
    assert main(["explain", "photos", f"--data.train_size={IMAGES}", "--schedule.budget=5m"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "training at most 100 epochs" in shown
    assert "time 5m at most, for linear probes, training and evaluation" in shown
    assert "measured rates decide how many of them fit into 5m" in shown
    assert "linear probes compare sizes from 56 to 336 px, and measured rates decide what fits into 5m" in shown
    assert "It becomes 0 if no training that fits is expected to be better than the linear probe" in shown


def test_other_budgets_are_other_runs_of_a_sweep():
    one, other, none = (decided(*([f"--schedule.budget={text}"] if text else [])) for text in ("5m", "6m", ""))
    assert len({run_key(recipe) for recipe in (one, other, none)}) == 3


# runs ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each image of 16 px, so that the real time hardly counts."""
    monkeypatch.setattr(image_size, "PROBED_SIZES", (16, 24, 40))

    def slowly(tower, files, units, say) -> LinearProbe:
        found = fit_probe(tower, files, units, say)
        return replace(found, seconds=found.images * (found.size / 16) ** 2)

    monkeypatch.setattr(choose, "fit_probe", slowly)


OPEN = "model.image_size", "schedule.epochs", "schedule.warmup_epochs", "optim.lr"


def within(tiny: dict[str, str], folder: Path, budget: str, **changes: str) -> dict[str, Any]:
    set_by_hand = {k: v for k, v in tiny.items() if k not in OPEN}
    changed = {"schedule__budget": budget, "schedule__warmup": "0.2", "model__head_init": "probe"} | changes
    run_recipe(load_recipe("rcp/photos.yaml", flags(set_by_hand, folder, **changed)), QUIET)
    return result_of(folder)


def test_the_final_recipe_is_fixed_and_a_resumed_run_keeps_it(tiny, tmp_path, slow, monkeypatch):
    monkeypatch.setattr(rules, "expected_gain", lambda steps: 0.9 if steps else 0.0)
    kept = {"train__keep_checkpoints": "100", "train__checkpoint_epochs": "1"}
    within(tiny, tmp_path / "run", "1000s", **kept)
    recipe, choices = load_run(tmp_path / "run").recipe, read_choices(tmp_path / "run") or {}
    assert recipe.schedule.budget == "1000s" and recipe.schedule.stop_epoch is None and 1 <= recipe.epochs <= 6
    assert recipe.schedule.warmup_epochs == pytest.approx(0.2 * recipe.epochs)
    values = {option: choices[option].value for option in ("model.image_size", "schedule.epochs")}
    assert values == {"model.image_size": recipe.model.image_size, "schedule.epochs": recipe.epochs}
    assert re.search(
        r"within 1000s, less 0.25 times its spread over datasets \(\d epochs? at \d+ px [\d.]+ ± [\d.]+ % in \d+ min",
        choices["schedule.epochs"].reason,
    )
    assert choices["optim.lr"].reason.endswith(f"only {6 * recipe.epochs} steps, at most the paper's")

    then = end(tmp_path / "run")
    monkeypatch.setattr(choose, "choose_within", None)
    rewind(tmp_path / "run", 2)
    within(tiny, tmp_path / "run", "1000s", **kept)
    assert differing(end(tmp_path / "run"), then) == []
    assert load_run(tmp_path / "run").recipe == recipe and read_choices(tmp_path / "run") == choices


def test_a_run_that_is_not_expected_to_gain_ends_with_its_probe(tiny, tmp_path, slow, monkeypatch):
    monkeypatch.setattr(rules, "expected_gain", lambda steps: 0.0)
    monkeypatch.setattr(choose, "compare_losses", None)  # nothing is augmented
    monkeypatch.setattr(
        image_size, "gains_over", lambda larger, smaller: larger.size < 40
    )  # by its loss, not in accuracy
    result = within(tiny, tmp_path, "1000s")
    assert load_run(tmp_path).recipe.epochs == 0 and result["weights"]["kind"] == "probe"
    assert "larger" not in result["baseline"] and not (tmp_path / "larger_probe.safetensors").exists()
    choices = read_choices(tmp_path) or {}
    assert (
        choices["schedule.stop_epoch"].value == 0 and "as good as any training" in choices["schedule.stop_epoch"].reason
    )


@pytest.fixture
def larger(tiny: dict[str, str], slow, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A run at 16 px that ruins its weights, beside a linear probe at 24 px."""
    monkeypatch.setattr(rules, "expected_gain", lambda steps: 0.9 if steps > 25 else 0.0)
    monkeypatch.setattr(image_size, "gains_over", lambda larger, smaller: larger.size < 40)

    def train(folder: Path, **changes: str) -> dict[str, Any]:
        return within(tiny, folder, "2000s", **{"optim__lr": "1"} | changes)

    return train


def test_a_larger_probe_that_is_better_than_the_trained_model_is_used(larger, tiny, tmp_path, capsys):
    run, val = tmp_path / "run", Path(tiny["data.val"])
    result = larger(run)
    chosen, baseline, last = result["weights"], result["baseline"], result["last"]
    assert load_run(run).recipe.model.image_size == 16 and load_run(run).recipe.epochs > 0
    assert (chosen["take"], chosen["kind"], chosen["image_size"]) == ("probe", "probe", 24)
    tops = [last["ema"]["top1"], baseline["raw"]["top1"], baseline["larger"]["raw"]["top1"]]
    assert tops == sorted(tops) and tops[0] < tops[1] < tops[2] == chosen["top1"]
    assert "the linear probe at 24 px" in chosen["gain"]["note"] and chosen["gain"]["note"] in str(result["warnings"])
    paired = last["against_larger"]["ema"]
    assert 5 * (paired["second_only"] - paired["first_only"]) == tops[2] - tops[0], "20 images"

    # every way to use the run has this probe's tower, at its size
    report, judged = evaluate_file(run, val, "cpu", "auto")
    assert report.scores.top1 == tops[2] and judged.predictions.right_N.mean() == tops[2] / 100
    trained = load_trained(run, torch.device("cpu"))
    assert (trained.recipe.model.image_size, trained.recipe.evaluated_size, trained.model.visual.arch.image_size) == (
        24,
    ) * 3
    assert "at 24 px" in trained.weights and trained.scores.top1 == tops[2]
    assert load_trained(run, torch.device("cpu"), "probe").recipe.model.image_size == 16
    exported = tmp_path / "out.safetensors"
    assert main(["export", str(run), "--format=safetensors", f"--out={exported}"]) == 0
    images_BCHW = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        logits_BK = trained.model(images_BCHW) / trained.temperature
        assert torch.allclose(to_safetensors.load(exported)(images_BCHW), logits_BK, atol=1e-5)
    files = sorted((val.parent / "val").rglob("*.jpg"))
    named = [prediction.classes[0] for prediction in Predictor(run, "cpu").predict(files)]
    assert np.mean([name == path.parent.name for name, path in zip(named, files, strict=True)]) == tops[2] / 100
    assert used_scores(load_run(run))[2].top1 == tops[2]
    page = write_run_page(run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "probe at 24 px" in page and "at 24 px, without training" in page


def test_a_larger_probe_stays_where_a_run_is_killed_refitted_or_started_from(larger, tiny, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = larger(whole)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("fastft.jobs.run.prepare_head", Mock(side_effect=KeyboardInterrupt))
        larger(killed)
    assert not (killed / "baseline.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(choose, "fit_probe", None)  # what was fitted is used again
        assert larger(killed)["weights"] == result["weights"]
    assert load_trained(killed, torch.device("cpu")).recipe.model.image_size == 24
    rewind(killed, 4)
    (killed / "probe.safetensors").unlink()  # it trains on without the heads' stage
    assert find_weights(killed).image_size is None, "nothing was evaluated before this checkpoint"
    assert larger(killed)["weights"] == result["weights"] and differing(end(killed), end(whole)) == []

    (killed / "larger_probe.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no larger_probe\.safetensors"):
        load_trained(killed, torch.device("cpu"))

    recipe, _ = open_inputs(load_recipe("photos", flags(tiny | {"model.weights": str(whole)}, tmp_path / "next")))
    assert (recipe.model.weights, recipe.model.image_size) == ("random", 32), "set on the command line"
    free = {key: value for key, value in tiny.items() if key != "model.image_size"} | {"model.weights": str(whole)}
    assert open_inputs(load_recipe("photos", flags(free, tmp_path / "next")))[0].model.image_size == 24

    refit = larger(tmp_path / "again", train__refit="true")
    model = load_trained(tmp_path / "again/refit", torch.device("cpu"))
    assert (model.kind, model.recipe.model.image_size, refit["weights"]["image_size"]) == ("probe", 24, 24)
    assert load_run(tmp_path / "again/refit").recipe.epochs == 0, "a linear probe needs no training"


def test_a_start_with_other_options_uses_no_head_or_baseline_of_the_one_before(larger, tmp_path, monkeypatch):
    def interrupted(stage: str, **options: str) -> None:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(stage, Mock(side_effect=KeyboardInterrupt))
            larger(tmp_path, **options)

    interrupted("fastft.jobs.run.train")
    before = read_baseline(tmp_path)
    assert before is not None and before.larger is not None
    interrupted("fastft.choose.choose.write_choices", train__seed="5")  # its larger probe is for another seed
    result = larger(tmp_path)
    assert result["weights"]["kind"] == "probe" and "larger" not in result["baseline"], "not this start's larger probe"
    assert load_trained(tmp_path, torch.device("cpu")).recipe.model.image_size == 16

    shutil.rmtree(tmp_path / "checkpoints")  # before its first checkpoint
    result = larger(tmp_path, model__head_init="small", optim__lr="1e-5", schedule__epochs="1")
    assert result["baseline"] is None and result["weights"]["kind"] in ("raw", "ema"), "it started from no probe"
    assert not any((tmp_path / name).exists() for name in ("probe.safetensors", "training_labels.json"))


@pytest.mark.parametrize(
    ("file", "weights"),
    [("larger_probe.safetensors", "auto"), ("probe.safetensors", "probe"), ("baseline.json", "auto")],
)
def test_a_probe_of_another_run_is_not_taken_for_the_own(file, weights, larger, tmp_path):
    for name, share in (("own", "0"), ("other", "0.25")):  # the same tower, fitted to other images
        larger(tmp_path / name, data__selection_share=share)
    shutil.copy(tmp_path / "other" / file, tmp_path / "own" / file)
    with pytest.raises(UserError, match="from different runs"):
        load_trained(tmp_path / "own", torch.device("cpu"), weights)


def test_averages_and_comparisons_of_runs_have_the_probe_that_was_chosen(larger, tiny, tmp_path):
    one, two, trained = (tmp_path / name for name in ("one", "two", "trained"))
    larger(one), larger(two, train__seed="3"), larger(trained, optim__lr="1e-3", schedule__epochs="40")
    first, second = result_rows(load_compared([trained, one]))
    assert first.score is not None and second.score is not None and second.paired is not None
    assert second.paired.gain == pytest.approx(second.score - first.score), "not what its trained weights predict"

    model, mean = average([str(one), str(two)], [Path(tiny["data.val"])], "cpu", soup="uniform", say=lambda text: None)
    write_average(mean, model, tmp_path / "average")
    read, scored = evaluate_file(tmp_path / "average", Path(tiny["data.val"]), "cpu")
    assert read.recipe.model.image_size == 24, "their probes' size, not that of training"
    assert mean.record.chosen is not None and scored.scores.top1 == mean.record.chosen.files[0].top1


def test_a_probe_that_a_run_would_take_so_far_is_told_from_one_that_it_took(larger, tmp_path):
    larger(tmp_path, train__eval_every="1", train__checkpoint_epochs="1", train__keep_checkpoints="100")
    assert "the run has not ended" not in find_weights(tmp_path).description
    rewind(tmp_path, 12)
    found = find_weights(tmp_path)
    assert found.image_size == 24 and found.description.endswith("(the run has not ended)")


@pytest.mark.parametrize("trains", [True, False], ids=["trained", "stopped at the probe"])
def test_a_sweep_compares_runs_whose_length_a_budget_chose_and_trains_them_once(
    trains, larger, tiny, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(rules, "expected_gain", lambda steps: 0.9 if steps > 25 and trains else 0.0)
    values = {k: v for k, v in tiny.items() if k not in OPEN} | {
        "schedule.budget": "2000s", "schedule.warmup": "0.2", "model.head_init": "probe", "optim.lr": "1",
    }  # fmt: skip
    command = ["sweep", "photos", *(f"--{k}={v}" for k, v in values.items()), "--seed=1,2", f"--out={tmp_path}"]
    tables = []
    for _ in range(2):
        assert main(command) == 0
        said = capsys.readouterr().out
        tables.append(re.findall(r"^ *seed=\d +[\d.]+ ± [\d.]+", said, re.M))
        monkeypatch.setattr("fastft.jobs.sweep.train_run", None)  # nothing is left to train
    top1 = [result_of(tmp_path / f"seed={seed}")["weights"]["top1"] for seed in (1, 2)]
    assert tables[0] == tables[1] and [float(row.split()[1]) for row in tables[0]] == top1


def test_a_larger_probe_that_is_worse_than_the_trained_model_is_not_used(larger, tmp_path):
    result = larger(tmp_path, optim__lr="1e-3", schedule__epochs="40")
    chosen, baseline = result["weights"], result["baseline"]
    assert chosen["kind"] in ("raw", "ema") and "image_size" not in chosen
    assert baseline["larger"]["image_size"] == 24 and baseline["larger"]["raw"]["top1"] <= chosen["top1"]
    assert load_trained(tmp_path, torch.device("cpu")).recipe.model.image_size == 16


def test_without_a_probe_the_rate_is_measured_on_some_images(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "TRAINING_COST", 1e6)
    within(tiny, tmp_path, "30s", model__head_init="small")
    recipe, choices = load_run(tmp_path).recipe, read_choices(tmp_path) or {}
    assert recipe.epochs == 1 and recipe.model.image_size == 224
    assert choices["schedule.epochs"].reason == "not even one epoch fits into 30s"


def test_a_warm_up_longer_than_what_fits_is_refused_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "TRAINING_COST", 1e6)
    fixed = {"schedule__warmup": "none", "schedule__warmup_epochs": "10", "schedule__epochs": "auto"}
    with pytest.raises(UserError, match=r"warmup_epochs \(10\) must be smaller than schedule.epochs \(1\)"):
        within(tiny, tmp_path, "30s", model__head_init="small", **fixed)
    assert not list_checkpoints(tmp_path / "checkpoints")
