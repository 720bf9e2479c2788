"""A `.beton` that is truncated while a run reads it ends the run with one line; with the file restored the run continues."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.runs import differing, end, flags, losses, run

CHANGES = {"model__drop_path": "0.3", "schedule__epochs": "16", "train__checkpoint_steps": "2"}


@pytest.mark.slow  # in this process: tests/data/test_changed_file.py
def test_a_file_truncated_during_a_run_is_one_line_and_the_run_continues(tiny, tmp_path):
    data = Path(shutil.copy2(tiny["data.train"], tmp_path / "train.beton"))
    shutil.copy2(f"{tiny['data.train']}.manifest.json", f"{data}.manifest.json")
    mine = tiny | {"data.train": str(data)}
    whole = data.read_bytes()
    arguments = ["train", "rcp/final_b16.yaml", *flags(mine, tmp_path / "run", **CHANGES)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastft.cli", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not ((tmp_path / "run/metrics.jsonl").exists() and len(losses(tmp_path / "run")) >= 5):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    os.truncate(data, 8192)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert error.count("\n") == 1 and f"{data}: changed while it was in use" in error
    data.write_bytes(whole)
    run(mine, tmp_path / "run", **CHANGES)
    run(mine, tmp_path / "undisturbed", **CHANGES)
    assert differing(end(tmp_path / "run"), end(tmp_path / "undisturbed")) == []
