"""What you should know about labelled images before you train on them, one line each.

`fastft convert`, `explain` and `train` give the same warnings, for photographs and for `.beton` files.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from beton_tools.base.console import printable
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import count_classes
from fastft.data.units import read_contents

LISTED = 3  # files or classes named in a warning
# What a warning is about, which decides where a report shows it: the accuracy on the validation images, the images
# and their classes, the training, or its speed.
About = Literal["accuracy", "images", "training", "speed"]
ACCURACY: About = "accuracy"
IMAGES: About = "images"
TRAINING: About = "training"
SPEED: About = "speed"
NUMBER = re.compile(r"[-+]?\d*[.,]?\d+(e[-+]?\d+)?", re.IGNORECASE)
# what tables and programs write for a missing value
_MISSING = {"nan", "na", "n/a", "#n/a", "<na>", "none", "null", "nil", "undefined", "?", "-"}
# folders into which people put what they have not labelled
_UNLABELLED = {
    *(
        "unlabeled",
        "unlabelled",
        "unknown",
        "unsorted",
        "unclassified",
        "uncategorized",
        "uncategorised",
        "unidentified",
    ),
    *(
        "misc",
        "miscellaneous",
        "todo",
        "to do",
        "tosort",
        "to sort",
        "tmp",
        "temp",
        "new folder",
        "untitled folder",
        "trash",
    ),
}
ANIMATIONS = ("image is an animation, whose first frame is kept", "images are animations, whose first frames are kept")
# small Cyrillic and Greek letters that look like Latin ones (Unicode's confusables.txt)
_LOOK_ALIKE = str.maketrans("аеорсухіјѕԁԛԝһкмтвнοανρτυκιχγε", "aeopcyxijsdqwhkmtbhoavptukixye")


class Warned(str):
    """A warning's text, and what it is about. `fastft.run.said` prints it as one, and keeps it."""

    about: About

    def __new__(cls, text: str, about: About = IMAGES) -> "Warned":
        made = super().__new__(cls, text)
        made.about = about
        return made


@dataclass(frozen=True)
class Labelled:
    """Labelled images.

    Attributes:
        classes: names by label.
        labels: int64 (N,), or uint8 (N, K).
        names: gives the images' names.
        contents: numbers (N,), equal for the same images, also in the set that this one is compared with. None if unknown.
        groups: a group per image, "" for none. None if there are no groups.
        is_image: tells whether an image can be read. Equal damaged files are not the same image.
        animations: how many images are an animation's first frame.
        is_part: the images are one part of a divided conversion, so classes may lack images here.
    """

    title: str
    classes: Sequence[str]
    labels: np.ndarray
    names: Callable[[], Sequence[str]]
    contents: np.ndarray | None
    groups: Sequence[str] | None = None
    is_image: Callable[[int], bool] = lambda i: True
    animations: int = 0
    is_part: bool = False


def describe_betons(*sets: BetonSet) -> list[Labelled]:
    """Describe the images in .beton files, for `data_warnings`."""
    return [_describe(betons, contents) for betons, contents in zip(sets, read_contents(*sets), strict=True)]


def _describe(betons: BetonSet, contents: np.ndarray | None) -> Labelled:
    def names() -> list[str]:
        return betons.read_names() or [f"sample {i}" for i in range(len(betons))]

    return Labelled(
        betons.title, betons.class_names, betons.labels, names, contents, betons.read_groups(),
        animations=betons.animations,
        is_part=bool(betons.missing_parts) or betons.ids_in_files is not None,
    )  # fmt: skip


def data_warnings(train: Labelled, val: Labelled | None = None) -> list[Warned]:
    """Return warnings about the training images, and about the validation images beside them."""
    warnings = [*_class_warnings(train), *_same_image_warnings(train)]
    for found in filter(None, (train, val)):
        warnings += warn_of_animations(found.title, found.animations)
    if val is not None:
        warnings += [*_missing_classes(train, val), *overlap_warnings(train, val)]
    return warnings


def overlap_warnings(train: Labelled, val: Labelled) -> list[Warned]:
    """Return warnings about validation images that are also training images, or are of a training image's group."""
    return [*_shared_images(train, val), *_shared_groups(train, val)]


