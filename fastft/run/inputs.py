"""What a run reads, opened once: its images, their classes, and what its weights and its head hold.

`fastft.jobs.run` opens the inputs after the photographs are converted. Every later stage uses what was opened here, and
opens no data file again.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Object
from beton_tools.read.beton_paths import find_betons, is_named_beton
from beton_tools.read.beton_set import BetonSet, Content
from beton_tools.read.manifest import Manifest
from beton_tools.read.subset_file import listed_files
from fastft.data.classes import refuse_other_classes
from fastft.data.selection import split_selection
from fastft.data.units import identify_units, read_units
from fastft.data.warnings import ACCURACY, Warned, data_warnings, describe_betons
from fastft.model import load_arch
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import AskedRecipe, Recipe
from fastft.recipe.constants import IMAGE_SIZE, PROBE
from fastft.recipe.training_images import GIVE, NO_DATA, Images, is_imagenet, with_images
from fastft.run.identity import Identity, identify_weights, make_identity
from fastft.run.run_directory import Run, run_folder
from fastft.run.start_weights import HEAD_INIT, with_run_weights, without_foreign_head


@dataclass(frozen=True)
class Inputs:
    """A run's inputs.

    Attributes:
        train, val: the images. `val` is None without validation images.
        selection: training images that are reserved for choosing epoch and weights.
        images: how many there are, and where they are from.
        weights, head: see `fastft.run.identity.Identity`.
        request: identifies what the run was asked for, before anything was decided. Files that earlier stages stored are
            reused only for the same request.
    """

    train: BetonSet
    val: BetonSet | None
    selection: BetonSet | None
    images: Images
    weights: str
    head: str
    request: str = ""

    @property
    def evaluated(self) -> list[BetonSet]:
        """The validation images if there are any, then the images for selection if there are any."""
        return [betons for betons in (self.val, self.selection) if betons is not None]

    @cached_property
    def units_N(self) -> np.ndarray:
        """A unit per training image, int64 (N,). See `fastft.data.units.units_of`."""
        return read_units(self.train)

    def identify(self, recipe: Recipe) -> Identity:
        """Return a run's identity for this recipe, which may have automatic options, and these inputs."""
        val = None if self.val is None else self.val.content
        probes = recipe.model.head_init == PROBE or (isinstance(recipe, AskedRecipe) and HEAD_INIT in recipe.automatic)
        return make_identity(
            recipe, describe_arch(recipe), self.train.known_classes, self.train.content, val, self.weights, self.head,
            identify_units(self.units_N) if probes else None,
        )  # fmt: skip


def describe_arch(recipe: Recipe) -> Object:
    """Return the architecture's fields. If it cannot be built, they hold its name, and building it raises the error."""
    try:
        # an automatic size need not suit the tower yet
        is_automatic = isinstance(recipe, AskedRecipe) and IMAGE_SIZE in recipe.automatic
        arch = load_arch(recipe.model.arch) if is_automatic else recipe_arch(recipe)
    except UserError:
        return {"name": recipe.model.arch}
    return asdict(arch)


@dataclass(frozen=True)
class OpenedImages:
    """The images that a recipe names.

    Attributes:
        whole: how many there are. Images for selection count as training images.
        train, val, selection: see `Inputs`.
    """

    whole: Images
    train: BetonSet
    val: BetonSet | None
    selection: BetonSet | None


def open_recipe_images(recipe: Recipe, opened: Mapping[str, BetonSet] | None = None) -> OpenedImages:
    """Open `data.train` and `data.val`.

    Args:
        opened: files that are open already, by the text of `data.train` or `data.val`.

    Raises:
        UserError: a file is missing or cannot be read, or the files have other classes.
    """
    data, opened = recipe.data, opened or {}
    if data.train is None:
        raise UserError(NO_DATA)
    by_position = data.classes_by_position
    whole = opened.get(data.train) or open_images(data.train, by_position)
    val = None if data.val is None else opened.get(data.val) or open_images(data.val, by_position, [whole])
    _compare_classes(recipe, whole, val)
    train, selection = split_selection(whole, data.selection_share)
    return OpenedImages(Images.of_betons(whole, val), train, val, selection)


def open_inputs(
    recipe: AskedRecipe, images: Images | None = None, files: OpenedImages | None = None
) -> tuple[AskedRecipe, Inputs]:
    """Open what a recipe reads. Returns the recipe too, with the weights and the head of the run that it starts from.

    Args:
        recipe: the recipe, which names .beton files.
        images: where the images are from, if they were converted.
        files: the recipe's files, if they are open already.

    Raises:
        UserError: as for `open_recipe_images`, or `train.stop_when` has no images to decide by, or only ImageNet's
            validation images, whose accuracy is reported.
    """
    files = files or open_recipe_images(recipe)
    found = files.whole
    if images is not None:
        found = replace(found, title=images.title, reading=images.reading)
    _refuse_stop(recipe, found)
    recipe = without_foreign_head(with_run_weights(recipe), files.train.known_classes)
    weights = identify_weights(recipe.model.weights, recipe.model.arch)
    inputs = Inputs(files.train, files.val, files.selection, found, weights, identify_weights(recipe.model.head))
    return recipe, replace(inputs, request=inputs.identify(recipe).digest())


