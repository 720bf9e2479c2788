"""Run directories whose files the trainer did not write like this are refused in one line; remains of a crash are read."""

import json
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.run.metrics_lines import read_lines
from fastft.run.result import read_result
from fastft.run.run_directory import load_run, lock_run
from tests.train.runs import logged, run


def test_a_run_on_a_cpu_has_no_mfu(tiny, tmp_path):
    run(tiny, tmp_path, schedule__epochs="1", schedule__warmup_epochs="0")
    assert {line["mfu"] for line in logged(tmp_path, "train")} == {None}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("train", {"loss": float("nan")}, r"'train' line: Expected float >= 0.0 - at \$\.loss"),
        ("train", {"images_per_second": 0}, r"Expected float >= 1e-30 - at \$\.images_per_second"),
        ("train", {"step": 1}, "do not increase"),
        ("eval", {"raw_top1": None}, "an evaluation has no 'top1'"),
        ("train", {"split": {"wait": "long"}}, "'train' line: Expected float, got str"),
        ("train", {"loss": 10**400}, "'train' line: .* at .\\.loss"),
        ("eval", {"step": 1}, "the steps in 'eval' lines decrease"),
        ("eval", {"best_by": "luck"}, "Invalid enum value 'luck'"),
    ],
)
def test_lines_that_cannot_be_drawn_are_refused(run_folder, kind, change, message, capsys):
    line = logged(run_folder, kind)[0] | change
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=message):
        load_run(run_folder)
    assert main(["report", str(run_folder), "--mistakes=never"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_multi_label_run_that_evaluates_its_ema_only_is_read(run_folder):
    scores = {"ema_map": 50.0, "ema_samples": 8, "ema_loss": 0.1, "best_by": "map"}
    lines = [line if line["kind"] != "eval" else {k: line[k] for k in line if k[:4] != "raw_"} | scores
             for line in read_lines(run_folder / "metrics.jsonl")]  # fmt: skip
    lines = [{k: line[k] for k in line if k != "ema_top1"} for line in lines]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_run(run_folder).evaluations[0].ema.map == 50.0


@pytest.mark.parametrize(
    ("text", "message"),
    [("3", "Expected object"), ("[]", "Expected object"), ('{"kind": "train"}', "Object missing required field step")],
)
def test_a_line_that_is_not_an_object_with_a_step_is_refused(tmp_path, text, message):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start", "step": 0}\n' + text + "\n")
    with pytest.raises(UserError, match=f"line 2: it: {message}"):
        read_lines(tmp_path / "metrics.jsonl")


def test_bytes_that_a_crash_left_at_the_end_are_no_line(run_folder):
    before = read_lines(run_folder / "metrics.jsonl")
    with (run_folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "step": \xff\xfe\x00')
    assert read_lines(run_folder / "metrics.jsonl") == before


ENDED = {"version": 1, "recipe": "r", "epochs": 1, "seconds": 1, "expectation": ""}


@pytest.mark.parametrize(
    "weights", [[1], "x", {"take": "last"}, {"take": "last", "kind": "zzz", "reason": "none", "epoch": 0}]
)
def test_a_choice_of_weights_that_no_run_makes_is_refused(run_folder, weights):
    (run_folder / "result.json").write_text(json.dumps(ENDED | {"weights": weights}))
    with pytest.raises(UserError, match=r"result\.json cannot be read: result.json: .*. Delete it and run the same"):
        read_result(run_folder)


@pytest.mark.parametrize("name", ["recipe.yaml", "result.json"])
def test_other_files_with_another_content_are_refused(run_folder, name):
    (run_folder / name).write_text("3")
    assert main(["report", str(run_folder), "--mistakes=never"]) == 2


def test_a_run_directory_that_cannot_be_written_is_one_line():
    """No file can be made in /proc/self, by root neither."""
    with pytest.raises(UserError, match=r"^/proc/self cannot be written \(.*\). Give another --train.run_dir$"):
        lock_run(Path("/proc/self"))
