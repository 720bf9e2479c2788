"""Check whether a recipe may continue a run directory. Some options may differ between processes and resumes."""

import hashlib
import json
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Object
from beton_tools.base.user_files import expand_home
from beton_tools.read.beton_set import BetonSet, Content
from fastft.data.classes import refuse_other_classes
from fastft.recipe import Recipe, recipe_from_dict
from fastft.recipe.schema import options_that_are
from fastft.run.checkpoint import ModelState, checksum

PER_HOST_OPTIONS = options_that_are("per_host")
RESUMABLE_OPTIONS = options_that_are("resumable")
WEIGHTS_FILES = ("model.weights", "model.head")
LISTED = 4  # changed files


def shared_options(recipe: Recipe) -> str:
    """Return the options that all processes of a run must have in common, as JSON."""
    return json.dumps({k: v for k, v in recipe.flat().items() if k not in PER_HOST_OPTIONS}, sort_keys=True)


def request_key(recipe: Recipe) -> str:
    """Hash what a run is asked for. Runs with equal hashes would choose the same options and fit the same head.

    Args:
        recipe: not decided yet, with .beton files.
    """
    values = {option: value for option, value in recipe.flat().items() if option not in RESUMABLE_OPTIONS}
    values |= {option: _identify(values[option]) for option in WEIGHTS_FILES}
    data = recipe.data.train, recipe.data.val
    by_position = recipe.data.classes_by_position
    contents = [BetonSet.open(path, classes_by_position=by_position).content for path in data if path is not None]
    images = [[content.num_samples, content.identities, content.checksum] for content in contents]
    asked = [values, sorted(recipe.automatic), images]
    return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=8).hexdigest()


def _identify(weights: str | None) -> list[str]:
    """Return the name of weights, and the checksums of their files, which may move. A tag or repository has none."""
    if weights is None:
        return []
    path = expand_home(weights)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [path.name, *(checksum(file) for file in files if file.is_file())]


def refuse_other_run(stored: ModelState, recipe: Recipe, current: ModelState, folder: Path) -> None:
    """Compare a checkpoint's state with the run that is to continue it (`current`).

    Raises:
        UserError: another recipe, architecture, image file or set of classes. The message names what differs.
    """
    refuse_changed_recipe(stored.recipe, recipe, folder)
    refuse_changed_arch(stored.arch, current.arch, folder)
    refuse_changed_data("data.train", stored.data, current.data, folder)
    refuse_changed_data("data.val", stored.val, current.val, folder)
    refuse_other_classes(
        current.known_classes, stored.known_classes, str(recipe.data.train), by_position=recipe.data.classes_by_position
    )


def refuse_changed_recipe(stored: dict[str, Object], recipe: Recipe, folder: Path) -> None:
    """Raise UserError naming the options that differ between a run's checkpoint and the recipe."""
    now, then = recipe.flat(), recipe_from_dict(recipe.name, stored).flat()
    changed = sorted(
        k
        for k in now
        if k not in RESUMABLE_OPTIONS
        # a file with weights may move
        and (Path(str(now[k])).name != Path(str(then[k])).name if k in WEIGHTS_FILES else now[k] != then[k])
    )
    if changed:
        listing = ", ".join(f"{k} {then[k]!r} -> {now[k]!r}" for k in changed)
        raise UserError(f"{folder} was trained with another recipe ({listing}). Use another --train.run_dir")


def refuse_changed_arch(stored: Object, arch: Object, folder: Path) -> None:
    """Raise UserError if `model.arch` has other values than in the checkpoint: its file or open_clip has changed."""
    changed = sorted(k for k, value in arch.items() if stored[k] != value)
    if changed:
        listing = ", ".join(f"{k} {stored[k]!r} -> {arch[k]!r}" for k in changed)
        raise UserError(f"{folder} was trained with another architecture ({listing}). Use another --train.run_dir")


def refuse_changed_data(option: str, stored: Content | None, current: Content | None, folder: Path) -> None:
    """Raise UserError if other images than in the checkpoint are trained or evaluated on. The files may have moved.

    Args:
        option: names the files.
    """
    if stored is None or current is None or current.has_same_images(stored):
        return
    count, names = len(stored.files), current.files
    files = zip(names, stored.identities, current.identities, strict=False)
    changed = ", ".join([name for name, then, now in files if then != now][:LISTED]) or "its images"
    what = f"{changed} changed" if count == len(names) else f"{count} files became {len(names)}"
    raise UserError(f"{option}: {what} since {folder} was begun. Put the old data back, or use another --train.run_dir")
