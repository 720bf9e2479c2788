"""A file's or a model's classes, and the only rule by which two class lists are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from beton_tools.base.errors import UserError

BY_POSITION = (
    "If you know that equal labels mean the same classes, set data.classes_by_position "
    "(fastft eval: --classes-by-position)"
)


@dataclass(frozen=True)
class Classes:
    """The classes by label.

    Attributes:
        names: Readable names. Several classes may share one, as ImageNet's two cranes do.
        ids: What tells the classes apart: WordNet ids or folder names. None if they are not known, as for models from
            earlier versions and for files without a manifest.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None

    @classmethod
    def of(cls, names: Iterable[str], ids: Iterable[str] | None = None) -> Classes:
        return cls(tuple(names), None if ids is None else tuple(ids))

    @classmethod
    def of_labels(cls, labels: Iterable[str], ids: Iterable[str] | None) -> Classes:
        """Return the classes whose `labels` were stored, with their ids."""
        if ids is None:
            return cls.of(labels)
        own = tuple(ids)
        return cls(tuple(label.removesuffix(f" ({i})") for label, i in zip(labels, own, strict=True)), own)

    @classmethod
    def unnamed(cls, count: int) -> Classes:
        """Return `count` classes that only have numbers, as in a file without a manifest."""
        return cls(tuple(f"class {k}" for k in range(count)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_named(self) -> bool:
        """False if every name is made up from its label, by `unnamed` or on converting shards without names."""
        return not all(map(_is_made_up, self.names, range(len(self))))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names, each followed by its class's id where several classes share the name: "crane (n02012849)"."""
        if self.ids is None:
            return self.names
        counts = Counter(self.names)
        return tuple(
            name if counts[name] == 1 or name == own else f"{name} ({own})"
            for name, own in zip(self.names, self.ids, strict=True)
        )

    def rows_in(self, others: Classes) -> list[int | None]:
        """Return, for each class, its label in `others`: by id, then by name. None if it is not there.

        A name or id that several classes share says nothing, unless both lists have the same ones in the same order.
        """
        if self.names == others.names if None in (self.ids, others.ids) else self.ids == others.ids:
            return list(range(len(self)))
        by_id = {} if others.ids is None else _unique(others.ids)
        by_name = _unique(others.labels) | _unique(others.names)
        own_unique = _unique(self.names)
        rows: list[int | None] = []
        for k, (name, label) in enumerate(zip(self.names, self.labels, strict=True)):
            row = None if self.ids is None else by_id.get(self.ids[k])
            if row is None and (label != name or name in own_unique):
                row = by_name.get(label)
            if row is None and self.ids is not None:
                row = by_name.get(self.ids[k])  # what is an id here may be a name there
            if row is None and name in own_unique:
                row = by_id.get(name)
            rows.append(row)
        return rows


def compare_classes(
    classes: Classes,
    expected: Classes,
    where: str,
    other: str,
    advice: str,
    *,
    by_position: bool = False,
    outputs: int | None = None,
) -> str:
    """Compare two class lists label by label: by id, then by name.

    Where one side has no names, labels are compared as numbers. Then `classes` must not be shorter than `expected`: a
    file that has only some of the classes, numbered on its own, has other labels.

    Args:
        where, other: What has `classes` and `expected`, for messages.
        advice: Ends the message, as a sentence without its full stop.
        by_position: Whether equal labels mean the same classes, whatever their names (the user's choice).
        outputs: How many classes are accepted, if the model has outputs beyond `expected`.

    Returns:
        A sentence if labels are compared as numbers although one side has names, otherwise "".

    Raises:
        UserError: A class differs or is missing, or there are too many.
    """
    most = max(len(expected), outputs or 0)
    if len(classes) > most:
        raise UserError(f"{where} has {len(classes)} classes, but {other} has {most}. {advice}")
    rows = classes.rows_in(expected)[: len(expected)]
    changed = [label for label, row in enumerate(rows) if row != label]
    is_shorter = len(classes) < len(expected)
    if not changed and (not is_shorter or _are_numbers(classes)):
        return ""
    label = changed[0] if changed else len(classes)
    have = classes.labels[label] if label < len(classes) else "missing"
    difference = f"class {label} is {have}, but in {other} it is {expected.labels[label]}"
    if by_position:
        return f"{where}: {difference}. The labels are taken as they are, because of classes_by_position"
    if (classes.is_named and expected.is_named) or any(row is not None for row in map(rows.__getitem__, changed)):
        raise UserError(f"{where}: {difference}. {advice}")
    if is_shorter:
        raise UserError(
            f"{where} has labels for {len(classes)} classes, but {other} has {len(expected)}. One of them has no class names, so "
            f"a label may mean another class. {advice}"
        )
    if not classes.is_named and not expected.is_named:
        return ""
    nameless, named = (other, where) if classes.is_named else (where, other)
    return f"{nameless} has no class names, so its labels are taken as the class numbers in {named}"


def _are_numbers(classes: Classes) -> bool:
    """Return True if the classes are called 0, 1, 2, ... by a manifest, so that each label is its own name."""
    return all(name == str(label) for label, name in enumerate(classes.names))


def _unique(names: Sequence[str]) -> dict[str, int]:
    counts = Counter(names)
    return {name: label for label, name in enumerate(names) if counts[name] == 1}


def _is_made_up(name: str, label: int) -> bool:
    return name in (f"class {label}", str(label))