def open_images(path: str, classes_by_position: bool = False, opened: Sequence[BetonSet] = ()) -> BetonSet:
    """Open .beton files. Raises UserError, which says what may be given, if they are missing or cannot be read.

    classes_by_position, opened: see `BetonSet.open`.
    """
    files = find_betons(path)
    for file in files:
        if not os.path.lexists(file):
            raise UserError(f"{file}: no such file or folder. {GIVE}")
    try:
        return BetonSet.open(path, classes_by_position=classes_by_position, opened=opened)
    except UserError:
        for file in files:
            if not is_named_beton(file):
                raise UserError(f"{file}: not a .beton file. {GIVE}") from None
        raise


def _compare_classes(recipe: Recipe, train: BetonSet, val: BetonSet | None) -> str:
    """Return a warning if the validation images' labels are taken by position. Raises UserError for other classes."""
    if val is None:
        return ""
    return refuse_other_classes(
        val.known_classes, train.known_classes, val.title,
        other=train.title, by_position=recipe.data.classes_by_position,
    )  # fmt: skip


def warn_of_images(recipe: Recipe, train: BetonSet, val: BetonSet | None) -> list[Warned]:
    """Return what you should know about .beton files. See `fastft.data.warnings`.

    Raises:
        UserError: the validation images have other classes.
    """
    found = data_warnings(*describe_betons(*(betons for betons in (train, val) if betons is not None)))
    return [*(Warned(text, ACCURACY) for text in filter(None, [_compare_classes(recipe, train, val)])), *found]


def _refuse_stop(recipe: AskedRecipe, images: Images) -> None:
    if recipe.train.stop_when is None or recipe.data.selection_share:
        return
    if images.val and not is_imagenet(with_images(recipe, images)):
        return
    reported = "would choose the epoch on the validation images, whose accuracy is reported"
    share = MANY_SHARE if images.train >= MANY else FEW_SHARE
    raise UserError(
        f"train.stop_when {reported if images.val else 'has no images to evaluate'}. Set --data.selection_share={share:g}, "
        "which reserves this share of the training images for it"
    )


MANY, MANY_SHARE, FEW_SHARE = 10_000, 0.01, 0.1  # advice: at least about 100 images, if there are 1,000


# an earlier run's images ------------------------------------------------------------------------------------------------


def open_of_run(run: Run, option: str, opened: Sequence[BetonSet] = ()) -> BetonSet:
    """Open a run's images as `open_stored`. option: "data.train" or "data.val"."""
    stored = run.identity
    content = None if stored is None else stored.content_of(option)
    return open_stored(run.recipe, option, content, run.folder, opened)


def open_stored(
    recipe: Recipe, option: str, content: Content | None, folder: Path, opened: Sequence[BetonSet] = ()
) -> BetonSet:
    """Open the images that a run was trained or evaluated on, wherever the run and its images lie now.

    The files beside the run come first, because another run may have its old name and place. Files with other content
    are not used.

    Args:
        recipe: the run's recipe.
        option: "data.train" or "data.val".
        content: these images' content, as the run stored it. None accepts any content.
        folder: the run directory.
        opened: see `BetonSet.open`.

    Raises:
        UserError: there are no such images, they have changed, or they cannot be read.
    """
    stored = recipe.flat()[option]
    if stored is None:
        raise UserError("the recipe names no validation file. Give one with --data FILE.beton")
    problem = None
    for files in _places(recipe, stored, folder):
        if all(map(os.path.lexists, files)):
            place = files[0] if len(files) == 1 else files
            found = BetonSet.open(place, classes_by_position=recipe.data.classes_by_position, opened=opened)
            if option == "data.train":
                found, _ = split_selection(found, recipe.data.selection_share)
            if content is None or found.content.has_same_images(content):
                return found
            problem = problem or UserError(
                f"{found.title} has changed since {folder} was trained. Put the old images back, or give others with --data"
            )
    if problem is not None:
        raise problem
    return BetonSet.open(stored, classes_by_position=recipe.data.classes_by_position)  # says which file is missing


class UsedFile(NamedTuple):
    """A file with a run's training or validation images.

    part: how many of its images are used, or "" if all are used. manifest: None if the file has none, is not there any more,
    or holds other images now.
    """

    path: str
    part: str
    manifest: Manifest | None


def used_files(recipe: Recipe, option: str, stored: Identity | None, folder: Path) -> list[UsedFile]:
    """Describe the files that hold a run's images, as `open_stored` finds them.

    stored: the run's identity. Another run's files are not used, even if they have the same names.
    """
    if (named := recipe.flat()[option]) is None:
        return []
    try:
        images = open_stored(recipe, option, None if stored is None else stored.content_of(option), folder)
        total = sum(beton.num_samples for beton in images.files)
        part = "" if images.ids_in_files is None else f"{len(images):,} of {total:,} images"
        return [UsedFile(str(beton.path), part, Manifest.of_beton(beton.path)) for beton in images.files]
    except UserError:
        paths, part = listed_files(named)
        return [UsedFile(path, part, None) for path in paths]


def _places(recipe: Recipe, stored: str, folder: Path) -> Iterator[list[Path]]:
    """Yield where a run's images may lie: where they lay beside the run directory, then under the stored paths."""
    paths = [Path(part) for part in ([stored] if os.path.lexists(stored) else stored.split(","))]
    beside = [Path(os.path.normpath(folder / os.path.relpath(path, run_folder(recipe)))) for path in paths]
    yield beside
    if not all(os.path.lexists(b) and os.path.lexists(p) and b.samefile(p) for b, p in zip(beside, paths, strict=True)):
        try:
            yield find_betons(stored)
        except UserError:
            return
