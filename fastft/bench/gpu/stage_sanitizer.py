"""Stage 2: compute-sanitizer finds no invalid access, race, divergent barrier or uninitialised read in the kernels."""

import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from fastft.augment import parse_policy
from fastft.bench.gpu.stage_kernels import POLICIES, make_augment, random_batch

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
BATCH, SIZE = 8, 64
SECONDS = 150  # time limit of one tool
SHOWN = 20  # lines of a report


def run(tiny: bool) -> dict[str, Any]:
    """Run the kernels under every tool; in a dry run, without a tool.

    Raises:
        AssertionError: a tool reports an error.
    """
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if tiny or sanitizer is None:
        _check([], "no tool")
        return {"tools": [], "note": "dry run" if tiny else "compute-sanitizer is not installed"}
    reports = {tool: _check([sanitizer, "--tool", tool, "--error-exitcode", "86"], tool) for tool in TOOLS}
    return {"tools": list(TOOLS), "reports": reports}


def _check(prefix: list[str], tool: str) -> str:
    command = [*prefix, sys.executable, "-m", __name__]
    # so that every tensor has its own bounds
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-SHOWN:])
    assert done.returncode == 0, f"{tool}: {tail}"
    return tail


def augment_once() -> None:
    """One batch per policy, waited for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for seed, name in enumerate(POLICIES):
        policy = parse_policy(name, erase_prob=0.5)
        images = make_augment(policy, SIZE, device)(*random_batch(policy, SIZE, BATCH, seed))
        assert np.isfinite(images.float().cpu().numpy()).all()


if __name__ == "__main__":
    augment_once()
