"""Image tables, and CSV files.

A table has a column with paths or images, a label column, and optional split and group columns.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.names import Names, composed
from beton_tools.base.user_files import read_user_file
from beton_tools.sources.base import (
    FileSource,
    KnownClasses,
    are_positions,
    check_classes,
    labels_of,
    note_numbers,
    sort_labels,
)
from beton_tools.sources.remote import SourcePath

CSV_SUFFIXES = (".csv", ".tsv")
MAX_TABLE_BYTES = 1 << 30  # per CSV file, or for the text in a parquet file: ten million rows
# In order of preference, ignoring case. AutoGluon, Hugging Face's imagefolder, fastai and Kaggle's tables use these names.
PATH_COLUMNS = ("image_path", "file_name", "filepath", "path", "filename", "file", "image", "ImageId")
# the last name is CIFAR-100's, which has coarse labels too
LABEL_COLUMNS = (
    *("label", "target", "class", "class_name", "category", "cls"),
    *("labels", "label_id", "class_id", "category_id", "fine_label"),
)
SPLIT_COLUMNS = ("split", "is_valid")
GROUP_COLUMNS = ("group", "group_id")
SPLIT_VALUES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# number columns that are not labels
_NUMBERS = ("id", "index", "image_id", "img_id", "__index_level_0__", "width", "height")
NO_CLASSES = {name.lower() for name in (*PATH_COLUMNS, *SPLIT_COLUMNS, *GROUP_COLUMNS, *_NUMBERS)}
SEPARATOR = ";"  # between an image's labels
MAX_SETS = 1 << 32  # rows x classes, one byte each
_SHOWN = 8  # column names per line
_IS_VALID = {"val": ("true", "1", "1.0", "yes"), "train": ("false", "0", "0.0", "no", "")}
_UNKNOWN = {"-1", "-1.0", "nan", "na", "n/a", "?"}  # in a column for one class
_KNOWN = {word for words in _IS_VALID.values() for word in words}
_FLAGS = _KNOWN | _UNKNOWN


def is_csv(path: Path) -> bool:
    return path.suffix.lower() in CSV_SUFFIXES


@dataclass(frozen=True)
class Table:
    """A table's cells, and how its columns are used.

    Attributes:
        columns: name -> cells, as text.
        rows: Each row's number in the file, for messages. In a CSV it is the number of the row's last line.
        lists: Each row's labels, from a column whose cells are lists.
        names: All column names in the file.
        roles: "image" or "label" for columns whose names do not tell.
    """

    path: Path
    columns: dict[str, list[str]]
    rows: Sequence[int]
    names: Sequence[str]
    lists: list[list[str]] | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

    def cells(self, wanted: Sequence[str], what: str) -> list[str]:
        """Return the cells of the first wanted column that exists.

        Raises UserError if none exists, or if a cell is empty.
        """
        name = find_column(self.columns, wanted)
        if name is None:
            almost = self._almost_flag() if wanted == LABEL_COLUMNS else ""
            raise UserError(
                f"{self.path}: no {what} column among {', '.join(self.columns)}{almost}. Name it one of {', '.join(wanted)}"
            )
        return self._filled(name)

    def _almost_flag(self) -> str:
        """Describe the first cell that keeps a column from being read as one class's column.

        "" if there is none.
        """
        for name, cells in self.columns.items():
            if name.lower() not in NO_CLASSES and any(cell.lower() in _FLAGS for cell in cells):
                for row, cell in zip(self.rows, cells, strict=True):
                    if cell.lower() not in _FLAGS:
                        return f", and {name} is not one class's column with only 0 and 1 (row {row} is {cell!r})"
        return ""

    def _filled(self, name: str) -> list[str]:
        cells = self.columns[name]
        if "" in cells:
            raise UserError(
                f"{self.path}, row {self.rows[cells.index('')]}: no {name}. Fill the cell, or remove the row"
            )
        return cells

    @cached_property
    def flags(self) -> dict[str, list[str]]:
        """Class -> its cells with 0 and 1, if every class has a column. It is empty if there is a label column."""
        if find_column(self.names, LABEL_COLUMNS) is not None:
            return {}
        likely = {n: cells for n, cells in self.columns.items() if n.lower() not in NO_CLASSES and any(cells)}
        flags = {n.strip(): self._filled(n) for n, cells in likely.items() if _are_flags(cells)}
        if len(flags) < 2:
            return {}
        for n, cells in flags.items():
            if unknown := [(row, c) for row, c in zip(self.rows, cells, strict=True) if c.lower() not in _KNOWN]:
                row, cell = unknown[0]
                raise UserError(
                    f"{self.path}, row {row}: {n} is {cell!r}, neither 0 nor 1. Correct it, or remove the row"
                )
        return flags

    def describe(self) -> str:
        """Describe on one line how each column was read."""
        usual = {"image": PATH_COLUMNS, "label": LABEL_COLUMNS, "split": SPLIT_COLUMNS, "group": GROUP_COLUMNS}
        role_of: dict[str | None, str] = {find_column(self.names, names): role for role, names in usual.items()}
        if "image" in self.roles.values():  # a path column beside images is not used
            role_of.pop(find_column(self.names, PATH_COLUMNS), None)
        role_of.update(self.roles)
        parts = [f"{role_of[name]} from {name!r}" for name in self.names if name in role_of]
        parts += [f"{len(self.flags)} classes from {_first_of(list(self.flags))}"] * bool(self.flags)
        others = [n for n in self.names if n not in role_of and n.strip() not in self.flags]
        return f"columns: {', '.join(parts)}" + (f", not used: {_first_of(others)}" if others else "")

    def labels(self) -> list[str]:
        cells = self.cells(LABEL_COLUMNS, "label")
        for row, cell in zip(self.rows, cells, strict=True):
            if not _is_utf8(cell):
                raise UserError(f"{self.path}, row {row}: the label is not UTF-8 text. Save the table as UTF-8")
        return cells

    def label_sets(self, known: Collection[str] = (), single: bool = False) -> list[list[str]] | None:
        """Return each row's labels, if rows may have several. Otherwise return None.

        Several labels come from lists, from cells such as "cat;dog", or from columns with 0 and 1 for each class. A
        cell that is in `known` is one label, even with a semicolon. With `single`, this holds for every cell.
        """
        name = find_column(self.columns, LABEL_COLUMNS)
        if self.lists is not None:
            return self.lists
        if name is not None:
            cells = self.columns[name]
            if single:
                return None
            split = [[c] if c in known else [label.strip() for label in c.split(SEPARATOR)] for c in cells]
            return [list(filter(None, labels)) for labels in split] if max(map(len, split), default=0) > 1 else None
        truths = [[cell.lower() in _IS_VALID["val"] for cell in cells] for cells in self.flags.values()]
        return [[n for n, has in zip(self.flags, row, strict=True) if has] for row in zip(*truths, strict=True)] or None


def _are_flags(cells: Sequence[str]) -> bool:
    """Return True if more than half of the cells are valid in one class's column.

    The others are mistakes to report.
    """
    return 2 * sum(cell.lower() in _FLAGS for cell in cells) > len(cells)


def _first_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def path_source(tables: Sequence[Table], classes: Sequence[str] | None = None, single: bool = False) -> FileSource:
    """Open the images that tables list by path, relative to the first table's folder, in row order.

    Args:
        classes: Class list that the labels index. None uses the labels in the tables, with numbers in numeric order.
        single: Whether a label cell such as "cat;dog" is one class name.
    """
    first = tables[0].path
    root = Path(os.path.realpath(first.parent))  # absolute cells may be below it by another link
    paths = [_below(root, t.path, cell) for t in tables for cell in t.cells(PATH_COLUMNS, "image path")]
    if not paths:
        raise UserError(f"{first}: the table has no rows. Give one that lists images")
    numbers, names = number_label_sets(first, tables, classes, single) or number_labels(
        first, [label for table in tables for label in table.labels()], classes
    )
    reading, columns = describe_reading(tables, numbers), describe_columns(tables)
    images, table = Names.of(paths), str(first)
    return FileSource(
        "table", root, names, None, numbers, images, reading=reading, columns=columns, listed_in=table,
        groups=groups_of(tables),
    )  # fmt: skip


def describe_columns(tables: Sequence[Table]) -> str:
    """Describe how the columns were read. If the tables' columns differ, each way is described once."""
    return "; ".join(dict.fromkeys(table.describe() for table in tables))


