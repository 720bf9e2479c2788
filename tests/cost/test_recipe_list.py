"""`fastft recipes`, and the recipes inside the wheel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.recipe import load_recipe
from fastft.recipe.recipe_file import RECIPES, TABLES


def test_every_recipe_and_table_is_listed_with_accuracy_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in values["recipes"]} == {path.stem for path in RECIPES.glob("*.yaml")}
    assert {t["name"] for t in values["tables"]} == {path.stem for path in TABLES.glob("*.yaml")}
    for recipe in values["recipes"]:
        assert recipe["expected_top1"] == load_recipe(recipe["name"]).about.top1
        assert set(recipe["gpu_hours"]) >= {"V100", "A100", "H100"}
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert "quick_b16" in printed and "02_lr" in printed and "85.47" in printed


@pytest.mark.parametrize(("width", "with_source"), [(80, False), (160, True)])
def test_a_recipe_is_one_line_in_a_narrow_console(capsys, monkeypatch, width: int, with_source: bool) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "frugal_b16 " in line)
    assert len(row) <= width and ("reference log" in row) == with_source
    assert "frugal_b16_384" in lines[lines.index(row) + 1]


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_finds_them_by_name(tmp_path: Path) -> None:
    """Built as pip does, unpacked, and run in a folder without a checkout."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(root),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    packed = {
        path.relative_to(tmp_path / "site/fastft/rcp")
        for path in (tmp_path / "site/fastft/rcp").rglob("*.yaml")
    }
    assert packed == {path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml")}
    code = (
        "import fastft; from fastft.recipe import load_recipe; from fastft.model.recipe_model import recipe_arch\n"
        "print(fastft.__file__, load_recipe('02_lr[1e-5]').optim.lr, recipe_arch(load_recipe('demo')).layers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(tmp_path / "site/fastft/__init__.py"), "1e-05", "12"]
