"""A run's identity: everything that determines its numbers, and how two runs are compared.

An identity holds the options, each file's content, the classes, the architecture, and the weights' checksums. Paths do not
count: a file that was moved or renamed is the same file, and another file under the same name is not. Each option declares
whether a run may continue with another value (`resumable` in `fastft.recipe.schema`).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document, Object
from beton_tools.base.user_files import expand_home, file_checksum
from beton_tools.read.beton_set import Content
from beton_tools.read.class_list import Classes
from fastft.data.classes import refuse_other_classes
from fastft.recipe import AskedRecipe, Recipe
from fastft.recipe.constants import AUTO, TIMM
from fastft.recipe.schema import option_fields, options_that_are

ARCH, WEIGHTS, HEAD = "model.arch", "model.weights", "model.head"
BY_CONTENT = {ARCH, WEIGHTS, HEAD}  # options that name files: what the files hold is compared instead
PER_HOST_OPTIONS = options_that_are("per_host")
# a run may continue with other values, and a finished result is the same with any of them
FREE_OPTIONS = options_that_are("resumable") - options_that_are("changes_result")
# these options decide which pixels the model sees in evaluation
INPUT_OPTIONS = {
    "augment.mean", "augment.std", "model.image_size", "train.eval_image_size", "train.eval_crop_pct", "train.eval_resize",
    "train.eval_interpolation",
}  # fmt: skip
PUBLISHED = (TIMM, "hf-hub:")  # weights that begin so are not a file
LISTED = 4  # changed files that a message names


@dataclass(frozen=True)
class Difference:
    """One difference between two runs.

    Attributes:
        field: the option, or "classes".
        text: what differs, for messages.
        resumable: a run that has begun may continue with it, although its result will differ.
    """

    field: str
    text: str
    resumable: bool = False


class Identity(Document, kw_only=True, omit_defaults=True):
    """Everything that determines a run's numbers, stored in `identity.json` and in every checkpoint.

    Attributes:
        recipe: section -> option -> value. "auto" stands for a value that is not decided yet.
        arch: the fields of `fastft.model.Arch` or `TimmArch`.
        classes, class_ids: each label's name, and its WordNet id or folder. No ids if the training file has none.
        data, val: the training and validation images' contents. `val` is None without validation images.
        units: which training images belong together. This decides how a linear probe is scored. See
            `fastft.data.units.identify_units`. None without a probe, or if the run was made by an earlier fastft. Units are
            then not compared.
        weights, head: what `model.weights` and `model.head` hold, as returned by `identify_weights`. Empty in runs made by
            fastft 0.3, whose weights are compared by file name.
    """

    recipe: dict[str, Object]
    arch: Object
    classes: list[str]
    data: Content
    val: Content | None = None
    weights: str = ""
    head: str = ""
    class_ids: list[str] | None = None
    units: str | None = None

    @property
    def known_classes(self) -> Classes:
        is_complete = self.class_ids is not None and len(self.class_ids) == len(self.classes)
        return Classes.of_labels(self.classes, self.class_ids if is_complete else None)

    def content_of(self, option: str) -> Content | None:
        """Return the content of the images that `option` names: "data.train" or "data.val"."""
        return self.data if option == "data.train" else self.val

    def differences(self, now: "Identity") -> list[Difference]:
        """List what differs in `now`."""
        return [*self._weights(now), *self._arch(now), *self._options(now), *self._data(now)]

    def seen_differently(self, now: "Identity") -> list[Difference]:
        """List the differences that change which pixels the model sees in evaluation."""
        return [difference for difference in self.differences(now) if difference.field in INPUT_OPTIONS]

    def digest(self) -> str:
        """Hash everything that `differences` compares. Identities without differences have the same digest."""
        counted = {key: value for key, value in self._flat().items() if key not in FREE_OPTIONS | BY_CONTENT}
        images = [c and [c.num_samples, c.identities, c.checksum] for c in (self.data, self.val)]
        values = [counted, self.arch, self.classes, self.class_ids, images, self.weights, self.head]
        values += [self.units] if self.units else []
        return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()

    def _flat(self) -> dict[str, Any]:
        stored = {f"{section}.{key}": value for section, of in self.recipe.items() for key, value in of.items()}
        # an older fastft had fewer options, and acted as if they had their defaults
        return {key: stored.get(key, json_value(field.default)) for key, field in option_fields().items()}

    def _options(self, now: "Identity") -> Iterator[Difference]:
        then, fields = self._flat(), option_fields()
        for key, value in now._flat().items():
            if key not in FREE_OPTIONS | BY_CONTENT and then[key] != value:
                yield Difference(key, f"{key} {then[key]!r} -> {value!r}", fields[key].metadata["resumable"])

    def _weights(self, now: "Identity") -> Iterator[Difference]:
        then, current = self._flat(), now._flat()
        for key, before, after in ((WEIGHTS, self.weights, now.weights), (HEAD, self.head, now.head)):
            names = [Path(str(options[key])).name for options in (then, current)]
            if before != after if before and after else names[0] != names[1]:
                changed = f"{key}: the content of {current[key]} has changed"
                yield Difference(
                    key, changed if then[key] == current[key] else f"{key} {then[key]!r} -> {current[key]!r}"
                )

    def _arch(self, now: "Identity") -> Iterator[Difference]:
        sizes = {"image_size"}  # compared as an option
        for key in sorted((self.arch.keys() | now.arch.keys()) - sizes):
            before, after = self.arch.get(key), now.arch.get(key)
            if before != after:
                yield Difference(ARCH, f"{ARCH}: {key} {before!r} -> {after!r}")

    def _data(self, now: "Identity") -> Iterator[Difference]:
        for option, before, after in (("data.train", self.data, now.data), ("data.val", self.val, now.val)):
            if before is None or after is None:
                if before is not after:
                    words = "no validation images before" if before is None else "no validation images now"
                    yield Difference(option, f"{option}: {words}", resumable=True)
            elif not after.has_same_images(before):
                yield Difference(option, f"{option}: {_changed_files(before, after)}")
        if None not in (self.units, now.units) and self.units != now.units:
            yield Difference("data.train", "data.train: its groups or identical images changed")
        try:
            by_position = bool(now.recipe.get("data", {}).get("classes_by_position"))
            refuse_other_classes(now.known_classes, self.known_classes, "data.train", by_position=by_position)
        except UserError as error:
            yield Difference("classes", str(error).partition(". ")[0])


def _changed_files(before: Content, after: Content) -> str:
    if len(before.files) != len(after.files):
        return f"{len(before.files)} files became {len(after.files)}"
    files = zip(after.files, before.identities, after.identities, strict=True)
    return f"{', '.join([name for name, then, now in files if then != now][:LISTED]) or 'its images'} changed"


def describe(differences: list[Difference]) -> str:
    return ", ".join(difference.text for difference in differences)


def refuse_other_run(stored: Identity, now: Identity, folder: Path) -> None:
    """Raise UserError, which names what differs, if a run that has begun in `folder` may not continue as `now`."""
    if changed := [difference for difference in stored.differences(now) if not difference.resumable]:
        raise UserError(
            f"{folder} holds another run: {describe(changed)}. Start it as it was begun, or use another --train.run_dir"
        )


def make_identity(
    recipe: Recipe,
    arch: Object,
    classes: Classes,
    data: Content,
    val: Content | None = None,
    weights: str = "",
    head: str = "",
    units: str | None = None,
) -> Identity:
    """Return an identity, with the values that JSON gives back. Options that are automatic become "auto"."""
    options = json_value(recipe.as_dict())
    for option in recipe.automatic if isinstance(recipe, AskedRecipe) else ():
        section, _, key = option.partition(".")
        options[section][key] = AUTO
    return Identity(
        recipe=options, arch=json_value(arch), classes=list(classes.labels), data=data, val=val, weights=weights, head=head,
        class_ids=None if classes.ids is None else list(classes.ids), units=units,
    )  # fmt: skip


def json_value(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def shared_options(recipe: Recipe) -> str:
    """Return the options that must agree in all of a run's processes, as JSON."""
    return json.dumps({k: v for k, v in recipe.flat().items() if k not in PER_HOST_OPTIONS}, sort_keys=True)