def number_labels(
    source: SourcePath, labels: Sequence[str], classes: Sequence[str] | None, columns: Iterable[str] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number labels as in `classes`, or in sorted order together with the names in `columns`.

    Args:
        source: The file or folder that contains the labels, for the error message.

    Returns:
        Class numbers, int64 (N,), and class names.
    """
    written = {label: composed(label) for label in (*labels, *columns)}
    used = {written[label] for label in labels} | ({*written.values()} if classes is None else set())
    names = check_classes(source, sort_labels(used), classes, "Correct it")
    position = labels_of(names)
    return np.array([position[written[label]] for label in labels], np.int64), tuple(names)


def number_by_name(
    source: SourcePath, labels: np.ndarray, own: Sequence[str] | None, classes: Sequence[str] | None
) -> np.ndarray:
    """Convert labels that are numbers to class numbers in `classes`, int64 (N,).

    Labels with names are matched by these. Only if they have none, or if the user says so, the numbers themselves are
    taken as class numbers in `classes`.

    Args:
        own: The labels' names. None means that the numbers are the names.

    Raises:
        UserError: A name is not in `classes`.
    """
    if classes is None or (own is not None and list(own) == list(classes)):
        return labels
    if isinstance(classes, KnownClasses) and classes.by_position:
        classes.notes.append(f"{source}: the labels are taken as the given classes' numbers, as you say")
        return labels
    used = labels.tolist() if own is None or labels.max(initial=-1) >= len(own) else [own[k] for k in labels.tolist()]
    names = list(map(str, used))
    if own is None and are_positions(names, classes):
        note_numbers(source, classes)
        return labels
    try:
        return number_labels(source, names, classes)[0]
    except UserError as error:
        raise UserError(f"{error}, or pass --classes-by-position if the numbers mean the same classes") from None


def number_label_sets(
    source: SourcePath, tables: Sequence[Table], classes: Sequence[str] | None, single: bool
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Do the same as `number_labels` for rows with several labels.

    Returns:
        uint8 (N, K) and class names, or None if every table has one label per row.
    """
    known = frozenset() if classes is None else labels_of(classes).keys()
    by_table = [table.label_sets(known, single) for table in tables]
    if all(sets is None for sets in by_table):
        return None
    of_tables = zip(tables, by_table, strict=True)
    sets = [
        labels for t, own in of_tables for labels in (own if own is not None else ([label] for label in t.labels()))
    ]
    labels = [label for labels in sets for label in labels]
    if not all(map(_is_utf8, set(labels))):
        raise UserError(f"{source}: a label is not UTF-8 text. Save the table as UTF-8")
    numbers, names = number_labels(source, labels, classes, (name for table in tables for name in table.flags))
    _refuse_missing_flags(tables, names)
    if not labels:
        raise UserError(f"{source}: no image has a label. Give each class images, or remove its column")
    if len(sets) * len(names) > MAX_SETS:
        raise UserError(
            f"{source}: {len(sets):,} x {len(names):,} labels, but the limit is {MAX_SETS:,}. Split the table"
        )
    has = np.zeros((len(sets), len(names)), np.uint8)
    has[np.repeat(np.arange(len(sets)), list(map(len, sets))), numbers] = 1
    return has, names


def _refuse_missing_flags(tables: Sequence[Table], names: Sequence[str]) -> None:
    """Raise UserError if a table has columns of 0 and 1, but none for one of the classes: its images may show that class."""
    position = labels_of(names)
    for table in tables:
        has = {position.get(composed(name)) for name in table.flags}
        missing = [name for k, name in enumerate(names) if k not in has]
        if table.flags and missing:
            raise UserError(
                f"{table.path}: no column of 0 and 1 for {_first_of(missing)}. Add the column, with 0 for images that do not "
                "show this class"
            )


def describe_reading(tables: Sequence[Table], labels: np.ndarray) -> str:
    """Explain in a sentence why label cells give several labels.

    It is "" if no cell has a semicolon, or if `labels` has one label per image.
    """
    names = [find_column(table.columns, LABEL_COLUMNS) for table in tables]
    cells = [cell for table, name in zip(tables, names, strict=True) if name for cell in table.columns[name]]
    joined = [cell for cell in cells if SEPARATOR in cell]
    if not joined or labels.ndim == 1:
        return ""
    share = f"{len(joined):,} of {len(cells):,} label cells"
    return f"{share} have a semicolon, such as {joined[0][:60]!r}: read as several labels per image"


def read_csv(path: Path) -> Table:
    data = read_user_file(path, MAX_TABLE_BYTES, "a CSV table")
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
    text = data.decode("utf-16" if is_utf16 else "utf-8-sig", "replace" if is_utf16 else "surrogateescape")
    first_line = text.lstrip("\r\n").partition("\n")[0]
    if not first_line:
        raise UserError(f"{path}: the table is empty. Give one whose first line names the columns")
    delimiter = max(",;\t", key=first_line.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        numbered = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}). Correct it") from None
    header = [name.strip() for name in numbered.pop(0)[1]]
    refuse_ambiguous(path, header)
    for number, row in numbered:
        if len(row) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(row)} cells, but the first line names {len(header)} columns. Correct it"
            )
    columns = {name: [row[k].strip() for _, row in numbered] for k, name in enumerate(header)}
    return Table(path, columns, [number for number, _ in numbered], header)


