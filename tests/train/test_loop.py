"""A resumed run equals an uninterrupted one; other recipes and data are refused; a diverged run stops."""

import io
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import fastft
from beton_tools.base.errors import UserError
from beton_tools.read.manifest import manifest_path
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.jobs.run import run_recipe
from fastft.machine.exits import NonFinite
from fastft.machine.precision import Precision
from fastft.recipe import load_recipe
from fastft.report.run_report import render_run
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from fastft.run.result import read_result
from fastft.run.run_directory import load_run
from fastft.train.progress import conclusion
from fastft.train.trainer import Trainer
from tests.refusals import refuses
from tests.train.runs import differing, end, flags, logged, losses, result_of, rewind, run
from tests.train.test_checkpointing import spoil_gradients


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
Step.update = lambda *a: update(*a) if next(updates, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_kill_9_and_resume_gives_the_same_losses_bit_for_bit_but_not_with_other_images(tiny, whole, tmp_path, capsys):
    """The files have no manifests, as FFCV writes them; another one has as many images, of the same classes."""
    folder, files = tmp_path / "run", {name: tmp_path / f"{name}.beton" for name in ("train", "val")}
    for name, file in files.items():
        shutil.copy(tiny[f"data.{name}"], file)
    paths = {f"data__{name}": str(file) for name, file in files.items()}
    command = ["train", "rcp/final_b16.yaml", *flags(tiny, folder, model__drop_path="0.3", **paths)]
    ended = subprocess.run([sys.executable, "-c", KILLED, *command], stdout=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL and len(losses(folder)) == 8
    for name, file in files.items():
        kept = file.rename(tmp_path / "kept")
        converted(Path(tiny[f"data.{name}"]).with_suffix(""), file, coffee="astronaut", astronaut="coffee")
        manifest_path(file).unlink()
        assert main(command) == 2
        said = (
            f"fastft train: {folder} holds another run: data.{name}: {name}.beton changed. Start it as it was begun, or"
        )
        assert capsys.readouterr().err.startswith(said)
        kept.rename(file).touch()
    assert main([*command, f"--data.val={files['val'].rename(tmp_path / 'moved.beton')}"]) == 0
    assert losses(folder) == losses(whole)
    assert differing(end(folder), end(whole)) == []


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


def test_a_changed_recipe_is_refused_with_the_keys_that_differ_but_weights_may_move(tiny, whole):
    with pytest.raises(UserError, match=r"model\.weights 'random' -> 'openai'.*optim\.lr 0\.001 -> 0\.01"):
        run(tiny, whole, model__drop_path="0.3", model__weights="openai", optim__lr="1e-2")
    assert load_run(whole).recipe.optim.lr == 1e-3


def test_a_non_finite_loss_stops_and_names_step_samples_and_checkpoint(tiny, tmp_path):
    with pytest.raises(NonFinite, match=r"at step \d+ \(samples \d+.*checkpoint"):
        run(tiny, tmp_path, optim__lr="1e30", train__checkpoint_steps="1")
    for path in list_checkpoints(tmp_path / "checkpoints"):
        assert all(torch.isfinite(v).all() for v in read_checkpoint(path).tensors["model"].values())


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
    assert state.scaler.growth_tracker == 18  # clean steps since the start, the resume among them


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
    with pytest.raises(NonFinite, match="every recent fp16 step overflows at step 22"):
        run(tiny, tmp_path, schedule__epochs="4")


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


def converted(images: Path, out: Path, **classes: str) -> str:
    """A .beton of the same images with other class names."""
    for name in ("astronaut", "coffee"):
        shutil.copytree(images / name, out.parent / out.stem / classes.get(name, name))
    convert_folder(out.parent / out.stem, out, WriteOptions(workers=0))
    return str(out)


def test_labels_must_mean_the_same_in_both_files(tiny, tmp_path):
    images = Path(tiny["data.val"]).with_suffix("")
    other = converted(images, tmp_path / "other.beton", coffee="zebra")
    with pytest.raises(UserError, match=r"other\.beton: class 1 is zebra, but in .*train.beton it is coffee"):
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
        ({"ema__decay": "0", "train__eval_weights": "ema"}, "train.eval_weights is ema, but ema.decay is 0"),
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
    with pytest.raises(UserError, match=r"holds another run: model\.arch: quick_gelu False -> True"):
        run(changes, tmp_path / "run")


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
    said = conclusion(read_result(tmp_path))
    assert "images with the EMA weights" in said and "raw" not in said


def test_the_raw_weights_are_evaluated_where_a_horizon_of_one_step_leaves_no_ema(tiny, tmp_path):
    changes = {"ema__horizon": "0.01", "train__eval_weights": "ema", "schedule__stop_epoch": "1"}
    assert set(run(tiny, tmp_path, **changes)["last"]) >= {"raw"}


def test_a_run_without_an_ema_that_is_continued_with_one_is_another_recipe_not_damage(tiny, tmp_path):
    run(tiny, tmp_path, ema__decay="0", schedule__stop_epoch="1")
    with pytest.raises(UserError, match=r"holds another run: ema\.decay"):
        run(tiny, tmp_path, schedule__stop_epoch="1")


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_link_in_a_run_directory_overwrites_nothing(tiny, tmp_path, name):
    """Run directories come from others, too, and archives carry links."""
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run" / name).symlink_to(tmp_path / ("precious" if name == ".lock" else "made"))
    with pytest.raises(UserError, match=f"{name}: not a regular file. Remove it, or use another folder"):
        run(tiny, tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept" and not (tmp_path / "made").exists()


def test_an_ema_of_mostly_initial_weights_is_a_warning_in_the_log(tiny, tmp_path):
    for decay, warned in (("0.9999", True), ("0.5", False)):
        console = Console(file=io.StringIO(), width=400)
        once = flags(tiny, tmp_path / decay, schedule__epochs="1", schedule__warmup_epochs="0", ema__decay=decay)
        run_recipe(load_recipe("rcp/final_b16.yaml", once), console)
        assert ("of the EMA will still be initial weights" in console.file.getvalue()) is warned


def test_a_batch_that_is_small_for_its_learning_rate_is_a_warning_in_the_log(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("fastft.optim.schedule.FEW_IMAGES", 1)
    unset = {option: value for option, value in tiny.items() if option != "optim.lr"}
    once = flags(unset, tmp_path / "run", schedule__epochs="1", schedule__warmup_epochs="0")
    console = Console(file=io.StringIO(), width=400)
    run_recipe(load_recipe("rcp/final_b16.yaml", once), console)
    warnings = [line for line in console.file.getvalue().splitlines() if "is large for batches of 8" in line]
    assert len(warnings) == 2 and "--optim.lr=" in warnings[0]  # before training, and with the result
