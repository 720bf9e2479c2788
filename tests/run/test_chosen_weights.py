"""Raw or EMA, best or last epoch: the rule, what it is chosen from, and that every command takes it."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file
from scipy.stats import binom

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import check
from fastft.cli import main
from fastft.evaluate.evaluation import evaluate_checkpoint, evaluate_file
from fastft.evaluate.trained import load_trained
from fastft.machine.exits import EXIT_REQUEUE
from fastft.recipe import load_recipe
from fastft.report.run_figures import used_scores
from fastft.run.baseline import Baseline
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from fastft.run.chosen_weights import choose_weights, describe_weights
from fastft.run.evaluations import Evaluation, Paired, Scores, deciding_score, describe_imbalance
from fastft.run.find_weights import find_weights, with_choice_so_far
from fastft.run.paired import compare_predictions, mcnemar
from fastft.run.result import WeightChoice
from fastft.run.run_directory import load_run
from fastft.train.progress import Progress
from tests.train.runs import flags, run


def scores(top1: float, samples: int) -> Scores:
    return Scores(top1=top1, samples=samples, loss=1.0)


def evaluation(
    epoch: int, raw: float, ema: float | None, samples: int, raw_only: int = 0, ema_only: int = 0
) -> Evaluation:
    if ema is None:
        return Evaluation(epoch=epoch, raw=scores(raw, samples))
    paired = Paired(first_only=raw_only, second_only=ema_only)
    return Evaluation(epoch=epoch, raw=scores(raw, samples), ema=scores(ema, samples), raw_against_ema=paired)


def test_images_that_one_model_has_right_are_counted():
    raw, ema = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 0], bool)
    assert compare_predictions(raw, ema) == Paired(first_only=2, second_only=1)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (1, 9), (40, 15)])
def test_the_p_value_is_mcnemars_exact_one(first, second):
    tail = binom.cdf(min(first, second), first + second, 0.5) if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail))


@pytest.mark.parametrize(
    ("entries", "take", "kind", "epoch"),
    [
        # few images: the last epoch, even if an earlier one was better
        ([evaluation(0, 80, 90, 200), evaluation(1, 80, 85, 200, 5, 15)], "last", "ema", 1),
        # the EMA though raw is better, but not significantly
        ([evaluation(0, 81, 80, 200, 6, 4)], "last", "ema", 0),
        ([evaluation(0, 81, 80, 200, 5, 0)], "last", "ema", 0),  # p = 0.063
        ([evaluation(0, 81, 80, 200, 30, 16)], "last", "ema", 0),  # p = 0.054
        ([evaluation(0, 81, 80, 200, 18, 7)], "last", "raw", 0),  # p = 0.043
        # an untrained EMA
        ([evaluation(0, 54, 13, 2000, 830, 10)], "last", "raw", 0),
        # many images: the best epoch
        ([evaluation(0, 80, 90, 2000), evaluation(1, 80, 85, 2000, 5, 15)], "best", "ema", 0),
        ([evaluation(0, 80, 90, 1999), evaluation(1, 80, 85, 1999, 5, 15)], "last", "ema", 1),
        # no EMA
        ([evaluation(0, 80, None, 200), evaluation(1, 70, None, 200)], "last", "raw", 1),
        ([evaluation(0, 80, None, 5000), evaluation(1, 70, None, 5000)], "best", "raw", 0),
    ],
)
def test_the_rule(entries, take, kind, epoch):
    best = max(entries, key=lambda e: e.headline[1].top1)
    chosen = choose_weights(entries, best)
    assert (chosen.take, chosen.kind, chosen.epoch) == (take, kind, epoch)
    assert chosen.top1 == entries[epoch].of(kind).top1


def test_very_unequal_classes_are_compared_by_balanced_accuracy():
    labels = np.array([0] * 900 + [1] * 100)
    raw, ema = np.ones(1000, bool), np.ones(1000, bool)
    raw[:60], ema[900:930] = False, False
    found = compare_predictions(raw, ema, labels)
    assert (found.first_only, found.second_only) == (30, 60)
    by_class = [raw[labels == k].mean() - ema[labels == k].mean() for k in (0, 1)]
    assert found.balanced_gain == pytest.approx(100 * np.mean(by_class))
    resampled, rng = [], np.random.default_rng(0)
    for _ in range(400):  # the signs of the disagreements, as if both models were equally good
        signs = rng.choice([-1, 1], 1000)
        differences = signs * (raw.astype(int) - ema)
        resampled.append(100 * np.mean([differences[labels == k].mean() for k in (0, 1)]))
    assert found.balanced_error == pytest.approx(np.std(resampled), rel=0.1)
    entry = structs.replace(evaluation(0, 94, 97, 1000), raw_against_ema=found)
    chosen = choose_weights([entry], entry)
    assert chosen is not None and chosen.kind == "raw"
    assert "balanced accuracy is 11.67 points above the EMA's" in chosen.reason
    worse = structs.replace(entry, raw_against_ema=structs.replace(found, balanced_gain=-found.balanced_gain))
    check("it", msgspec.to_builtins(worse), Evaluation)  # a run with it can be resumed
    assert choose_weights([worse], worse).kind == "ema"


def test_selection_images_are_judged_by_the_score_of_their_evaluation():
    entry = {"epoch": 0, "best_by": "map", "raw": {"map": 50.0, "samples": 8, "loss": 0.1}}
    check("it", entry | {"selection": {"raw": entry["raw"]}}, Evaluation)
    with pytest.raises(ValueError, match="no 'map'"):
        check("it", entry | {"selection": {"raw": {"top1": 50.0, "samples": 8, "loss": 0.1}}}, Evaluation)


def baseline(top1: float) -> Baseline:
    return Baseline(images=800, penalty=1.0, scale=1.0, seconds=1.0, raw=scores(top1, 200))


def against_probe(own_only: int, probe_only: int, steps: float = 1000, **balanced: float) -> WeightChoice:
    """The choice of a run whose EMA and probe differ on so many of 200 images."""
    paired = {"ema": Paired(first_only=own_only, second_only=probe_only, **balanced)}
    entry = structs.replace(evaluation(3, 80, 80, 200), against_probe=paired)
    return choose_weights([entry], entry, baseline(80 + (probe_only - own_only) / 2), steps=steps)


def test_after_few_steps_the_probe_stays_unless_training_is_right_on_more_images():
    """96 images, 30 steps: the probe had 100.0 % of 24 validation images, and the trained model 91.7 %."""
    lost = structs.replace(evaluation(9, 91.7, 91.7, 24), against_probe={"ema": Paired(first_only=0, second_only=2)})
    probe = structs.replace(baseline(100.0), raw=scores(100.0, 24))
    choice = choose_weights([lost], lost, probe, steps=30)
    assert (choice.take, choice.kind, choice.top1) == ("probe", "probe", 100.0)
    assert "lost 8.33 points of accuracy" in choice.reason and "fewer than 150 steps" in choice.reason
    assert "significant loss" not in choice.gain.note and "--weights=probe" not in choice.gain.note
    assert choose_weights([lost], lost, probe, steps=150).kind == "ema"  # two of 24 images are chance
    for own, other in ((2, 2), (3, 2)):
        assert against_probe(own, other, steps=30).kind == "ema"


def test_a_run_of_thirty_steps_that_ruined_its_weights_is_used_and_exported_as_its_probe(tiny, tmp_path):
    result = run(tiny, tmp_path / "run", schedule__epochs="5", optim__lr="1", model__head_init="probe")
    probe, last = result["baseline"]["raw"]["top1"], result["last"]["ema"]["top1"]
    assert last < probe == result["weights"]["top1"] and result["weights"]["kind"] == "probe"
    out = tmp_path / "out.safetensors"
    assert main(["export", str(tmp_path / "run"), "--format=safetensors", f"--out={out}"]) == 0
    head = load_file(out)["head.weight"]
    fitted = load_file(tmp_path / "run/probe.safetensors")["head.weight"]
    assert torch.nn.functional.cosine_similarity(head.flatten(), fitted.flatten(), dim=0) > 1 - 1e-6, (
        "up to the temperature"
    )
    _, evaluated = evaluate_file(tmp_path / "run", Path(tiny["data.val"]), "cpu", "auto")
    assert 100 * evaluated.predictions.right_N.mean() == probe


@pytest.mark.parametrize(
    ("own", "larger", "steps", "taken"),
    [
        ((0, 2), (0, 3), 30, 168), ((0, 3), (0, 2), 30, None), ((0, 2), (0, 2), 30, 168), ((3, 2), (2, 3), 30, 168),
        ((2, 3), (3, 2), 30, None), ((0, 3), (0, 5), 1000, "ema"), ((0, 3), (1, 12), 1000, 168), ((1, 12), (0, 3), 1000, None),
        ((3, 2), (2, 2), 30, "ema"),
    ],
    ids=[
        "the better probe", "the better one is smaller", "equal: the larger", "only the larger is better", "only the smaller",
        "chance", "significant", "only the smaller is significant", "training is not worse",
    ],
)  # fmt: skip
def test_the_trained_model_and_two_probes_are_compared_on_the_same_images(own, larger, steps, taken):
    """own, larger: on how many of 24 images only the trained model, or only the probe is right. taken: a size, or weights."""
    pairs = {
        name: {"ema": Paired(first_only=n, second_only=m)} for name, (n, m) in (("probe", own), ("larger", larger))
    }
    entry = evaluation(3, 75, 75, 24)
    entry = structs.replace(entry, against_probe=pairs["probe"], against_larger=pairs["larger"])
    probes = [structs.replace(baseline(0), raw=scores(75 + 100 * (m - n) / 24, 24)) for n, m in (own, larger)]
    both = structs.replace(probes[0], larger=structs.replace(probes[1], image_size=168))
    choice = choose_weights([entry], entry, both, steps=steps)
    if taken == "ema":
        assert (choice.kind, choice.image_size) == ("ema", None)
        return
    assert (choice.take, choice.kind, choice.image_size) == ("probe", "probe", taken)
    assert choice.top1 == probes[taken is not None].raw.top1
    assert ("at 168 px" in describe_weights(choice)) == ("at 168 px" in choice.gain.note) == (taken == 168)
    assert choice.gain.gain == pytest.approx(100 * (own[0] - own[1]) / 24), "over the probe that the run started from"
    check("it", msgspec.to_builtins(choice), WeightChoice)


def test_the_probe_is_taken_where_it_is_significantly_better():
    chosen = against_probe(5, 25)
    assert (chosen.take, chosen.kind, chosen.top1) == ("probe", "probe", 90)
    assert chosen.reason == "fine-tuning lost 10.00 points of accuracy (p = 0.00032)"
    assert "by -10.00 ± 2.65 points, a significant loss, so the linear probe is used instead" in chosen.gain.note
    check("it", msgspec.to_builtins(chosen), WeightChoice)
    balanced = against_probe(25, 5, balanced_gain=-9.0, balanced_error=3.0)
    assert balanced.take == "probe" and "of balanced accuracy" in balanced.reason


@pytest.mark.parametrize(
    ("own_only", "probe_only", "words"),
    [
        (20, 5, ""),
        (8, 6, "by +1.00 ± 1.87 points, which is within the standard error"),
        (10, 16, "-3.00 ± 2.54 points, which is not signif"),
    ],
)
def test_a_gain_over_the_probe_within_its_standard_error_is_said(own_only, probe_only, words):
    chosen = against_probe(own_only, probe_only)
    assert chosen.take == "last"
    note = chosen.gain.note
    assert words in note and ("--optim.lr three times larger" in note and "--weights=probe" in note) == bool(words)


@pytest.mark.parametrize(("own", "probe"), [(80, 80), (70, 90)])
def test_a_run_that_trains_nothing_but_the_head_gets_no_advice_to_fine_tune(own, probe):
    paired = {"raw": Paired(first_only=0, second_only=2 * (probe - own))}
    progress = Progress(epoch=1, evaluations=[Evaluation(epoch=0, raw=scores(own, 200), against_probe=paired)])
    for layers, is_advised in (("1", True), ("0", False)):
        recipe = load_recipe("final_b16", [f"--model.trainable_layers={layers}"])
        chosen = progress.choose_weights(recipe, baseline(probe))
        assert chosen is not None and (chosen.kind == "probe") is (own < probe)
        assert ("Train longer" in chosen.gain.note) is is_advised


def test_an_ema_of_mostly_initial_weights_is_not_taken_on_the_word_of_few_images():
    entry = evaluation(0, 80, 82, 20, 1, 2)
    for share, kind in ((0.4, "ema"), (0.6, "raw")):
        chosen = choose_weights([entry], entry, untrained=share)
        assert chosen is not None and chosen.kind == kind
    assert chosen.reason.startswith("60% of the EMA's weights are still the initial ones")
    only_ema = Evaluation(epoch=0, ema=scores(82, 20))
    assert choose_weights([only_ema], only_ema, untrained=0.6).kind == "ema"


def test_a_run_records_its_choice_and_the_evidence(whole):
    result = json.loads((whole / "result.json").read_text())
    chosen, last = result["weights"], result["last"]
    assert (chosen["take"], chosen["epoch"], chosen["evidence"]["samples"]) == ("last", 2, 20)
    difference = chosen["evidence"]["raw_only"] - chosen["evidence"]["ema_only"]
    assert difference * 5 == pytest.approx(last["raw"]["top1"] - last["ema"]["top1"])  # an image is 5 %
    assert 0 < chosen["evidence"]["p_value"] <= 1


@pytest.fixture(scope="module")
def untrained_ema(tiny, tmp_path_factory) -> Path:
    """A run whose EMA is still its initial weights."""
    folder = tmp_path_factory.mktemp("untrained")
    seen = {"data__val": tiny["data.train"], "schedule__epochs": "16", "optim__lr": "3e-3"}
    run(tiny, folder, ema__decay="0.99999999", **seen)
    return folder


def test_an_untrained_ema_is_not_taken(untrained_ema):
    result = json.loads((untrained_ema / "result.json").read_text())
    assert result["last"]["raw"]["top1"] > result["last"]["ema"]["top1"] + 10
    assert result["weights"]["kind"] == "raw"
    last = list_checkpoints(untrained_ema / "checkpoints")[-1]
    stored = read_checkpoint(last).tensors["model"]["head.weight"]
    loaded = load_trained(untrained_ema, torch.device("cpu"))
    assert torch.equal(loaded.model.head.weight, stored)
    report = evaluate_checkpoint(untrained_ema, None, "cpu")
    assert report.top1 == pytest.approx(result["last"]["raw"]["top1"])
    assert report.weights.startswith("raw weights of step-")


@pytest.mark.parametrize("weights", ["raw", "ema", "best", "last"])
def test_weights_can_be_chosen(weights, untrained_ema):
    result = json.loads((untrained_ema / "result.json").read_text())
    want = {
        "raw": result["last"]["raw"],
        "ema": result["last"]["ema"],
        "best": result["best"]["ema"],
        "last": result["last"]["raw"],
    }[weights]
    assert evaluate_checkpoint(untrained_ema, None, "cpu", weights=weights).top1 == pytest.approx(want["top1"])
    _, found = evaluate_file(untrained_ema, Path(evaluate_checkpoint(untrained_ema, None, "cpu").data), "cpu", weights)
    assert 100 * found.predictions.right_N.mean() == pytest.approx(want["top1"])


def test_a_best_epoch_that_no_checkpoint_names_is_removed_when_the_run_continues(tiny, whole, tmp_path):
    """The state of a run directory after kill -9 between the writes of best-* and step-*."""
    killed = Path(shutil.copytree(whole, tmp_path / "run"))
    (best,) = list_checkpoints(killed / "checkpoints", "best")
    shutil.copytree(best, best.with_name("best-0099"))
    run(tiny, killed, model__drop_path="0.3")
    assert list_checkpoints(killed / "checkpoints", "best") == [best]


def test_a_run_that_has_not_ended_follows_the_same_rule(whole, untrained_ema, tmp_path):
    for ended, kind in ((whole, "ema"), (untrained_ema, "raw")):
        stopped = Path(shutil.copytree(ended, tmp_path / kind))
        (stopped / "result.json").unlink()
        found = find_weights(stopped)
        assert found.kind == kind and found.path.name.startswith("step-")
        assert "(the run has not ended)" in found.description
        so_far = with_choice_so_far(load_run(stopped))
        epoch, used_kind, _ = used_scores(so_far)
        assert (epoch, used_kind) == (so_far.evaluations[-1].epoch, kind)


def test_an_ema_of_mostly_initial_weights_is_said_to_be_one(tiny, untrained_ema, tmp_path, capsys):
    folder, out = tmp_path / "run", tmp_path / "out"
    options = flags(tiny, folder, ema__decay="0.95", train__stop_after="0.001s")
    for _ in range(2):
        assert main(["train", "rcp/final_b16.yaml", *options]) == EXIT_REQUEUE
    share = "90% of the EMA's weights are still the initial ones"  # exp(-2 / 20)
    assert f"warning: {share}" in capsys.readouterr().out
    photo = str(next((Path(tiny["data.val"]).parent / "val").rglob("*.jpg")))
    for command in (["predict", photo], ["eval"], ["export", "--format=safetensors", f"--out={out}.safetensors"]):
        device = ["--device=cpu"] * (command[0] != "export")
        assert main([command[0], str(folder), *command[1:], *device]) == 0
        line = f"using the raw weights of step-00000002: the run has not ended, {share}"
        assert line in capsys.readouterr().err
    assert (
        "EMA weights of step" in find_weights(folder, "ema").description
        and share in find_weights(folder, "ema").description
    )
    assert "initial" not in find_weights(folder, "raw").description
    assert "not ended" not in find_weights(list_checkpoints(folder / "checkpoints")[-1]).description
    for wanted in ("ema", "best"):
        assert ", 100% of the EMA's weights are" in find_weights(untrained_ema, wanted).description


@pytest.mark.parametrize("progress", [5, {"evaluations": [5]}, [{}]])
def test_a_damaged_record_of_evaluations_is_one_line(whole, tmp_path, progress):
    stopped = Path(shutil.copytree(whole, tmp_path / "run"))
    (stopped / "result.json").unlink()
    path = list_checkpoints(stopped / "checkpoints")[-1] / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"progress": progress}))
    with pytest.raises(UserError, match=r"state\.json"):
        find_weights(stopped)
    assert with_choice_so_far(load_run(stopped)).weights is None
    best = list_checkpoints(stopped / "checkpoints", "best")[-1] / "state.json"
    best.write_text(json.dumps(json.loads(best.read_text()) | {"evaluation": progress}))
    with pytest.raises(UserError, match=r"state\.json"):
        find_weights(stopped, "best")


def test_weights_that_are_not_there_are_one_line(whole, refused):
    last = list_checkpoints(whole / "checkpoints")[-1]
    with pytest.raises(UserError, match=r"no weights are called raww\. Choose from auto, raw, ema, best, last, probe"):
        find_weights(whole, "raww")
    with pytest.raises(UserError, match=r"is one checkpoint\. Give its run directory for --weights best"):
        find_weights(last, "best")
    best = list_checkpoints(whole / "checkpoints", "best")[-1]
    with pytest.raises(UserError, match="has no raw weights, only the ema weights by which its epoch was chosen"):
        find_weights(best, "raw")
    with pytest.raises(UserError, match=r"has no probe\.safetensors, which only runs with model\.head_init=probe have"):
        find_weights(whole, "probe")
    assert "has no checkpoint of its last epoch" in refused(["eval", str(whole / "nowhere"), "--weights", "raw"])


def test_balanced_accuracy_compares_where_classes_that_have_images_are_very_unequal():
    deciding = [deciding_score(False, counts) for counts in ([120, 0, 10], [100, 0, 10])]
    assert deciding == ["balanced_accuracy", "top1"]
    assert "10 to 120 training images" in describe_imbalance([120, 0, 10])
