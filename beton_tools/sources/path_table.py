"""CSV and parquet tables: a column of image paths or images, a column of labels, and optional split and group columns."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.base.names import Names
from beton_tools.base.user_files import open_user_file, read_user_file
from beton_tools.sources.base import FileSource
from beton_tools.sources.remote import RemoteError, SourcePath
from beton_tools.sources.remote_files import open_source_file

CSV_SUFFIXES = (".csv", ".tsv")
MAX_BYTES = 1 << 30  # of a CSV file, or of the text of a parquet file: ten million rows
# in order of preference, compared without case; as in AutoGluon, Hugging Face's imagefolder, fastai and Kaggle's tables
PATH_COLUMNS = ("image_path", "file_name", "filepath", "path", "filename", "file", "image", "ImageId")
# the last one is CIFAR-100's, which has coarse labels too
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
_YES, _NO = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "")


@dataclass(frozen=True)
class Columns:
    """Optional columns of a table, one value per row: the split ("train", "val" or "test"), and the group."""

    splits: list[str] | None = None
    groups: list[str] | None = None


def is_csv(path: Path) -> bool:
    return path.suffix.lower() in CSV_SUFFIXES


def table_source(files: Sequence[Path], classes: Sequence[str] | None = None) -> tuple[FileSource, Columns]:
    """The images that a table lists by path, relative to the table's folder, in the order of its rows.

    classes: class list that the labels index; None takes the labels of the table, numbers in numeric order.

    Raises:
        UserError: the table cannot be read, lacks a column, has an empty cell, or a label that is not in `classes`.
    """
    root = Path(os.path.realpath(files[0].parent))  # absolute cells may be below it by another link
    paths: list[str] = []
    labels: list[str] = []
    columns: list[Columns] = []
    for path in files:
        table = _read_csv(path) if is_csv(path) else _read_parquet(path)
        paths += [_below(root, path, cell) for cell in _cells(path, table, PATH_COLUMNS, "image path")]
        labels += _labels(path, table)
        columns.append(_optional_columns(path, table))
    if not paths:
        raise UserError(f"{files[0]}: the table has no rows; give one that lists images")
    numbers, classes = number_labels(files[0], labels, classes)
    source = FileSource("table", root, tuple(classes), None, numbers, Names.of(paths))
    return source, _joined(columns)


def parquet_columns(files: Sequence[Path]) -> Columns:
    """The split and group columns of parquet files that hold the images themselves."""
    return _joined([_optional_columns(path, _read_parquet(path)) for path in files])


def number_labels(
    source: SourcePath, labels: Sequence[str], classes: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """(class numbers int64 (N,), class names): numbered as in `classes`, or in sorted order.

    source: the file or folder of the labels, for the error message.

    Raises:
        UserError: a label is not in `classes`.
    """
    found = sort_labels(set(labels))
    names = found if classes is None else list(classes)
    position = {name: label for label, name in enumerate(names)}
    unknown = [name for name in found if name not in position]
    if unknown:
        raise UserError(
            f"{source}: label {unknown[0]!r} is not one of the {len(names)} training classes; correct it"
        )
    return np.array([position[label] for label in labels], np.int64), names


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Class names in order: alphabetically; numbers by their value, before other names."""
    return sorted(labels, key=lambda text: (not _is_number(text), int(text) if _is_number(text) else 0, text))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18  # digits of an int64


# reading ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """columns: name -> cells, as text. rows: the number of each row in the file, for messages; that of its last line in a CSV."""

    columns: dict[str, list[str]]
    rows: Sequence[int]


def _read_csv(path: Path) -> Table:
    data = read_user_file(path, MAX_BYTES, "a CSV table")
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
    text = data.decode("utf-16" if is_utf16 else "utf-8-sig", "replace" if is_utf16 else "surrogateescape")
    first_line = text.lstrip("\r\n").partition("\n")[0]
    if not first_line:
        raise UserError(f"{path}: the table is empty; give one whose first line names the columns")
    delimiter = max(",;\t", key=first_line.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        numbered = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); correct it") from None
    header = [name.strip() for name in numbered.pop(0)[1]]
    _refuse_ambiguous(path, header)
    for number, row in numbered:
        if len(row) != len(header):
            raise UserError(
                f"{path}, row {number}: {len(row)} cells, but the first line names {len(header)} columns; correct it"
            )
    columns = {name: [row[k].strip() for _, row in numbered] for k, name in enumerate(header)}
    return Table(columns, [number for number, _ in numbered])


def _refuse_ambiguous(path: SourcePath, names: Sequence[str]) -> None:
    """Raise UserError if several columns have the name of one that is used, compared without case."""
    lower = [name.lower() for name in names]
    for wanted in (PATH_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS, GROUP_COLUMNS):
        name = find_column(names, wanted)
        if name is not None and (count := lower.count(name.lower())) > 1:
            raise UserError(f"{path}: {count} columns are named {name}; rename all but one")


def read_schema(path: SourcePath) -> Any:
    """The Arrow schema of a parquet file.

    Raises:
        UserError: it cannot be read as parquet, or has several columns of the same name.
    """
    import pyarrow.parquet as pq

    with open_source_file(path, "a .parquet file", read_ahead=False) as file:
        try:
            schema = pq.ParquetFile(file).schema_arrow
        except RemoteError:
            raise
        except Exception as error:  # pyarrow raises many types on damaged files
            raise _damaged(path, error) from error
    _refuse_ambiguous(path, schema.names)
    return schema


