"""The log splits the time of a run by part."""

import time

import pytest
import torch

from fastft.run.run_directory import read_metrics
from fastft.train.timing import PARTS, Split


def in_steps(line: dict) -> float:
    """Seconds of a log line's steps, without the wait for a process's first batch."""
    return sum(line["split"][part] for part in PARTS if part != "start")


def test_the_loaders_work_is_logged_by_part(whole):
    epochs = [line["seconds"] for line in read_metrics(whole / "metrics.jsonl") if line["kind"] == "split"]
    for seconds in epochs:  # of 48 images each
        assert seconds["read"] >= 0 and seconds["decode"] > 0 and seconds["augment"] > 0
        # neither nanoseconds nor sums over epochs
        assert seconds["decode"] + seconds["augment"] < 48 * 50e-3


def test_time_split_adds_up_to_the_steps(whole):
    """In every log line all parts are present, none is negative, and together they are most of the interval, not more."""
    lines = read_metrics(whole / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    for line in trained:
        seconds = 8 / line["images_per_second"]
        assert set(line["split"]) == {*PARTS, "read", "decode", "augment"}
        assert min(line["split"].values()) >= 0
        assert in_steps(line) <= seconds
    shares = [in_steps(line) * line["images_per_second"] / 8 for line in trained]
    assert sorted(shares)[len(shares) // 2] > 0.5
    # the wait for the first batch of a process, while kernels compile, counts as start
    assert trained[0]["split"]["start"] > 0 and trained[0]["split"]["wait"] == 0
    assert all(line["split"]["start"] == 0 for line in trained[1:])


def test_the_log_names_the_hardware_and_splits_each_epoch(whole):
    lines = read_metrics(whole / "metrics.jsonl")
    assert lines[0]["kind"] == "start" and lines[0]["precision"] == "float32"
    epochs = [line for line in lines if line["kind"] == "split"]
    assert [line["epoch"] for line in epochs] == [0, 1, 2]
    for line in epochs:
        assert line["seconds"].keys() >= {*PARTS, "eval", "checkpoint"}
        steps = [t["split"]["forward"] for t in lines if t["kind"] == "train" and t["epoch"] == line["epoch"]]
        assert line["seconds"]["forward"] == pytest.approx(sum(steps))


def test_time_before_begin_belongs_to_no_part():
    split = Split(torch.device("cpu"))
    time.sleep(0.05)
    split.mark(None)
    split.mark("forward")
    first, second = split.collect(), split.collect()
    assert 0 <= first["forward"] < 0.05
    assert set(second.values()) == {0.0}
