"""Imports of commands: each imports only what it uses, because imports are most of the time of the short ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

LIBRARIES = {
    "torch", "torch._dynamo", "torch._inductor", "torchvision", "ffcv", "timm", "open_clip", "numba", "cv2", "scipy",
    "matplotlib", "pyarrow", "sympy", "rich", "numpy", "PIL", "yaml", "fastargs",
}  # fmt: skip
SMALL = {"fastargs", "yaml"}  # 15 ms, for the options that the help lists
RUN_AND_LIST_MODULES = """
import json, sys
from fastft.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, sorted(sys.modules)]))
"""


def imported_by(*arguments: str) -> set[str]:
    """The modules of LIBRARIES that a command has imported when it ends."""
    command = [sys.executable, "-c", RUN_AND_LIST_MODULES, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    code, modules = json.loads(ended.stdout.splitlines()[-1])
    assert code == 0, ended.stderr
    return LIBRARIES & set(modules)


def test_help_imports_no_library() -> None:
    assert imported_by("--help") <= SMALL


@pytest.mark.parametrize("command", ["train", "predict", "explain", "bench", "report"])
def test_the_help_of_a_command_imports_no_library(command: str) -> None:
    assert imported_by(command, "--help") <= SMALL


def test_listing_options_imports_neither_torch_nor_numpy() -> None:
    assert imported_by("options") == {"fastargs", "rich", "yaml"}


@pytest.mark.parametrize(
    "command",
    [
        ["explain", "final_b16"],
        ["explain", "final_l14", "--json"],
        ["cost", "final_b16", "--gpu=V100"],
        ["cost", "final_b16", "--gpu=A100", "--json"],
        ["recipes"],
    ],
)
def test_no_command_that_prints_a_table_imports_the_loaders_or_the_image_libraries(
    command: list[str],
) -> None:
    """Tracing a step's traffic needs parts of torch's compiler, which take a second."""
    forbidden = {
        "ffcv", "numba", "scipy", "cv2", "PIL", "torchvision", "timm",
        "open_clip", "pyarrow", "matplotlib",
    }  # fmt: skip
    assert imported_by(*command) & forbidden == set()


def test_predicting_a_photograph_imports_neither_ffcv_nor_torchvision_nor_a_compiler(
    whole: Path, photographs, tmp_path: Path
) -> None:
    Image.fromarray(photographs["coffee"]).save(tmp_path / "photo.jpg")
    imported = imported_by("predict", str(whole), str(tmp_path / "photo.jpg"), "--device", "cpu")
    assert imported == {"PIL", "fastargs", "numpy", "rich", "torch", "yaml"}