# weights --------------------------------------------------------------------------------------------------------------


def identify_weights(weights: str | None, arch: str = "") -> str:
    """Identify weights, or a head: a file or folder by its content, a tag by its text.

    Args:
        weights: as `model.weights` and `model.head` take them.
        arch: the architecture's name. The same tag stands for other weights in another architecture.

    Raises:
        UserError: a file cannot be read.
    """
    if weights is None:
        return ""
    path = expand_home(weights)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
    elif path.is_file():
        files = [path]
    else:
        is_file = not weights.startswith(PUBLISHED) and (path.suffix or not arch)
        return "" if is_file else f"{weights} for {arch}"  # a file that is gone is compared by its name
    try:
        return " ".join(_checksum(file, (status := file.stat()).st_size, status.st_mtime_ns) for file in files)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}). Give other weights") from None


def refuse_changed_weights(stored: Identity, recipe: Recipe, run: Path) -> None:
    """Raise UserError if the weights or the head that a run started from are gone or hold something else now.

    Args:
        stored: the run's identity. Runs made by fastft 0.3 did not store their initial weights, so nothing is compared.
        recipe: the run's recipe.
    """
    model = recipe.model
    for file, then, arch in ((model.weights, stored.weights, model.arch), (model.head, stored.head, "")):
        if then and identify_weights(file, arch) != then:
            raise UserError(f"{file} is gone or has changed since {run} was trained from it. Put the old file back")


@lru_cache(maxsize=64)
def _checksum(file: Path, size: int, modified: int) -> str:
    """Return a file's size and CRC-32. A sweep reads the file once for all its runs."""
    return f"{size}-{file_checksum(file)}"


def with_stored_val(now: Identity, stored: Identity) -> Identity:
    """Return `now`. If it has no validation images any more, it keeps those that earlier epochs used.

    Otherwise a run could be evaluated on one set, on none, and then on another, and its best epoch would be chosen by
    results that cannot be compared.
    """
    return now if now.val is not None or stored.val is None else msgspec.structs.replace(now, val=stored.val)
