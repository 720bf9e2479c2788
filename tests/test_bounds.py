"""Version bounds of pyproject.toml: each warns when the reason for it is gone; the extras resolve to current packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
Versions = dict[str, str]  # by package


def resolved(python: str, *extras: str) -> Versions:
    """What uv installs for fastft with these extras from PyPI."""
    options = [option for extra in extras for option in ("--extra", extra)]
    pins = output(
        "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-config",
        "--python-version", python, "--python-platform", "linux", *options, str(ROOT / "pyproject.toml"),
    )  # fmt: skip
    parts = (line.partition(" ")[0].partition("==") for line in pins.splitlines())
    return {name: version for name, _, version in parts}


def resolved_by_pip(python: str, extra: str, folder: Path) -> Versions:
    """What pip installs for an extra alone, from wheels: of another Python it resolves nothing else."""
    digits, report = python.replace(".", ""), folder / "report.json"
    tags = [f"--platform=manylinux{tag}_x86_64" for tag in (*(f"_2_{minor}" for minor in range(28, 16, -1)), "2014")]
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    output(
        "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", str(report), "--only-binary=:all:",
        "--python-version", python, "--implementation=cp", f"--abi=cp{digits}", "--abi=abi3", "--abi=none", *tags,
        "--target", str(folder / "nowhere"),
        *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra],
    )  # fmt: skip
    found = (package["metadata"] for package in json.loads(report.read_text())["install"])
    return {metadata["name"]: metadata["version"] for metadata in found}


def output(*module: str) -> str:
    more = {"PIP_CONFIG_FILE": os.devnull}  # a machine's own configuration of pip may hold versions back
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, env=os.environ | more)
    if done.returncode and any(word in done.stderr.lower() for word in ("error sending request", "connection")):
        pytest.skip("PyPI cannot be reached")
    assert done.returncode == 0, done.stderr
    return done.stdout


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_cuda_extras_resolve_to_the_newest_torch_of_their_kind(python):
    """cuda13 to the newest torch of all, cuda12 to one with CUDA 12 in which DDP works with a compiled step."""
    newest, cuda12, cuda13 = resolved(python), resolved(python, "cuda12"), resolved(python, "cuda13")
    assert cuda13["torch"] == newest["torch"]
    assert cuda13["cuda-toolkit"].startswith("13.") and not any(n.endswith("-cu12") for n in cuda13)
    assert release(cuda12["torch"]) >= (2, 10)
    assert cuda12["cuda-toolkit"].startswith("12.") and not any(n.endswith("-cu13") for n in cuda12)
    for versions in (newest, cuda12, cuda13):
        assert {"tensorboard", "wandb", "mlflow-skinny", "pytest"}.isdisjoint(versions)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("python", PYTHONS[2:3])  # pip downloads a torch of 550 MB for each
def test_pip_resolves_the_cuda_extras_alike(python, tmp_path):
    for extra, oldest in (("cuda12", (2, 10)), ("cuda13", (2, 11))):
        versions = resolved_by_pip(python, extra, tmp_path)
        assert release(versions["torch"]) >= oldest
        assert versions["cuda-toolkit"].startswith(f"{extra.removeprefix('cuda')}.")