def _read_parquet(path: Path) -> Table:
    """The columns that may be used, as text; those of images are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = (*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS, *GROUP_COLUMNS)
    usable = {name.lower() for name in named}
    schema = read_schema(path)
    chosen = [f.name for f in schema if f.name.lower() in usable and not pa.types.is_nested(f.type)]
    chosen = [name for name in chosen if not pa.types.is_binary(schema.field(name).type)]
    shared = [name for name in chosen if is_text(schema.field(name).type)]
    with open_user_file(path, "a .parquet file") as file:
        try:
            refuse_too_many_rows(path, file)
            refuse_too_much_text(path, file, shared)
            table = pq.ParquetFile(file).read(columns=chosen)
            cells = {name: table.column(name).to_pylist() for name in chosen}
        except UserError:
            raise
        except Exception as error:
            raise _damaged(path, error) from error
    texts = {name: [_text(value) for value in values] for name, values in cells.items()}
    return Table(texts, range(2, table.num_rows + 2))


def _text(value: Any) -> str:
    """A cell as text; empty for null and for NaN, which pandas writes for it."""
    return "" if value is None or value != value else str(value).strip()


def is_text(kind: Any) -> bool:
    """Return True for Arrow's types of text, also as a dictionary, such as pandas' categories."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def refuse_too_many_rows(path: SourcePath, opened: BinaryIO) -> None:
    """Raise UserError if a parquet file has more rows than bytes: run-length encoding can claim billions in a few bytes."""
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(opened).metadata.num_rows
    if rows > opened.seek(0, os.SEEK_END):
        raise UserError(f"{path}: damaged parquet file, it cannot have {rows} rows; download it again")


def refuse_too_much_text(path: SourcePath, opened: BinaryIO, columns: Sequence[str]) -> None:
    """Raise UserError if text that a parquet file stores once and refers to in many rows is too large in all of them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file, total = pq.ParquetFile(opened, read_dictionary=list(columns)), 0
    for name, group in product(columns, range(file.num_row_groups)):  # each row group has its dictionary
        values = file.read_row_group(group, columns=[name]).column(0)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, 0)
        for chunk in values.chunks:
            lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
            total += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    if total > MAX_BYTES:
        raise UserError(
            f"{path}: {total:,} bytes of text in {', '.join(columns)}; the limit is {MAX_BYTES:,}, split the file"
        )


def _damaged(path: SourcePath, error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
    return UserError(f"{path}: cannot be read as parquet ({reason}); write it again")


# columns ----------------------------------------------------------------------------------------------------------------


def find_column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first of the wanted columns that there is, compared without case."""
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[w.lower()] for w in wanted if w.lower() in by_lower), None)


def _cells(path: Path, table: Table, wanted: Sequence[str], what: str) -> list[str]:
    name = find_column(table.columns, wanted)
    if name is None:
        raise UserError(
            f"{path}: no {what} column among {', '.join(table.columns)}; name it one of {', '.join(wanted)}"
        )
    cells = table.columns[name]
    if "" in cells:
        raise UserError(
            f"{path}, row {table.rows[cells.index('')]}: no {name}; fill the cell, or remove the row"
        )
    return cells


def _labels(path: Path, table: Table) -> list[str]:
    cells = _cells(path, table, LABEL_COLUMNS, "label")
    for row, cell in zip(table.rows, cells, strict=True):
        if not _is_utf8(cell):
            raise UserError(f"{path}, row {row}: the label is not UTF-8 text; save the table as UTF-8")
    return cells


def _is_utf8(text: str) -> bool:
    """Return True if the text can be encoded as UTF-8: it has no surrogates, which stand for undecodable bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(root: Path, table: Path, cell: str) -> str:
    """A path of the table `table`, relative to `root`."""
    if "://" in cell:
        raise UserError(f"{table}: {cell} is a URL; download the images, and list the paths of their files")
    return os.path.relpath(Path(os.path.realpath(table.parent)) / cell, root)


def _optional_columns(path: Path, table: Table) -> Columns:
    columns = table.columns
    split, group = find_column(columns, SPLIT_COLUMNS), find_column(columns, GROUP_COLUMNS)
    splits = [] if split is None else zip(table.rows, columns[split], strict=True)
    return Columns(
        None if split is None else [_split_of(path, split, row, cell) for row, cell in splits],
        None if group is None else columns[group],
    )


def _split_of(path: Path, column: str, row: int, cell: str) -> str:
    value = cell.lower()
    if column.lower() == "is_valid":
        if value in (*_YES, *_NO):
            return "val" if value in _YES else "train"
        raise UserError(f"{path}, row {row}: is_valid is {cell!r}; write true or false")
    for split, values in SPLIT_VALUES.items():
        if value in values:
            return split
    raise UserError(f"{path}, row {row}: {column} is {cell!r}; write train, val or test")


def _joined(columns: Sequence[Columns]) -> Columns:
    """The columns of several files one after another; a column counts only if every file has it."""
    splits, groups = [c.splits for c in columns], [c.groups for c in columns]
    return Columns(
        None if None in splits else [cell for part in splits for cell in part or ()],
        None if None in groups else [cell for part in groups for cell in part or ()],
    )
