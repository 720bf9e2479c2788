"""The log splits the time of a run by part; `train.profile` writes a trace of some steps and changes nothing that is trained."""

import json

from fastft.recipe.constants import STEP_PARTS
from fastft.report.run_report import render_run
from fastft.run.metrics_lines import read_lines
from fastft.run.run_directory import load_run
from tests.train.runs import losses, run


def in_steps(line: dict) -> float:
    """Seconds of a log line's steps, without the wait for a process's first batch."""
    return sum(line["split"][part] for part in STEP_PARTS if part != "start")


def test_time_split_adds_up_to_the_steps(whole):
    lines = read_lines(whole / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    for line in trained:
        seconds = 8 / line["images_per_second"]
        assert set(line["split"]) == {*STEP_PARTS, "read", "decode", "augment"}
        assert min(line["split"].values()) >= 0
        assert in_steps(line) <= seconds
    shares = [in_steps(line) * line["images_per_second"] / 8 for line in trained]
    assert sorted(shares)[len(shares) // 2] > 0.5
    # the wait for the first batch of a process, while kernels compile, counts as start
    assert trained[0]["split"]["start"] > 0 and trained[0]["split"]["wait"] == 0
    assert all(line["split"]["start"] == 0 for line in trained[1:])


def test_the_log_names_the_hardware_and_has_the_seconds_of_the_loader_by_part(whole):
    lines = read_lines(whole / "metrics.jsonl")
    assert lines[0]["kind"] == "start" and lines[0]["precision"] == "float32"
    splits = [line["split"] for line in lines if line["kind"] == "train"]
    for part in ("decode", "augment"):
        # of 3 epochs of 48 images: neither nanoseconds nor sums over lines
        assert 0 < sum(split[part] for split in splits) < 3 * 48 * 25e-3


def test_a_profiled_run_has_a_trace_and_the_same_losses(tiny, whole, tmp_path):
    """Two of six steps are profiled; a run that ends before keeps what it has."""
    assert "profiled steps" not in render_run(load_run(whole))
    for steps, found in (("2", 2), ("100", 3)):
        folder = tmp_path / steps
        run(tiny, folder, train__profile=steps, model__drop_path="0.3", schedule__stop_epoch="1")
        assert losses(folder) == losses(whole)[:6]
        trace = json.loads((folder / "profile/trace.json").read_text())
        names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
        assert names.count("update") == names.count("forward and backward") == found
        operations = json.loads((folder / "profile/operations.json").read_text())
        assert operations["steps"] == found and {"aten::addmm", "aten::mm"} <= {
            row["name"] for row in operations["operations"]
        }
    page = render_run(load_run(tmp_path / "2"))
    assert "of 2 profiled steps" in page and 'href="profile/trace.json"' in page
    longest = sorted(operations["operations"], key=lambda row: -row["seconds"])
    assert operations["operations"] == longest and page.count('<td class="n" data-v="') >= 10