def refuse_ambiguous(path: SourcePath, names: Sequence[str]) -> None:
    """Raise UserError if a column that is used shares its name with another column, ignoring case.

    Where columns stand for classes, names that differ in case are different.
    """
    lower = [name.lower() for name in names]
    if find_column(names, LABEL_COLUMNS) is None:  # then a column may be a class
        stripped = Counter(composed(name.strip()) for name in names if name.strip().lower() not in NO_CLASSES)
        for twice in [name for name, count in stripped.items() if count > 1]:
            raise UserError(f"{path}: {stripped[twice]} columns are named {twice}. Rename all but one")
    for wanted in (PATH_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS, GROUP_COLUMNS):
        name = find_column(names, wanted)
        if name is not None and (count := lower.count(name.lower())) > 1:
            raise UserError(f"{path}: {count} columns are named {name}. Rename all but one")


# columns ----------------------------------------------------------------------------------------------------------------


def find_column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the first wanted column that exists, ignoring case."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[w.lower()] for w in wanted if w.lower() in by_lower), None)


def _is_utf8(text: str) -> bool:
    """Return True if the text can be encoded as UTF-8. Surrogates, which stand for undecodable bytes, cannot be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(root: Path, table: Path, cell: str) -> str:
    """Return a path from the table `table`, relative to `root`."""
    if "://" in cell:
        raise UserError(f"{table}: {cell} is a URL. Download the images, and list their paths")
    place = Path(os.path.realpath(table.parent)) / cell
    if ".." in place.parts:  # after a link to a folder, this is not the folder before it
        place = Path(os.path.realpath(place.parent)) / place.name
    return os.path.relpath(place, root)


def splits_of(tables: Sequence[Table]) -> list[str] | None:
    """Return each row's split: "train", "val" or "test". None unless every table has a split column."""
    columns = _in_every(tables, SPLIT_COLUMNS)
    if columns is None:
        return None
    return [
        _split_of(table.path, name, row, cell)
        for table, name in zip(tables, columns, strict=True)
        for row, cell in zip(table.rows, table.columns[name], strict=True)
    ]


def groups_of(tables: Sequence[Table]) -> Names | None:
    """Return each row's group, "" for none. None unless every table has a group column."""
    columns = _in_every(tables, GROUP_COLUMNS)
    if columns is None:
        return None
    return Names.of(cell for table, name in zip(tables, columns, strict=True) for cell in table.columns[name])


def _in_every(tables: Sequence[Table], wanted: Sequence[str]) -> list[str] | None:
    names = [find_column(table.columns, wanted) for table in tables]
    found = [name for name in names if name is not None]
    return found if len(found) == len(names) else None


def _split_of(path: Path, column: str, row: int, cell: str) -> str:
    is_valid = column.lower() == "is_valid"
    for split, values in (_IS_VALID if is_valid else SPLIT_VALUES).items():
        if cell.lower() in values:
            return split
    wanted = "true or false" if is_valid else "train, val or test"
    raise UserError(f"{path}, row {row}: {column} is {cell!r}. Write {wanted}")
