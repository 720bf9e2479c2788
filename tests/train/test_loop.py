"""A resumed run equals an uninterrupted one; other recipes and data are refused; a diverged run stops."""

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastft
from beton_tools.base.errors import UserError
from beton_tools.read.manifest import manifest_path
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.augment.mix import smoothed_targets
from fastft.machine.exits import NonFinite
from fastft.machine.precision import Precision
from fastft.recipe import load_recipe
from fastft.report.run_report import render_run
from fastft.run.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from fastft.run.continuation import refuse_changed_recipe
from fastft.run.run_directory import load_run, lock_run
from fastft.train.progress import conclusion
from fastft.train.step import Step
from fastft.train.trainer import Trainer
from tests.refusals import refuses
from tests.train.runs import differing, end, flags, logged, losses, result_of, rewind, run


def test_the_log_has_what_runs_are_compared_by(whole):
    assert logged(whole, "start")[0]["fastft"] == fastft.__version__
    assert all(0 < line["grad_norm"] < 100 for line in logged(whole, "train"))


def test_it_learns(whole):
    first, last = losses(whole)[0][1], losses(whole)[-1][1]
    result = result_of(whole)
    assert last < first
    assert result["last"]["raw"]["samples"] == 20
    assert result["best"]["ema"]["top1"] > 50  # of two balanced classes
    with np.load(whole / "validation.npz") as arrays:  # what it predicts at its last evaluation
        assert 100 * (arrays["labels"] == arrays["ema_predicted"]).mean() == pytest.approx(
            result["last"]["ema"]["top1"]
        )


