"""`benchmarks/gpu_day.py`: run the stages of `fastft.bench.gpu`, each in its own process with a deadline."""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from fastft.bench.environment import describe_machine, now


@dataclass(frozen=True)
class Stage:
    """`module` in `fastft.bench.gpu` has `run(tiny)`; `minutes` is its deadline."""

    module: str
    minutes: float
    what: str


STAGES = {
    "kernels": Stage("stage_kernels", 5, "augmentation kernels against the CPU back end, byte by byte"),
    "sanitizer": Stage("stage_sanitizer", 9, "compute-sanitizer: memcheck, racecheck, synccheck, initcheck"),
    "loader": Stage("stage_loader", 6, "loader to GPU against the CPU; flat memory; no synchronisation"),
    "steps": Stage("stage_steps", 9, "variants of the training step, with their most expensive operations"),
    "curves": Stage("stage_curves", 6, "loss curves of the precisions; automatic micro-batch under caps"),
    "trainer": Stage(
        "stage_trainer", 8, "the trainer with resume, evaluation and checkpoint; augmentation time"
    ),
}


def run_stages(names: Sequence[str], out: Path, tiny: bool, console: Console) -> int:
    """Run the stages in order and write `out/NAME.json` for each, also if it fails; returns the number of failures.

    Raises:
        UserError: a name that is not a stage.
    """
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise UserError(f"there is no stage '{unknown[0]}'; choose from {', '.join(STAGES)}")
    out.mkdir(parents=True, exist_ok=True)
    failures = 0
    for name in names or STAGES:
        document = _run_stage(name, tiny)
        write_text(out / f"{name}.json", json.dumps(document, indent=1) + "\n")
        failures += document["status"] != "passed"
        line = f"{name:<10} {document['status']:<8} {document['seconds']:6.1f} s  {document.get('error', '')}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return failures


def _run_stage(name: str, tiny: bool) -> dict[str, Any]:
    """The stage's document: its status ('passed', 'failed' or 'timeout'), machine, command and figures or error."""
    stage = STAGES[name]
    command = [sys.executable, "-m", __name__, name, *(["--dry-run"] if tiny else [])]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60 * stage.minutes,
            check=False,
        )
        found = _read_result(done)
    except subprocess.TimeoutExpired:
        found = {"status": "timeout", "error": f"not finished after {stage.minutes:g} minutes"}
    return {
        "stage": name, "what": stage.what, "date": now(), "dry_run": tiny,
        "command": f"python benchmarks/gpu_day.py {name}" + (" --dry-run" if tiny else ""),
        "machine": describe_machine(), "seconds": time.monotonic() - began, **found,
    }  # fmt: skip


def _read_result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last line of stdout is the stage's result; without it the process has died."""
    lines = done.stdout.splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"status": "failed", "error": f"exit code {done.returncode}: {last}"}


def _run_here(name: str, tiny: bool) -> dict[str, Any]:
    """Run a stage in this process."""
    try:
        figures = import_module(f"fastft.bench.gpu.{STAGES[name].module}").run(tiny)
    except Exception as error:
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    return {"status": "passed", "figures": figures}


if __name__ == "__main__":
    print(json.dumps(_run_here(sys.argv[1], "--dry-run" in sys.argv)))
