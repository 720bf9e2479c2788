"""Class names and templates: the texts that a zero-shot classifier is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from beton_tools.read.manifest import Manifest
from beton_tools.sources.side_files import imagenet_wnids, is_wnid

Template = Callable[[str], str]  # a class name to a text
OPENAI, SIMPLE = "openai", "simple"  # open_clip's lists of 80 and of 7 templates for ImageNet
PLACE = "{}"  # of the class name, in a file of templates
MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Prompts:
    """names: of each class, by label. templates: each is applied to every name. The rest says where they come from."""

    names: list[str]
    templates: Sequence[Template]
    names_source: str
    templates_source: str


def read_prompts(
    data: Path, classes: Sequence[str], manifest: Manifest | None, names: Path | None, templates: str
) -> Prompts:
    """The prompts for the classes of a `.beton`.

    Args:
        data, classes, manifest: the file, its class names by label, and its manifest.
        names: a file with a class name on each line, in the order of labels; None: as `find_names`.
        templates: "openai", "simple", or a file with a template on each line, such as `a photo of a {}.`

    Raises:
        UserError: a file cannot be read or does not fit, or there are no names.
    """
    found, names_source = (
        (_lines(names, "a text file with a class name on each line"), str(names))
        if names is not None
        else find_names(data, manifest)
    )
    if len(found) != len(classes):
        raise UserError(
            f"{names_source} has {len(found)} class names, {data} has {len(classes)} classes; give one for each"
        )
    return Prompts(found, _templates(templates), names_source, templates)


def find_names(data: Path, manifest: Manifest | None) -> tuple[list[str], str]:
    """(class names for prompts, where they come from).

    ImageNet's classes have open_clip's names, which are OpenAI's; other wnids the first of WordNet's; all others the names of
    their folders, with spaces for underscores.

    Raises:
        UserError: the file has no class names.
    """
    if manifest is None or all(name == str(label) for label, name in enumerate(manifest.classes)):
        raise UserError(f"{data} has no class names; give --names FILE with one on each line")
    label_of = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    if all(name in label_of for name in manifest.classes):
        from open_clip import IMAGENET_CLASSNAMES  # takes seconds

        return [
            IMAGENET_CLASSNAMES[label_of[name]] for name in manifest.classes
        ], "open_clip's names of ImageNet's classes"
    labels = [manifest.class_label(label) for label in range(manifest.num_classes)]
    if manifest.class_names is not None and all(map(is_wnid, manifest.classes)):
        return [label.partition(",")[0] for label in labels], "the first names of the synsets"
    return [label.replace("_", " ") for label in labels], "the names of the folders"


def _templates(name: str) -> Sequence[Template]:
    if name in (OPENAI, SIMPLE):
        from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

        return OPENAI_IMAGENET_TEMPLATES if name == OPENAI else SIMPLE_IMAGENET_TEMPLATES
    lines = _lines(Path(name), f"{OPENAI}, {SIMPLE}, or a text file with a template on each line")
    wrong = next((line for line in lines if line.count(PLACE) != 1), None)
    if wrong is not None:
        raise UserError(
            f"{name}: template '{wrong[:60]}' must contain {PLACE} once, in the place of the class name"
        )
    return [partial(str.replace, line, PLACE) for line in lines]


def _lines(path: Path, expected: str) -> list[str]:
    """The lines of a text file without surrounding spaces; empty ones at its end are left out.

    Raises:
        UserError: it cannot be read, or has no line, or an empty one.
    """
    lines = [line.strip() for line in read_user_text(path, MAX_BYTES, expected).rstrip().splitlines()]
    if not lines or not all(lines):
        raise UserError(f"{path}: has an empty line or none at all; give {expected}")
    return lines
