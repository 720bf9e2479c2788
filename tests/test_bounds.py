"""Version bounds of pyproject.toml: each warns when the reason for it is gone; the extras resolve to current packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def resolved(*extras: str) -> dict[str, str]:
    """Versions that an installation of fastft with these extras would get from PyPI, by package."""
    options = [option for extra in extras for option in ("--extra", extra)]
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-config",
        "--python-version", "3.11", "--python-platform", "linux", *options, str(ROOT / "pyproject.toml"),
    ]  # fmt: skip
    opencv = {"PKG_CONFIG_PATH": str(ROOT / ".ci/ffcv")}  # FFCV's setup.py asks for it, even for the metadata
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | opencv)
    if done.returncode and "error sending request" in done.stderr.lower():
        pytest.skip("PyPI cannot be reached")
    assert done.returncode == 0, done.stderr
    pins = (line.partition(" ")[0].partition("==") for line in done.stdout.splitlines())
    return {name: version for name, _, version in pins}


@pytest.mark.slow
def test_the_cuda_extras_resolve_to_the_newest_torch_of_their_kind():
    """cuda13 to the newest torch of all, cuda12 to one with CUDA 12 in which DDP works with a compiled step."""
    newest, cuda12, cuda13 = resolved(), resolved("cuda12"), resolved("cuda13")
    assert cuda13["torch"] == newest["torch"]
    assert cuda13["cuda-toolkit"].startswith("13.") and not any(n.endswith("-cu12") for n in cuda13)
    assert tuple(map(int, cuda12["torch"].split(".")[:2])) >= (2, 10)
    assert cuda12["cuda-toolkit"].startswith("12.") and not any(n.endswith("-cu13") for n in cuda12)
    for versions in (newest, cuda12, cuda13):
        assert {"tensorboard", "wandb", "mlflow-skinny", "pytest"}.isdisjoint(versions)
