"""Recipes are found by path, by name and as rows of tables; what cannot be one is refused in one line, whatever it is."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.recipe import load_recipe
from fastft.recipe.recipe_file import MAX_CHAIN, RECIPES
from fastft.recipe.tables import load_sweep
from fastft.recipe.yaml_file import MAX_DEPTH, MAX_RECIPE_BYTES
from fastft.run.run_directory import load_run
from tests.refusals import refuses

TABLE = """
title: Mine
source: nobody
base: final_b16
set: {ema.decay: 0.9}
rows:
  - {label: a, name: mine_a, set: {optim.lr: 1.0e-3}, paper: 60}
  - {label: b, series: x, set: {optim.lr: 2.0e-3}}
  - {label: b, series: y, recipe: other.yaml, number: raw, paper: 50}
  - {label: c, recipe: "mine.yaml[a]", set: {optim.beta1: 0.8}}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "other.yaml").write_text("extends: final_l14\nabout: {top1: 40, source: me}\n")
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return path


# names ------------------------------------------------------------------------------------------------------------------


def test_a_bare_name_is_a_recipe_of_fastft_from_any_folder(tmp_path, monkeypatch):
    here = load_recipe(RECIPES / "final_l14_336.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("final_l14_336") == here
    assert load_recipe("02_lr[1e-5]").name == "lr_1e-5"
    (tmp_path / "final_l14_336").mkdir()  # as in runs/
    assert load_recipe("final_l14_336") == here
    (tmp_path / "mine.yaml").write_text("extends: final_l14_336\n")
    assert load_recipe("mine.yaml").optim == here.optim


def test_a_row_is_named_by_label_by_series_and_label_or_by_recipe(table):
    a = load_recipe(f"{table}[a]")
    found = (a.name, a.optim.lr, a.ema.decay, a.about.top1, a.about.source)
    assert found == ("mine_a", 1e-3, 0.9, 60, "nobody")
    assert load_recipe(f"{table}[mine_a]") == a
    b = load_recipe(f"{table}[x, b]")
    assert (b.name, b.optim.lr, b.about.top1) == ("mine_x_b", 2e-3, None)


def test_a_row_of_another_recipe_keeps_its_name_and_a_row_may_extend_a_row(table):
    other = load_recipe(f"{table}[y, b]")
    assert (other.name, other.model.arch, other.ema.decay) == ("other", "ViT-L-14-quickgelu", 0.9998)
    assert (other.about.top1, other.about.source) == (50, "nobody, raw weights")
    c = load_recipe(f"{table}[c]")
    assert (c.optim.lr, c.optim.beta1, c.ema.decay) == (1e-3, 0.8, 0.9)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{}", r"mine.yaml is a table, not a recipe. Name a row, such as '.*mine.yaml\[a\]'"),
        ("{}[d]", "has no row 'd'. Its rows are 'a', 'x, b', 'y, b', 'c'"),
        ("{}[mine_b]", "Did you mean 'mine_x_b'"),
        ("{}[b]", "'b' matches 2 rows. Write 'x, b' or 'y, b'"),
        ("final_b61", "Did you mean final_b16"),
        ("final_b16[a]", "final_b16.yaml is not a table"),
        ("02_lrr[1e-5]", "does not exist"),
    ],
)
def test_mistakes_in_names_are_one_line(table, reference, message, capsys):
    reference = reference.format(table)
    with refuses(message):
        load_recipe(reference)
    for command in (["train"], ["explain"], ["preview", "--out", "x.png"]):
        assert main([command[0], reference, *command[1:]]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# hostile files ----------------------------------------------------------------------------------------------------------

# expands to ten billion nodes
BOMB = "[&a [x, x, x, x, x, x, x, x, x, x], {}]".format(
    ", ".join(f"&{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]" for i in range(9))
)


def write(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


def chain(path: Path) -> None:
    for i in range(1200):
        (path.parent / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
    (path.parent / "1200.yaml").write_text("extends: final_b16\n")
    path.write_text("extends: 0.yaml\n")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "alias bomb in a value": (write(f"optim: {{lr: {BOMB}}}\n"), "It must be a number >= 0"),
    "alias bomb in a key": (write(f"? {BOMB}\n: 1\n"), "a key must be a text"),
    "alias bomb in extends": (write(f"extends: {BOMB}\n"), "extends must name one recipe"),
    "alias bomb in a text": (write(f"about: {{source: {BOMB}}}\n"), "It must be a text"),
    "long text repeated by aliases": (
        write(f"optim: {{beta1: &a {'x' * 50_000}, lr: [{', '.join(['*a'] * 5000)}]}}\n"), "It must be a number >= 0"
    ),
    "alias of itself": (write("optim: &a {lr: *a}\n"), "recursive"),
    "unknown alias": (write("optim: {lr: *nothing}\n"), "undefined alias"),
    "deep nesting, flow": (write("optim: " + "[" * 5000 + "]" * 5000), f"more than {MAX_DEPTH} levels"),
    "deep nesting, blocks": (
        write("".join(f"{' ' * i}a:\n" for i in range(300))), f"more than {MAX_DEPTH} levels"
    ),
    "key that is a list": (write("? [a, b]\n: 1\n"), "a key must be a text"),
    "larger than the limit": (write("#" + "x" * MAX_RECIPE_BYTES), "larger than the limit"),
    "NUL": (write("optim: {lr: 1e-3}\0"), "not valid YAML"),
    "escaped NUL in extends": (write('extends: "a\\0b"\n'), "control character"),
    "lone surrogate": (write('about: {source: "\\ud800"}\n'), "control character"),
    "escape beyond Unicode": (write('about: {source: "\\UFFFFFFFF"}\n'), "not valid YAML"),
    "extends a list": (write("extends: [final_b16]\n"), "extends must name one recipe"),
    "not UTF-8": (lambda path: path.write_bytes(b"about: {source: \xff}\n"), "not UTF-8"),
    "1e308 classes": (write("data: {num_classes: 1e308}\n"), "num_classes is '1e308'. It must be a whole number"),
    "5000 digits": (write(f"data: {{num_classes: {'9' * 5000}}}\n"), "It must be a whole number"),
    "1e308 minutes": (write("train: {timeout_minutes: 1e308}\n"), "It must be a number >= 0.01"),
    "chain of 1,200": (chain, f"more than {MAX_CHAIN} recipes extend one another"),
    "circle": (write("extends: hostile.yaml\n"), "in a circle"),
    "FIFO": (os.mkfifo, "a FIFO, not a regular file"),
    "directory": (Path.mkdir, "a directory, not a regular file"),
    "/dev/zero": (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
    "extends /dev/zero": (write("extends: /dev/zero\n"), "a device, not a regular file"),
    "name of 5,000 characters": (write(f"extends: {'x' * 5000}\n"), "does not exist"),
}  # fmt: skip


def test_the_limits_of_a_recipe_are_those_of_the_page(tmp_path):
    page = " ".join(Path("docs/recipes.md").read_text().split())
    assert f"It may have at most {MAX_RECIPE_BYTES // 1024} KB, be nested at most {MAX_DEPTH} levels deep" in page
    assert f"and extend at most {MAX_CHAIN} other recipes." in page
    for i in range(MAX_CHAIN):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {f'{i - 1}.yaml' if i else 'final_b16'}\n")
    assert load_recipe(tmp_path / f"{MAX_CHAIN - 1}.yaml").optim.batch_size == 2048
    (tmp_path / "more.yaml").write_text(f"extends: {MAX_CHAIN - 1}.yaml\n")
    with refuses(f"more than {MAX_CHAIN} recipes extend one another"):
        load_recipe(tmp_path / "more.yaml")


@pytest.mark.parametrize("make", [case[0] for case in HOSTILE.values()], ids=HOSTILE)
@pytest.mark.timeout(60)
def test_a_hostile_recipe_table_or_run_directory_is_one_line(
    make: Callable[[Path], object], tmp_path: Path, request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    message = HOSTILE[request.node.callspec.id][1]
    path = tmp_path / "hostile.yaml"
    make(path)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 12_000
    assert main(["explain", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError):
        load_sweep(path)
    path.rename(tmp_path / "recipe.yaml") if path.exists() else None
    with pytest.raises(UserError):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "override",
    ["--about.source=\udcff", "--data.train=a\0b", "--train.seed=1e400", "--optim.lr=[1]", "--x=", "--\udcff=1"],
)
def test_hostile_options_on_the_command_line_are_one_line(override, capsys):
    assert main(["explain", "final_b16", override]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_wheel_holds_the_recipes_and_finds_them_by_name(tmp_path):
    """Built as pip does, unpacked, and run in a folder without a checkout."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pip", "wheel", str(root), "--no-deps", "--no-build-isolation"]
    command += ["-w", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    packed = {path.relative_to(tmp_path / "site/fastft/rcp") for path in (tmp_path / "site/fastft/rcp").rglob("*.yaml")}
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
