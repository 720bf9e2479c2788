"""Every program in examples/ runs with the real libraries, and the loss is that of the data that it was given."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MODEL = ["--model", "vit_tiny_patch16_224", "--size", "32", "--batch-size", "8", "--epochs", "2"]


def run(name: str, tiny: dict[str, str], folder: Path, *options: str) -> str:
    command = [
        sys.executable,
        str(ROOT / "examples" / name),
        tiny["data.train"],
        tiny["data.val"],
        *MODEL,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_loop_trains_and_resumes(tiny: dict[str, str], tmp_path: Path) -> None:
    lines = run("plain_loop.py", tiny, tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all(0 < float(re.search(r"loss ([\d.]+)", line)[1]) < 5 for line in lines)  # type: ignore[index]
    assert run("plain_loop.py", tiny, tmp_path) == ""  # all epochs are done
    (third,) = run("plain_loop.py", tiny, tmp_path, "--epochs", "3").splitlines()
    assert third.startswith("epoch 2: loss")


def test_the_loop_with_timms_utilities_trains(tiny: dict[str, str], tmp_path: Path) -> None:
    lines = run("timm_loop.py", tiny, tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all("EMA top-1" in line for line in lines)


def test_the_lightning_module_trains(tiny: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    last = run("lightning_module.py", tiny, tmp_path).splitlines()[-1]
    assert "'loss':" in last and "'top1':" in last
