"""A run with `model.head_init=probe` starts from a ridge regression head, which it evaluates, stores and restores."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.data.loader import EvalLoader
from fastft.evaluate import trained
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.evaluate.trained import load_trained
from fastft.model import ImageClassifier
from fastft.model.recipe_model import build_model
from fastft.recipe import Recipe, load_recipe
from fastft.report.run_report import render_run
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from fastft.run.chosen_weights import find_weights
from fastft.run.run_directory import load_run, read_metrics
from fastft.train import head_start
from fastft.train.exceptions import Preempted
from fastft.train.progress import conclusion
from tests.train.runs import differing, end, flags, losses, run
from tests.train.test_distributed import launch

PROBE = {"model__head_init": "probe"}


@pytest.fixture(scope="module")
def probed(tiny: dict[str, str], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probed")
    run(tiny, folder, train__keep_checkpoints="100", **PROBE)
    return folder


def test_the_baseline_is_the_evaluation_of_step_0(probed):
    result = json.loads((probed / "result.json").read_text())
    first = list_checkpoints(probed / "checkpoints")[0]
    assert first.name == "step-00000000"
    scores = evaluate_checkpoint(first, None, "cpu")
    assert scores["top1"] == result["baseline"]["raw"]["top1"]
    assert result["baseline"]["images"] == 48 and result["baseline"]["scale"] > 1
    (line,) = (m for m in read_metrics(probed / "metrics.jsonl") if m["kind"] == "baseline")
    assert line["raw_top1"] == scores["top1"] and line["step"] == 0
    assert load_run(probed).baseline == line


def test_the_head_beats_a_random_one_before_any_step(tiny, probed):
    """Two photographs differ in colour: features of a random tower are enough."""
    assert json.loads((probed / "result.json").read_text())["baseline"]["raw"]["top1"] > 70


def test_the_probe_is_evaluated_predicted_exported_and_averaged_with(tiny, probed, tmp_path, capsys):
    """The pretrained tower with the head that the run directory keeps: the model of step 0, built again."""
    found = load_trained(probed, torch.device("cpu"), "probe")
    stored = read_checkpoint(list_checkpoints(probed / "checkpoints")[0]).tensors["model"]
    assert found.model.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in found.model.state_dict().items())
    result = json.loads((probed / "result.json").read_text())
    assert evaluate_checkpoint(probed, None, "cpu", weights="probe")["top1"] == result["baseline"]["raw"]["top1"]
    photo, out = next((Path(tiny["data.val"]).parent / "val").rglob("*.jpg")), tmp_path / "probe.safetensors"
    assert main(["predict", str(probed), str(photo), "--weights=probe", "--device=cpu"]) == 0
    assert "using the pretrained tower with the head of the linear probe" in capsys.readouterr().err
    assert main(["export", str(probed), "--weights=probe", "--format=safetensors", f"--out={out}"]) == 0
    assert f"Head of the linear probe: {result['baseline']['raw']['top1']:.3f} %." in Path(f"{out}.md").read_text()
    assert main(["average", "start", str(probed), "--alpha=0", f"--out={tmp_path / 'start'}", "--device=cpu"]) == 0
    assert torch.equal(load_trained(tmp_path / "start", torch.device("cpu")).model.head.weight, stored["head.weight"])


def test_the_probe_is_compared_image_by_image(probed):
    result = json.loads((probed / "result.json").read_text())
    last, before = result["last"], result["baseline"]["raw"]
    for weights, found in last["against_probe"].items():
        difference = found[f"{weights}_only"] - found["probe_only"]
        assert 100 * difference / before["samples"] == pytest.approx(last[weights]["top1"] - before["top1"])
    chosen = result["weights"]
    assert chosen["baseline"]["paired"] and chosen["baseline"]["gain"] == pytest.approx(chosen["top1"] - before["top1"])


def test_a_run_that_chose_its_probe_is_used_with_it(probed, tmp_path, monkeypatch):
    """One whose pretrained weights have changed, or of an earlier version, without the head, says so in one line."""
    shutil.copytree(probed, tmp_path / "run")
    path = tmp_path / "run/result.json"
    result = json.loads(path.read_text())
    note = "fine-tuning changes the accuracy by -10"
    result["weights"] |= {"take": "probe", "kind": "probe", "reason": "it is better"}
    result["weights"]["baseline"]["note"] = note
    path.write_text(json.dumps(result))
    (tmp_path / "run/recipe.yaml").write_text((probed / "recipe.yaml").read_text())
    assert f"probe {result['weights']['top1']:.3f} (before training)" in conclusion(result)
    scores = evaluate_checkpoint(tmp_path / "run", None, "cpu")
    assert scores["weights"] == "pretrained tower with the head of the linear probe: it is better"
    assert scores["top1"] == result["baseline"]["raw"]["top1"]
    page = render_run(load_run(tmp_path / "run"))
    assert "probe top-1" in page and note.capitalize() in page and "before training, standard error" in page
    for wanted in ("last", "best"):
        assert find_weights(tmp_path / "run", wanted).kind == "ema"

    def changed(recipe: Recipe, **options: Any) -> ImageClassifier:
        return build_model(recipe.with_option("train.seed", recipe.train.seed + 1), **options)

    with monkeypatch.context() as patched:  # as if the file of the pretrained weights were another one now
        patched.setattr(trained, "build_model", changed)
        with pytest.raises(
            UserError, match=r"probe\.safetensors is for other weights than model\.weights random has now"
        ):
            load_trained(tmp_path / "run", torch.device("cpu"))
    (tmp_path / "run/probe.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no probe\.safetensors, which runs with .* give other --weights"):
        find_weights(tmp_path / "run")


def test_only_the_head_differs_from_a_run_without(tiny, probed, tmp_path):
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path))
    fresh = build_model(recipe).state_dict()
    stored = read_checkpoint(
        list_checkpoints(probed / "checkpoints")[0], ("model", "ema", "optimizer"), resumable=True
    ).tensors
    changed = [name for name in fresh if not torch.equal(fresh[name], stored["model"][name])]
    assert changed == ["head.weight", "head.bias"]
    assert all(torch.equal(stored["ema"][name], value) for name, value in stored["model"].items())
    assert not any(value.any() for value in stored["optimizer"].values())


@pytest.mark.parametrize("kept", [0, 5])
def test_a_resume_is_bit_exact(tiny, probed, tmp_path, kept, monkeypatch):
    """From step 0 and from a later step; the head is not computed again."""
    shutil.copytree(probed, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    for checkpoint in (tmp_path / "run/checkpoints").iterdir():
        if int(checkpoint.name.partition("-")[2]) > kept or checkpoint.name.startswith("best"):
            shutil.rmtree(checkpoint)
    monkeypatch.setattr(head_start, "fit_ridge_head", None)
    run(tiny, tmp_path / "run", train__keep_checkpoints="100", **PROBE)
    assert losses(tmp_path / "run") == losses(probed)
    assert differing(end(tmp_path / "run"), end(probed)) == []
    assert len([m for m in read_metrics(tmp_path / "run/metrics.jsonl") if m["kind"] == "baseline"]) == 1
    results = [json.loads((f / "result.json").read_text()) for f in (tmp_path / "run", probed)]
    assert results[0]["baseline"] == results[1]["baseline"]


@pytest.mark.slow
def test_a_signal_while_features_are_computed_ends_with_the_requeue_code(tiny, probed, tmp_path, monkeypatch):
    """Nothing is saved yet; the same command starts anew."""
    whole_pass = EvalLoader.__iter__

    def interrupted(loader: EvalLoader):
        for batch in whole_pass(loader):
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(EvalLoader, "__iter__", interrupted)
        with pytest.raises(Preempted):
            run(tiny, tmp_path / "run", **PROBE)
    assert list_checkpoints(tmp_path / "run/checkpoints") == []
    run(tiny, tmp_path / "run", **PROBE)
    assert losses(tmp_path / "run") == losses(probed)


@pytest.mark.slow
def test_two_processes_start_from_the_same_head_as_one(tiny, probed, tmp_path):
    command = flags(tiny, tmp_path / "two", train__micro_batch="2", train__keep_checkpoints="100", **PROBE)
    process = launch("train", "rcp/final_b16.yaml", *command)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    heads = [
        read_checkpoint(list_checkpoints(f / "checkpoints")[0]).tensors["model"]["head.weight"].numpy()
        for f in (tmp_path / "two", probed)
    ]
    np.testing.assert_allclose(heads[0], heads[1], rtol=2e-3, atol=1e-4)
    baselines = [json.loads((f / "result.json").read_text())["baseline"] for f in (tmp_path / "two", probed)]
    assert baselines[0]["raw"]["top1"] == baselines[1]["raw"]["top1"]


def test_the_head_of_many_images_is_made_in_one_pass(tiny, probed, tmp_path, monkeypatch):
    monkeypatch.setattr(head_start, "MOST_IMAGES", 47)
    result = run(tiny, tmp_path, data__selection_share="0.25", schedule__stop_epoch="1", **PROBE)
    assert result["baseline"]["images"] == 36 and result["baseline"]["seconds"] > 0
    monkeypatch.setattr(head_start, "MOST_IMAGES", 35)
    monkeypatch.setattr(head_start, "fit_ridge_head", None)
    assert run(tiny, tmp_path / "large", schedule__stop_epoch="1", **PROBE)["baseline"]["raw"]["top1"] > 70


def test_a_run_without_validation_data_has_the_head_but_no_baseline_accuracy(tiny, tmp_path):
    result = run(tiny, tmp_path, data__val="none", schedule__stop_epoch="1", **PROBE)
    assert result["baseline"]["images"] == 48 and "raw" not in result["baseline"]


def test_a_run_is_not_continued_with_another_head_init(tiny, probed):
    with pytest.raises(UserError, match=r"model\.head_init 'probe' -> 'small'"):
        run(tiny, probed)