def warn_of_animations(title: str, count: int) -> list[Warned]:
    return [Warned(f"{title}: {count:,} {ANIMATIONS[count > 1]}")] if count else []


# classes --------------------------------------------------------------------------------------------------------------


def _class_warnings(found: Labelled) -> list[Warned]:
    counts = count_classes(found.labels, len(found.classes))
    empty = [] if found.is_part else [name for name, n in zip(found.classes, counts.tolist(), strict=False) if not n]
    return [
        *_look_alike(found.classes),
        *warning("{} like a missing value", "class is called", "classes are called",
                 [name for name in found.classes if name.strip().lower() in _MISSING]),
        *warning("{} like a folder for images without labels, but trained as a class like the others", "class is called",
                 "classes are called", [name for name in found.classes if _plain(name) in _UNLABELLED]),
        *warning("{} no images", "class has", "classes have", empty),
    ]  # fmt: skip


def _look_alike(classes: Sequence[str]) -> list[Warned]:
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_plain(name), []).append(name)
    pairs = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    text = "{} only in case, spaces, width, look-alike letters or how a number is written, and are trained as different classes"
    return warning(text, "pair of class names differs", "groups of class names differ", pairs)


def _plain(name: str) -> str:
    """Return a class name without case, spaces, width and alphabet. Numbers are compared by value."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())
    if NUMBER.fullmatch(text):
        return str(float(text.replace(",", ".")))
    return text.translate(_LOOK_ALIKE) if any(c > "\x7f" for c in text) else text


def _missing_classes(train: Labelled, val: Labelled) -> list[Warned]:
    if val.is_part:
        return []
    own, theirs = (count_classes(found.labels, len(train.classes)) for found in (train, val))
    lacking = [name for k, name in enumerate(train.classes) if own[k] and not theirs[k]]
    them = "it" if len(lacking) == 1 else "them"
    text = f"{{}} no validation images, so nothing is said about {them}"
    return warning(text, "class has", "classes have", lacking, ACCURACY)


# the same images ------------------------------------------------------------------------------------------------------


def _same_image_warnings(found: Labelled) -> list[Warned]:
    if found.contents is None:
        return []
    ordered = np.sort(found.contents)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    images = np.flatnonzero(np.isin(found.contents, repeated)) if len(repeated) else np.zeros(0, np.int64)
    first: dict[int, int] = {}
    differ = set()
    for i in images.tolist():
        earliest = first.setdefault(int(found.contents[i]), i)
        if not np.array_equal(found.labels[i], found.labels[earliest]) and found.is_image(earliest):
            differ.add(earliest)
    return warning("{} in several classes", "image appears", "images appear", _names(found, sorted(differ)))


def _shared_images(train: Labelled, val: Labelled) -> list[Warned]:
    if train.contents is None or val.contents is None:
        return []
    shared = np.flatnonzero(np.isin(val.contents, train.contents))
    one, several = "validation image is also a training image", "validation images are also training images"
    return warning("{}, so accuracy will be too high", one, several, _names(val, shared.tolist()), ACCURACY)


def _shared_groups(train: Labelled, val: Labelled) -> list[Warned]:
    ours, theirs = (set(found.groups or ()) - {""} for found in (train, val))
    text = "{} both training and validation images, so accuracy will be too high"
    return warning(text, "group has", "groups have", sorted(ours & theirs), ACCURACY)


def _names(found: Labelled, images: Sequence[int]) -> list[str]:
    if not images:
        return []
    names = found.names()
    return [names[i] for i in images]


def warning(text: str, one: str, several: str, names: Sequence[str], about: About = IMAGES) -> list[Warned]:
    """Return no warning, or one that counts the names and lists the first. text: has a place for the number."""
    counted = f"{len(names):,} {one if len(names) == 1 else several}"
    return [Warned(f"{text.format(counted)}: {listing(names)}", about)] if names else []


def listing(names: Sequence[str]) -> str:
    """List the first LISTED names, and count the others."""
    rest = f", ... {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(map(printable, names[:LISTED])) + rest