KILLED = """
import os, signal, sys
from fastft.cli import main
from fastft.train.step import Step
updates, update = iter(range(8)), Step.update
Step.update = lambda step: update(step) if next(updates, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_kill_9_and_resume_gives_the_same_losses_bit_for_bit(tiny, whole, tmp_path):
    command = ["train", "rcp/final_b16.yaml", *flags(tiny, tmp_path, model__drop_path="0.3")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *command], stdout=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL and len(losses(tmp_path)) == 8
    run(tiny, tmp_path, model__drop_path="0.3")
    assert losses(tmp_path) == losses(whole)
    assert differing(end(tmp_path), end(whole)) == []


def test_a_log_line_covers_all_its_steps_also_across_a_resume(tiny, tmp_path):
    changes = {"train__log_every": "4", "train__keep_checkpoints": "100"}
    run(tiny, tmp_path, **changes)
    before = losses(tmp_path)
    assert [step for step, _ in before] == [4, 6, 10, 12, 16, 18]
    seconds = result_of(tmp_path)["seconds"]
    rewind(tmp_path, 8)  # the second of the four steps of line 10
    result = run(tiny, tmp_path, **changes)
    assert losses(tmp_path) == before
    line = next(line for line in logged(tmp_path, "train") if line["step"] == 10)
    assert 0 < sum(line["split"][part] for part in ("forward", "backward")) < 4 * 8 / line["images_per_second"]
    assert 0 < result["seconds"] < 3 * seconds


def test_class_weights_multiply_the_loss_of_an_image_also_by_mixed_labels():
    logits, labels, weights = torch.randn(4, 3), torch.tensor([0, 2, 1, 0]), torch.tensor([0.5, 3.0, 1.5])
    step = SimpleNamespace(class_weights_K=weights, label_smoothing=0.1, multi_label=False)
    each = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(Step._loss(step, logits, labels), (weights[labels] * each).mean())
    mixed = 0.7 * smoothed_targets(labels, 3, 0.1) + 0.3 * smoothed_targets(labels.flip(0), 3, 0.1)
    each = F.cross_entropy(logits, mixed, reduction="none")
    expected = ((0.7 * weights[labels] + 0.3 * weights[labels.flip(0)]) * each).mean()
    torch.testing.assert_close(Step._loss(step, logits, mixed), expected)


def test_a_changed_recipe_is_refused_with_the_keys_that_differ_but_weights_may_move(tiny, whole):
    with pytest.raises(UserError, match=r"model\.weights 'random' -> 'openai'.*optim\.lr 0\.001 -> 0\.01"):
        run(tiny, whole, model__drop_path="0.3", model__weights="openai", optim__lr="1e-2")
    then, now = (load_recipe("rcp/demo.yaml", [f"--model.weights={f}/clip.bin"]) for f in ("old", "new"))
    refuse_changed_recipe(then.as_dict(), now, whole)
    stored = then.as_dict()
    stored["train"]["compile"] = "on"  # a checkpoint of before 0.3.0
    refuse_changed_recipe(stored, now, whole)


def test_a_non_finite_loss_stops_and_names_step_samples_and_checkpoint(tiny, tmp_path):
    with pytest.raises(NonFinite, match=r"at step \d+ \(samples \d+.*checkpoint"):
        run(tiny, tmp_path, optim__lr="1e30", train__checkpoint_steps="1")
    for path in list_checkpoints(tmp_path / "checkpoints"):
        assert all(torch.isfinite(v).all() for v in read_checkpoint(path).tensors["model"].values())


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, value: float, steps: range) -> None:
    """Set one gradient of the head to `value` in these updates of the process."""
    update, done = Step.update, itertools.count()

    def spoiled(step: Step) -> None:
        if next(done) in steps:
            step.model.head.weight.grad[0, 0] = value
        update(step)

    monkeypatch.setattr(Step, "update", spoiled)


def test_weights_with_nan_are_never_saved(tiny, tmp_path, monkeypatch):
    """The loss shows a bad gradient one step later: too late for a checkpoint of every step, of which one is kept."""
    changes = {"train__checkpoint_steps": "1", "train__keep_checkpoints": "1"}
    with monkeypatch.context() as spoiled:
        spoil_gradients(spoiled, math.nan, range(4, 5))
        with pytest.raises(NonFinite, match=r"the weights contain NaN or Inf at step 4 .*step-00000004"):
            run(tiny, tmp_path, **changes)
    run(tiny, tmp_path, **changes)
    run(tiny, tmp_path / "whole", **changes)
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_a_second_moment_that_overflows_stops_the_run(tiny, tmp_path, monkeypatch):
    """The square of a large finite gradient is Inf in fp32: its weight would never move again."""
    spoil_gradients(monkeypatch, 1e30, range(4, 5))
    with pytest.raises(NonFinite, match="the optimiser's moments contain NaN or Inf at step 5"):
        run(tiny, tmp_path)


@pytest.mark.slow
def test_a_loss_scale_changes_no_update_and_is_restored(tiny, tmp_path, monkeypatch):
    changes = {"optim__clip_grad": "1.0", "train__micro_batch": "4"}
    run(tiny, tmp_path / "plain", **changes)
    run(tiny, tmp_path / "late", schedule__stop_epoch="1", **changes)
    monkeypatch.setattr(Precision, "scaled", property(lambda self: True))
    run(tiny, tmp_path / "scaled", schedule__stop_epoch="1", **changes)
    for name in ("scaled", "late"):
        run(tiny, tmp_path / name, **changes)
        assert [x for _, x in losses(tmp_path / name)] == pytest.approx(
            [x for _, x in losses(tmp_path / "plain")], abs=1e-6
        )
    state = read_checkpoint(list_checkpoints(tmp_path / "scaled" / "checkpoints")[-1]).state
    assert state["scaler"]["_growth_tracker"] == 18  # clean steps since the start, the resume among them


def test_a_half_precision_copy_learns_and_resumes_bit_for_bit(tiny, tmp_path):
    """Checkpoints hold the fp32 weights; the copy is made anew from them."""
    changes = {
        "train__amp": "bf16", "train__half_residual": "on", "train__micro_batch": "4", "optim__clip_grad": "1.0",
        "model__drop_path": "0.3", "model__layer_scale": "1.0",
    }  # fmt: skip
    run(tiny, tmp_path / "whole", **changes)
    run(tiny, tmp_path / "parts", schedule__stop_epoch="1", **changes)
    run(tiny, tmp_path / "parts", **changes)
    assert differing(end(tmp_path / "whole"), end(tmp_path / "parts")) == []
    assert all(value.dtype == torch.float32 for value in end(tmp_path / "whole").values())
    curve = [loss for _, loss in losses(tmp_path / "whole")]
    run(tiny, tmp_path / "fp32", **{**changes, "train__amp": "fp32", "train__half_residual": "off"})
    assert curve[-1] < curve[0]
    assert curve == pytest.approx([loss for _, loss in losses(tmp_path / "fp32")], abs=0.05)


def test_endless_overflow_stops(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Precision, "scaled", property(lambda self: True))
    spoil_gradients(monkeypatch, math.inf, range(1000))
    with pytest.raises(NonFinite, match="every recent fp16 step overflows at step 17"):
        run(tiny, tmp_path, schedule__epochs="4")


def test_the_run_directory_is_locked_before_its_checkpoints_are_read(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path, schedule__stop_epoch="1")
    monkeypatch.setattr("fastft.train.checkpointing.list_checkpoints", lambda folder: pytest.fail("it was read"))
    with lock_run(tmp_path), pytest.raises(UserError, match="in use by another process"):
        run(tiny, tmp_path, schedule__stop_epoch="1")


def test_a_run_that_goes_on_has_not_ended(tiny, tmp_path, monkeypatch):
    run(tiny, tmp_path, schedule__stop_epoch="1")
    assert (tmp_path / "result.json").exists()

    def interrupted(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    run(tiny, tmp_path, schedule__stop_epoch="1")  # nothing is left to do
    assert (tmp_path / "result.json").exists()
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_checkpoints_by_steps_are_also_made_at_the_end_of_an_epoch(tiny, tmp_path):
    by_steps = {"train__checkpoint_steps": "6", "train__checkpoint_epochs": "100", "train__eval_every": "100"}
    run(tiny, tmp_path, **by_steps)
    assert [line["step"] for line in logged(tmp_path, "checkpoint")][:2] == [6, 12]


def converted(images: Path, out: Path, **classes: str) -> str:
    """A .beton of the same images with other class names."""
    for name in ("astronaut", "coffee"):
        shutil.copytree(images / name, out.parent / out.stem / classes.get(name, name))
    convert_folder(out.parent / out.stem, out, WriteOptions(workers=0))
    return str(out)


def test_a_run_continues_only_with_its_own_data(tiny, tmp_path):
    run(tiny, tmp_path / "run", schedule__stop_epoch="1")
    images = Path(tiny["data.train"]).with_suffix("")
    again = converted(images, tmp_path / "again.beton")
    run(tiny, tmp_path / "run", schedule__stop_epoch="2", data__train=again)
    (tmp_path / "again" / "coffee" / "00.jpg").write_bytes((images / "coffee" / "01.jpg").read_bytes())
    convert_folder(tmp_path / "again", tmp_path / "other.beton", WriteOptions(workers=0))
    with pytest.raises(UserError, match="was trained on other data"):
        run(tiny, tmp_path / "run", data__train=str(tmp_path / "other.beton"))
    moved = tmp_path / "moved.beton"
    for source, copy in ((Path(tiny["data.train"]), moved), (manifest_path(tiny["data.train"]), manifest_path(moved))):
        shutil.copy(source, copy)
    assert run(tiny, tmp_path / "run", data__train=str(moved))["epochs"] == 3


def test_labels_must_mean_the_same_in_both_files(tiny, tmp_path):
    images = Path(tiny["data.val"]).with_suffix("")
    other = converted(images, tmp_path / "other.beton", coffee="zebra")
    with pytest.raises(UserError, match=r"other\.beton: class 1 is zebra, the model's is coffee"):
        run(tiny, tmp_path / "run", data__val=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__train": "none"}, "no training data"),
        ({"data__train": "nowhere.beton"}, "nowhere.beton"),
        ({"optim__batch_size": "7", "train__micro_batch": "2"}, "does not divide"),
        ({"optim__batch_size": "4096"}, "do not fill one batch"),
        ({"model__image_size": "30"}, "multiple of the patch size"),
        ({"augment__policy": "rand-x9"}, "rand-x9"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, change, message):
    with refuses(message):
        run(tiny, tmp_path, **change)


def test_an_architecture_file_that_was_edited_is_noticed(tiny, tmp_path):
    arch = tmp_path / "arch.json"
    arch.write_bytes(Path(tiny["model.arch"]).read_bytes())
    changes = tiny | {"model.arch": str(arch)}
    run(changes, tmp_path / "run", schedule__stop_epoch="1")
    arch.write_text(json.dumps(json.loads(arch.read_text()) | {"quick_gelu": True}))
    with pytest.raises(UserError, match=r"another architecture \(quick_gelu False -> True\)"):
        run(changes, tmp_path / "run")


def slow_writer(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Writing a checkpoint takes at least so long."""

    def slowly(*arguments: Any) -> None:
        time.sleep(seconds)
        write_checkpoint(*arguments)

    monkeypatch.setattr("fastft.train.checkpointing.write_checkpoint", slowly)


