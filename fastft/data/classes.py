"""Whether label k of a file is output k of a model."""

from collections.abc import Sequence
from pathlib import Path

from beton_tools.errors import UserError


def name_outputs(classes: Sequence[str], outputs: int) -> list[str]:
    """A name for every output of a head: the training file's classes, which may be fewer, then made-up ones."""
    return [*classes, *(f"class {k}" for k in range(len(classes), outputs))]


def refuse_other_classes(found: Sequence[str], expected: Sequence[str], path: str | Path) -> None:
    """Compare the classes of the file `path` with a model's, label by label.

    A file without a manifest has made-up names, and no more labels than it uses: only their number is compared.

    Raises:
        UserError: more classes than expected, or the first that differs or is missing.
    """
    if len(found) > len(expected):
        raise UserError(
            f"{path} has {len(found)} classes, the model {len(expected)}; give a file with the model's classes"
        )
    if all(_made_up(name, label) for label, name in enumerate(found)):
        return
    for label, want in enumerate(expected):
        have = found[label] if label < len(found) else "missing"
        if have != want and not _made_up(want, label):
            raise UserError(
                f"{path}: class {label} is {have}, the model's is {want}; give a file with the model's classes in its order"
            )


def _made_up(name: str, label: int) -> bool:
    """By the loader where there is no manifest, or by conversion from shards that only hold numbers."""
    return name in (f"class {label}", str(label))
