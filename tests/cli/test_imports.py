"""Imports of commands: each imports only what it uses, because imports are most of the time of the short ones."""

import json
import subprocess
import sys

import pytest
from PIL import Image

LIBRARIES = {
    "torch", "torch._dynamo", "torch._inductor", "torchvision", "ffcv", "timm", "open_clip", "numba", "cv2", "scipy",
    "pyarrow", "sympy", "rich", "numpy", "PIL", "yaml", "fastargs",
}  # fmt: skip
SMALL = {"fastargs", "yaml"}  # 15 ms, for the options that the help lists
RUN_AND_LIST_MODULES = """
import json, sys
from fastft.cli import main
for command in json.loads(sys.argv[1]):
    try:
        code = main(command.split())
    except SystemExit as stop:
        code = stop.code
    assert not code, command
print(json.dumps(sorted(sys.modules)))
"""


def imported_by(*commands: str) -> set[str]:
    """The modules of LIBRARIES that a process has imported after these commands."""
    command = [sys.executable, "-c", RUN_AND_LIST_MODULES, json.dumps(commands)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return LIBRARIES & set(json.loads(ended.stdout.splitlines()[-1]))


def test_help_imports_no_library():
    commands = ("train", "predict", "explain", "bench", "report", "sweep", "eval")
    assert imported_by("--help", *(f"{command} --help" for command in commands)) <= SMALL


def test_python_functions_import_torch_alone_until_they_are_called():
    code = "import sys; from fastft import fit, load; print(*sys.modules)"
    imported = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert LIBRARIES & set(imported.split()) == {"PIL", "fastargs", "numpy", "torch", "yaml"}


def test_listing_options_imports_neither_torch_nor_numpy():
    assert imported_by("options") == {"fastargs", "rich", "yaml"}


def test_no_command_that_prints_a_table_imports_the_loaders_or_the_image_libraries():
    """Tracing a step's traffic needs parts of torch's compiler, which take a second."""
    imported = imported_by(
        "explain final_b16", "explain final_b16 --json", "cost final_b16 --gpu=V100",
        "cost final_b16 --gpu=A100 --json",
    )  # fmt: skip
    image_libraries = {"cv2", "PIL", "torchvision", "timm", "open_clip", "pyarrow"}
    assert imported & (image_libraries | {"ffcv", "numba", "scipy"}) == set()


@pytest.mark.slow
def test_pricing_all_recipes_imports_timm_for_those_on_its_towers_but_no_loader():
    assert not imported_by("recipes") & {"cv2", "open_clip", "pyarrow", "ffcv", "numba", "scipy"}


def test_predicting_a_photograph_imports_neither_ffcv_nor_torchvision_nor_a_compiler(whole, photographs, tmp_path):
    Image.fromarray(photographs["coffee"]).save(tmp_path / "photo.jpg")
    imported = imported_by(f"predict {whole} {tmp_path / 'photo.jpg'} --device cpu")
    assert imported <= {"PIL", "fastargs", "numpy", "rich", "torch", "yaml"}