def test_training_goes_on_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    slow_writer(monkeypatch, 1.0)
    began = time.time()
    run(tiny, tmp_path, schedule__stop_epoch="1", train__checkpoint_steps="2")
    times = {line["step"]: line["time"] - began for line in logged(tmp_path, "train")}
    (first, *_) = logged(tmp_path, "checkpoint")
    assert first["step"] == 2 and first["seconds"] < 0.5
    assert times[4] - times[2] < 0.5
    # at the end every write is waited for: of steps 2 and 4, the best, and step 6
    assert time.time() - began > 4
    assert [p.name for p in list_checkpoints(tmp_path / "checkpoints")] == ["step-00000004", "step-00000006"]


@pytest.mark.slow
def test_a_checkpoint_is_of_the_step_that_saved_it_though_training_goes_on(tiny, whole, tmp_path, monkeypatch):
    """The weights change while they are written; resuming from what was written gives the uninterrupted losses."""
    with monkeypatch.context() as slow:
        slow_writer(slow, 0.3)
        changes = {"model__drop_path": "0.3", "train__keep_checkpoints": "100"}
        run(tiny, tmp_path, train__checkpoint_steps="4", **changes)
    rewind(tmp_path, 4)
    run(tiny, tmp_path, **changes)
    assert losses(tmp_path) == losses(whole)
    assert differing(end(tmp_path), end(whole)) == []


