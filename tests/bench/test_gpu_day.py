"""The GPU stages run on a CPU with tiny shapes, and the runner goes on after failures and keeps its deadlines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.bench import gpu_day
from fastft.bench.gpu_day import STAGES, Stage, run_stages

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_passes_a_dry_run(name: str, tmp_path: Path) -> None:
    assert run_stages([name], tmp_path, tiny=True, console=Console(quiet=True)) == 0
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert document["status"] == "passed" and document["dry_run"] and document["figures"]
    assert document["machine"]["cpu"] and document["command"].endswith(f"{name} --dry-run")


def test_a_failing_stage_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"absent": Stage("stage_absent", 1, ""), "late": Stage("stage_kernels", 0.001, "")}
    monkeypatch.setattr(gpu_day, "STAGES", stages)
    assert run_stages([], tmp_path, tiny=True, console=Console(quiet=True)) == 2
    documents = [json.loads((tmp_path / f"{name}.json").read_text()) for name in stages]
    assert [d["status"] for d in documents] == ["failed", "timeout"]
    assert all(d["error"] for d in documents)


def test_an_unknown_stage_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no stage 'kernel'; choose from kernels, sanitizer"):
        run_stages(["kernel"], tmp_path / "out", tiny=True, console=Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_the_script_refuses_an_unknown_stage_in_one_line() -> None:
    command = [sys.executable, "benchmarks/gpu_day.py", "kernel"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
