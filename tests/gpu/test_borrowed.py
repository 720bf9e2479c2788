"""On a borrowed card there may be no FFCV: the other tests run, and each call's results are written as they come."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu_day import Call, measure


def test_what_needs_ffcv_is_skipped_with_a_reason_and_all_else_collected(tmp_path):
    (tmp_path / "ffcv.py").write_text("raise ModuleNotFoundError('no ffcv here', name='ffcv')")
    options = ["--collect-only", "-rs", "-m", "gpu", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "tests/gpu", *options]
    path = os.pathsep.join([str(tmp_path), str(Path.cwd())])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert all(f"tests/gpu/test_{name}.py:" in done.stdout for name in ("kernels", "step"))
    assert "test_training.py:" in done.stdout and "no ffcv here" in done.stdout


def test_every_result_is_on_disk_before_the_next_begins(tmp_path, monkeypatch):
    call = Call("steps", tmp_path, dry_run=True)

    def written() -> dict:
        return json.loads((tmp_path / "steps.json").read_text())

    measure(call, lambda: [{"ms": 1.0}], step="eager")
    assert written()["rows"] == [{"step": "eager", "ms": 1.0}] and written()["torch"] == torch.__version__
    measure(call, lambda: [1 / 0], step="graph")
    monkeypatch.setattr("benchmarks.gpu_day.COMMAND_SECONDS", 0)
    measure(call, lambda: [{"ms": 2.0}], step="compile")
    call.run("http.server", "0")
    errors = [row.get("error") for row in written()["rows"]]
    assert errors == [None, "ZeroDivisionError: division by zero", "no time left", None]
    assert written()["rows"][3]["code"] is None, "stopped"