def test_a_write_that_fails_ends_the_training_before_the_next_save(tiny, tmp_path, monkeypatch):
    def full(*arguments: Any) -> None:
        raise UserError("checkpoint could not be written: No space left on device")

    monkeypatch.setattr("fastft.train.checkpointing.write_checkpoint", full)
    with pytest.raises(UserError, match="No space left"):
        run(tiny, tmp_path, schedule__epochs="1000", train__checkpoint_steps="2", train__eval_every="1000")
    assert losses(tmp_path)[-1][0] < 12


def test_only_the_ema_is_evaluated_if_asked_and_the_training_is_the_same(tiny, whole, tmp_path):
    """Every reader of the scores does without the raw ones: result, log, best checkpoint, report, a resume."""
    result = run(tiny, tmp_path, model__drop_path="0.3", train__eval_weights="ema", schedule__stop_epoch="2")
    assert [entry.keys() for entry in result["evaluations"]] == [{"epoch", "ema"}] * 2
    result = run(tiny, tmp_path, model__drop_path="0.3", train__eval_weights="ema")
    both = result_of(whole)
    assert [e["ema"] for e in result["evaluations"]] == [e["ema"] for e in both["evaluations"]]
    assert result["best"]["epoch"] == both["best"]["epoch"]
    assert losses(tmp_path) == losses(whole)
    assert differing(end(tmp_path), end(whole)) == []
    (line, *_) = logged(tmp_path, "eval")
    assert "ema_top1" in line and "raw_top1" not in line
    page = render_run(load_run(tmp_path))
    assert "EMA top-1" in page
    assert "top-1 in percent: EMA" in conclusion(result) and "raw" not in conclusion(result)


def test_the_raw_weights_are_evaluated_where_a_horizon_of_one_step_leaves_no_ema(tiny, tmp_path):
    changes = {"ema__horizon": "0.01", "train__eval_weights": "ema", "schedule__stop_epoch": "1"}
    assert set(run(tiny, tmp_path, **changes)["last"]) >= {"raw"}


def test_a_run_without_an_ema_that_is_continued_with_one_is_another_recipe_not_damage(tiny, tmp_path):
    run(tiny, tmp_path, ema__decay="0", schedule__stop_epoch="1")
    with pytest.raises(UserError, match=r"was trained with another recipe \(ema\.decay"):
        run(tiny, tmp_path, schedule__stop_epoch="1")


def test_evaluating_an_ema_that_is_not_kept_is_one_line(tiny, tmp_path):
    with pytest.raises(UserError, match=r"train\.eval_weights is ema, but ema\.decay is 0"):
        run(tiny, tmp_path, ema__decay="0", train__eval_weights="ema")


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_link_in_a_run_directory_overwrites_nothing(tiny, tmp_path, name):
    """Run directories come from others, too, and archives carry links."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run" / name).symlink_to(tmp_path / ("precious" if name == ".lock" else "made"))
    with pytest.raises(UserError, match=f"{name}: not a regular file; remove it, or use another folder"):
        run(tiny, tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept" and not (tmp_path / "made").exists()
