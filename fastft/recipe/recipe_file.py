"""Find and read recipe files.

You name a recipe by its path, by its bare name if it comes with fastft (`final_b16`), or as a row in a table:
`rcp/tables/02_lr.yaml[1e-5]`, `02_lr[1e-5]`. If there is no file `rcp/...`, the one that comes with fastft is read.
`extends`, and `base` and `recipe` in tables, take the same forms, relative to the file that contains them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from beton_tools.base.errors import UserError
from fastft.recipe.tables import Row, Sweep, is_sweep, load_sweep, row_needed, select_row, split_reference
from fastft.recipe.yaml_file import read_yaml

EXPECTED = "a recipe (YAML)"
MAX_CHAIN = 32  # other recipes that a recipe extends, directly or through others (in rcp/ at most 3)
_PACKAGE = Path(__file__).parents[1]
# inside the package in a wheel, beside it in a checkout
RECIPES = _PACKAGE / "rcp" if (_PACKAGE / "rcp").is_dir() else _PACKAGE.parent / "rcp"
TABLES = RECIPES / "tables"


@dataclass(frozen=True)
class Layer:
    """Options that are set by one file, by one row in a table, or by the command line."""

    where: str  # for error messages
    # `section.option` -> value as written, or `section` -> what the file has there instead of options
    values: Mapping[str, object]


@dataclass(frozen=True)
class RecipeFile:
    """A resolved reference: the recipe's name, and its layers. A later layer overrides an earlier one."""

    name: str
    layers: tuple[Layer, ...]


def read_recipe(reference: str | Path) -> RecipeFile:
    """Read a recipe with everything that it extends.

    Raises:
        UserError: there is no such file or row (with the nearest name), a table has no row selected, a file is not a recipe,
            or recipes extend one another in a circle or more than MAX_CHAIN deep.
    """
    return _read(str(reference), Path(), ())


def find_file(name: str, folder: Path = Path()) -> Path:
    """Find a recipe or table.

    `name` is a path relative to `folder`, or the bare name or `rcp/...` of one that comes with fastft.

    Raises:
        UserError: there is none. The message has the nearest name.
    """
    path = folder / name
    file = next(filter(_is_file, (path, *_shipped(name))), None)
    if file is not None:
        return file
    if os.path.lexists(path):
        return path  # a directory, FIFO, symlink loop, ...: refused with its reason where it is opened
    beside = [p.name for p in path.parent.glob("*.y*ml")] if "\0" not in name else []
    near = get_close_matches(path.name, beside, n=1) or get_close_matches(path.stem, recipe_names(), n=1)
    raise UserError(f"recipe {path} does not exist" + (f". Did you mean {near[0]}?" if near else ""))


def is_table(reference: str | Path) -> bool:
    """True for a sweep file without a row. If it cannot be read, `read_recipe` refuses it later."""
    name, row = split_reference(str(reference))
    try:
        return row is None and is_sweep(read_yaml(find_file(name), EXPECTED))
    except UserError:
        return False


def open_sweep(reference: str | Path) -> Sweep:
    """Open the sweep that a reference names, with its row selected if it names one.

    Raises:
        UserError: no such file or row, or not a sweep file.
    """
    name, row = split_reference(str(reference))
    sweep = load_sweep(find_file(name))
    return sweep if row is None else select_row(sweep, row)


def recipe_names() -> list[str]:
    """List the names of the recipes that come with fastft, without tables."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_elsewhere(reference: str) -> bool:
    """True for `rcp/...` that is not in the working directory but comes with fastft."""
    name, _ = split_reference(reference)
    return "/" in name and not os.path.lexists(name) and any(map(_is_file, _shipped(name)))


def _shipped(name: str) -> tuple[Path, ...]:
    """Return where a recipe or table with this name would be among those that come with fastft."""
    if "/" not in name:
        return RECIPES / f"{name}.yaml", TABLES / f"{name}.yaml"
    first, *inside = Path(name).parts
    return (RECIPES.joinpath(*inside),) if first == "rcp" and inside and ".." not in inside else ()


def _is_file(path: Path) -> bool:
    """Do the same as `Path.is_file`, which raises on names that are too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(reference: str, folder: Path, chain: tuple[str, ...]) -> RecipeFile:
    """Read a recipe. chain: the recipes that led here by extending one another."""
    name, row = split_reference(reference)
    path = find_file(name, folder)
    place = f"{os.path.realpath(path)}[{row!r}]"
    if place in chain:
        raise UserError(f"{path}: recipes extend one another in a circle. Remove one 'extends'")
    if len(chain) > MAX_CHAIN:
        raise UserError(f"{path}: more than {MAX_CHAIN} recipes extend one another. Shorten the chain")
    chain = (*chain, place)
    return _read_file(path, chain) if row is None else _read_row(select_row(load_sweep(path), row), chain)


def _read_file(path: Path, chain: tuple[str, ...]) -> RecipeFile:
    document = read_yaml(path, EXPECTED)
    if is_sweep(document):
        raise row_needed(load_sweep(path))
    base = document.get("extends")
    if base is not None and not (isinstance(base, str) and "\n" not in base):
        raise UserError(f"{path}: extends must name one recipe, such as 'extends: final_b16.yaml'")
    folder = Path(os.path.realpath(path)).parent
    layers = _read(base, folder, chain).layers if base else ()
    values: dict[str, object] = {}
    for section, entries in document.items():
        if section == "extends":
            continue
        if isinstance(entries, dict):
            values |= {f"{section}.{key}": value for key, value in entries.items()}
        else:
            values[section] = entries  # fastft.recipe, which knows the section names, refuses this
    return RecipeFile(path.stem, (*layers, Layer(str(path), _with_arch_file(values, folder))))


def _read_row(sweep: Sweep, chain: tuple[str, ...]) -> RecipeFile:
    row = sweep.selected
    assert row is not None
    base = row.recipe or sweep.base
    assert base is not None  # load_sweep has checked this
    folder = Path(os.path.realpath(sweep.path)).parent
    read = _read(base, folder, chain)
    values = _expected(sweep, row) | _with_arch_file(dict(row.values), folder)
    layer = Layer(f"{sweep.path}, row '{row.title}'", values)
    return RecipeFile(row.name or read.name, (*read.layers, layer))


def _expected(sweep: Sweep, row: Row) -> dict[str, object]:
    """Return the expected accuracy from the row's table.

    If the row has no value and is another recipe, it keeps that recipe's.
    """
    if row.paper is not None:
        raw = ", raw weights" if row.number == "raw" else ""
        return {"about.top1": row.paper, "about.source": sweep.source + raw}
    source = f"no expectation: {sweep.source} states no accuracy"
    return {"about.top1": None, "about.source": source} if row.values else {}


def _with_arch_file(values: dict[str, object], folder: Path) -> dict[str, object]:
    """Return the values with `model.arch`'s .json file found beside the recipe, if the working directory has none."""
    name = values.get("model.arch")
    if not isinstance(name, str) or not name.endswith(".json"):
        return values
    path = folder / name
    if _is_file(Path(name)) or not _is_file(path):
        return values
    cwd = Path.cwd()
    return values | {"model.arch": str(path.relative_to(cwd) if path.is_relative_to(cwd) else path)}
