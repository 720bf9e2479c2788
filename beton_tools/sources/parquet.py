"""Parquet files that list image paths, or hold images in the form that Hugging Face uses.

In this form, `image` is {bytes, path} and `label` is a class number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beton_tools.base.errors import UserError
from beton_tools.base.names import Names
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources.base import Source, check_labels, is_number, stamp_of
from beton_tools.sources.path_table import (
    GROUP_COLUMNS,
    LABEL_COLUMNS,
    MAX_TABLE_BYTES,
    NO_CLASSES,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    Table,
    describe_columns,
    describe_reading,
    find_column,
    groups_of,
    is_csv,
    number_by_name,
    number_label_sets,
    number_labels,
    path_source,
    read_csv,
    refuse_ambiguous,
)
from beton_tools.sources.remote import RemotePath, SourcePath, Stamp, map_files, open_source_file, source_path
from beton_tools.sources.side_files import class_names_of

MAX_LABELS = 1 << 27  # per file with several labels per row
IMAGE_COLUMNS = ("image", "img", "jpg")


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The image bytes in one row. Reading loads the whole row group. Each process caches the latest one.

    Attributes:
        stamp: The file's stamp when it was indexed.
    """

    path: str | RemotePath
    stamp: Stamp
    column: str
    row_group: int
    row: int

    @property
    def group(self) -> tuple[str | RemotePath, int]:
        return self.path, self.row_group

    def read(self) -> bytes:
        values = _read_row_group(self.path, self.stamp, self.column, self.row_group)
        with _one_line(self.path, OSError):
            return values[self.row].as_py() or b""


@lru_cache(maxsize=1)
def _read_row_group(path: str | RemotePath, stamp: Stamp, column: str, number: int) -> pa.ChunkedArray:
    with open_source_file(source_path(path), "a .parquet file", read_ahead=False, stamp=stamp) as file:
        if stamp_of(file) != stamp:
            raise OSError(f"{path} changed after it was indexed")
        with _one_line(path, OSError):
            values = pq.ParquetFile(file).read_row_group(number, columns=[column]).column(0)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
        if stamp_of(file) != stamp:
            raise OSError(f"{path} changed while it was being read")
    return values


@contextmanager
def _one_line(path: str | SourcePath, kind: type[Exception] = UserError) -> Iterator[None]:
    """Turn any exception into a one-line `kind`, because pyarrow raises many types for damaged files."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise kind(f"{path}: cannot be read as parquet ({reason}). Download it again") from error


@dataclass(frozen=True)
class ParquetSource(Source):
    """Rows of parquet files, in file order. Shuffled writing reads a whole row group for nearly every image.

    Attributes:
        file_stamps: Each file's stamp when it was indexed.
        column: Name of the image column.
        group_starts: int64 (G + 1,), the number of each row group's first row, counted over all files.
        group_files: int64 (G,), index into `files` for each row group.
        group_numbers: int64 (G,), each row group's number within its file.
    """

    files: tuple[str | RemotePath, ...]
    file_stamps: tuple[Stamp, ...]
    column: str
    group_starts: np.ndarray
    group_files: np.ndarray
    group_numbers: np.ndarray

    def locate(self, i: int) -> ParquetCell:
        group = int(np.searchsorted(self.group_starts, i, side="right")) - 1
        file, row = self.group_files[group], i - int(self.group_starts[group])
        return ParquetCell(self.files[file], self.file_stamps[file], self.column, int(self.group_numbers[group]), row)

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        groups = np.searchsorted(self.group_starts, chosen, side="right") - 1
        return np.array(self.file_stamps, np.int64)[self.group_files[groups]]


def open_tables(
    root: SourcePath, files: Sequence[SourcePath], classes: Sequence[str] | None = None, single: bool = False
) -> tuple[Source, list[Table]]:
    """Open the images in CSV or parquet files, in the given order. The tables are returned too, for `splits_of`.

    Args:
        single: Whether a label cell such as "cat;dog" is one class name.

    Raises:
        UserError: A file cannot be read, lacks an image column or a label column, or has unusable labels.
    """
    local = [path for path in files if isinstance(path, Path)]
    if local and all(map(is_csv, local)):
        tables = [read_csv(path) for path in local]
        return path_source(tables, classes, single), tables
    shards = list(map_files(_read_shard, files))
    tables = [shard.table for shard in shards]
    if all(shard.image_column is None for shard in shards):
        return path_source(tables, classes, single), tables
    columns = sorted({shard.image_column or "none" for shard in shards})
    if len(columns) > 1:
        raise UserError(f"{root}: the image column is named {' and '.join(columns)}. Give files from one dataset")
    labels, final = number_label_sets(root, tables, classes, single) or _number_labels(root, shards, classes)
    groups = [(f, g, rows) for f, shard in enumerate(shards) for g, rows in enumerate(shard.group_rows)]
    table = np.array(groups, np.int64).reshape(-1, 3)
    source = ParquetSource(
        "parquet",
        root,
        final,
        class_names_of(final, root),
        labels,
        Names.of(name for shard in shards for name in shard.names),
        tuple(path if isinstance(path, RemotePath) else str(path) for path in files),
        tuple(shard.stamp for shard in shards),
        columns[0],
        np.concatenate([[0], np.cumsum(table[:, 2])]),
        table[:, 0],
        table[:, 1],
        reading=describe_reading(tables, labels),
        columns=describe_columns(tables),
        groups=groups_of(tables),
    )
    return source, tables


def lists_paths(path: SourcePath) -> bool:
    """Return True if a parquet file lists image paths instead of holding images.

    Raises UserError if it cannot be read.
    """
    with open_source_file(path, "a .parquet file", read_ahead=False) as file, _one_line(path):
        return _lists_paths(pq.ParquetFile(file).schema_arrow)


# reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """One file, without its images.

    Attributes:
        table: The columns that may be used.
        image_column: None if the file lists paths. Then `names` is empty.
        labels: Class numbers, or None if `table` has the labels.
    """

    stamp: Stamp
    table: Table
    group_rows: list[int]
    image_column: str | None = None
    class_names: list[str] | None = None
    labels: np.ndarray | None = None
    names: Sequence[str] = ()

    def label_names(self) -> list[str]:
        """Return each row's class name, or its number if nothing names the classes."""
        if self.labels is None:
            return self.table.labels()
        names, numbers = self.class_names or (), self.labels.tolist()
        outside = max(numbers, default=-1)
        if names and outside >= len(names):
            raise UserError(
                f"{self.table.path}: label {outside}, but it names only {len(names)} classes. Correct the column"
            )
        return [names[k] for k in numbers] if names else list(map(str, numbers))


@dataclass(frozen=True)
class _Columns:
    """Which columns a file has, and what for, decided from its schema.

    Attributes:
        image: the image column. None if the file lists paths.
        label: the column with one label per row. None if `lists` or other columns in the table hold the labels.
        lists: the column with a list of labels per row.
        table: the columns that a CSV file could have too. The label is among them if it is text.
        texts: the text columns in `table`.
        image_path: the field with the images' paths.
    """

    image: str | None
    label: str | None
    lists: str | None
    table: list[str]
    texts: list[str]
    image_path: str | None

    @property
    def dictionaries(self) -> list[str]:
        """Columns that are read as a dictionary, so that equal cells share memory."""
        return [*self.texts, *filter(None, [self.image_path, self.lists and f"{self.lists}.list.element"])]


def _find_columns(path: SourcePath, schema: pa.Schema) -> _Columns:
    """Raises UserError if the image or the label column is missing or unusable."""
    lists, flags = _columns_of_sets(schema)
    usable, image, label, image_path = {*SPLIT_COLUMNS, *GROUP_COLUMNS, *flags}, None, None, None
    if _lists_paths(schema):
        usable |= {*LABEL_COLUMNS, *PATH_COLUMNS}
        named = None if lists else find_column(schema.names, LABEL_COLUMNS)
        if named is not None and _is_opaque(schema.field(named).type):
            raise _wrong_type(path, schema.field(named))
    else:
        image = _image_column(path, schema)
        label = None if lists or flags else _label_column(path, schema)
        image_path = f"{image}.path" if _has_paths(schema, image) else None
    table = [f.name for f in schema if {f.name, f.name.lower()} & usable and not _is_opaque(f.type)]
    if label is not None and _is_text(schema.field(label).type):
        table.append(label)
    texts = [name for name in table if _is_text(schema.field(name).type)]
    return _Columns(image, label, lists, table, texts, image_path)


def _read_shard(path: SourcePath) -> _Shard:
    with open_source_file(path, "a .parquet file", read_ahead=False) as opened, _one_line(path):
        stamp, schema = stamp_of(opened), pq.ParquetFile(opened).schema_arrow
        refuse_ambiguous(path, schema.names)
        if _lists_paths(schema) and isinstance(path, RemotePath):
            raise UserError(f"{path}: lists image paths. Such a table and its images must be on a local disk")
        columns = _find_columns(path, schema)
        file = pq.ParquetFile(opened, read_dictionary=columns.dictionaries)
        group_rows = _check_rows(path, opened, file)
        table, class_names = _read_table(path, file, schema, columns)
        if columns.image is None:
            return _Shard(stamp, table, group_rows)
        in_table = columns.lists or columns.label in columns.texts or table.label_sets() is not None
        labels = None if in_table else _class_numbers(path, file, columns.label or _label_column(path, schema))
        rows = file.metadata.num_rows
        paths = _read_text(path, file, columns.image_path) if columns.image_path else [""] * rows
        names = [text or f"{path.name}:{row}" for row, text in enumerate(paths)]
        lengths = {len(names), *map(len, table.columns.values()), rows if labels is None else len(labels)}
        if lengths != {rows}:
            raise UserError(f"{path}: damaged parquet file, columns differ in length. Download it again")
        return _Shard(stamp, table, group_rows, columns.image, class_names, labels, names)


def _read_table(
    path: SourcePath, file: pq.ParquetFile, schema: pa.Schema, columns: _Columns
) -> tuple[Table, list[str] | None]:
    """Return (the table's columns, the class names if the schema has them)."""
    cells = {
        name: [cell.strip() for cell in _read_text(path, file, name)]
        if name in columns.texts
        else [_text(value) for value in file.read(columns=[name]).column(0).to_pylist()]
        for name in columns.table
    }
    class_names = _class_names(schema, str(columns.lists or columns.label))
    sets = _read_lists(path, file, columns.lists, class_names) if columns.lists else None
    roles = {name: role for name, role in ((columns.image, "image"), (columns.label or columns.lists, "label")) if name}
    rows = range(2, file.metadata.num_rows + 2)
    return Table(Path(str(path)), cells, rows, schema.names, sets, roles), class_names


def _check_rows(path: SourcePath, opened: BinaryIO, file: pq.ParquetFile) -> list[int]:
    """Count the rows in each row group. Run-length encoding can claim billions of rows in a few bytes."""
    group_rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    rows = file.metadata.num_rows
    if min(group_rows, default=0) < 0 or sum(group_rows) != rows or rows > opened.seek(0, os.SEEK_END):
        raise UserError(f"{path}: damaged parquet file, it cannot have {rows} rows. Download it again")
    return group_rows


def _read_text(path: SourcePath, file: pq.ParquetFile, column: str) -> list[str]:
    """Read a text column, which the file was opened to read as a dictionary.

    Equal cells share memory, and null becomes "".

    Raises:
        UserError: All cells together are too large. A file can store a text once and refer to it in many rows.
    """
    cells: list[str] = []
    total = 0
    for group in range(file.num_row_groups):  # each has its own dictionary
        values = file.read_row_group(group, columns=[column]).column(0)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, 0)
        for cell in values.chunks:
            chunk = cell.flatten() if _is_list(cell.type) else cell
            if pa.types.is_integer(chunk.type):
                chunk = chunk.cast(pa.string())
            encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            words = encoded.dictionary.cast(pa.large_binary())  # text in a damaged file need not be UTF-8
            total += pc.sum(pc.take(pc.binary_length(words), encoded.indices)).as_py() or 0
            if total > MAX_TABLE_BYTES:
                raise UserError(
                    f"{path}: {total:,} bytes of text in {column}, but the limit is {MAX_TABLE_BYTES:,}. Split the file"
                )
            texts = [(word or b"").decode("utf-8", "surrogateescape") for word in words.to_pylist()]
            cells += ["" if i is None else texts[i] for i in encoded.indices.to_pylist()]
    return cells


def _read_lists(path: SourcePath, file: pq.ParquetFile, column: str, names: list[str] | None) -> list[list[str]]:
    """Read a column whose cells are text lists, or lists with class numbers, for which `names` has the names."""
    groups = [file.metadata.row_group(g) for g in range(file.num_row_groups)]
    leaves = [group.column(c) for group in groups for c in range(group.num_columns)]
    values = sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.partition(".")[0] == column)
    if values > MAX_LABELS:
        raise UserError(f"{path}: {values:,} labels in {column}, but the limit is {MAX_LABELS:,}. Split the file")
    cells = (cell.strip() for cell in _read_text(path, file, column))
    if names is not None:
        cells = (names[int(cell)] if is_number(cell) and int(cell) < len(names) else cell for cell in cells)
    lists = file.read(columns=[column]).column(0)
    sets = [list(islice(cells, length or 0)) for length in pc.list_value_length(lists).to_pylist()]
    is_numeric = pa.types.is_integer(lists.type.value_type)
    for row, labels in enumerate(sets, 2):
        if wrong := [label for label in labels if not label or (is_numeric and label.startswith("-"))]:
            raise UserError(f"{path}, row {row}: {column} has the label {wrong[0]!r}. Correct it, or remove the row")
    return sets


def _text(value: Any) -> str:
    """Return a cell as text. It is empty for null and for NaN, which pandas writes for null."""
    return "" if value is None or value != value else str(value)


# columns --------------------------------------------------------------------------------------------------------------


def _lists_paths(schema: pa.Schema) -> bool:
    name = find_column(schema.names, PATH_COLUMNS)
    images = any(_holds_image(field.type) for field in schema)
    return name is not None and not images and _is_text(schema.field(name).type)


def _is_text(kind: pa.DataType) -> bool:
    """Return True for Arrow's text types, also as a dictionary, such as pandas' categories."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_opaque(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _columns_of_sets(schema: pa.Schema) -> tuple[str | None, list[str]]:
    """Return the columns that hold multi-label classes.

    Returns:
        The label column if it has lists, otherwise None. If no label column is found, also the columns that may hold 0
        and 1 for one class each.
    """
    label = find_column(schema.names, LABEL_COLUMNS)
    if label is not None:
        kind = schema.field(label).type
        is_text = _is_list(kind) and (_is_text(kind.value_type) or pa.types.is_integer(kind.value_type))
        return (label if is_text else None), []
    others = [f for f in schema if f.name.lower() not in NO_CLASSES]
    integers = [f.name for f in others if pa.types.is_integer(f.type)]
    numbers = integers + [f.name for f in others if pa.types.is_boolean(f.type) or pa.types.is_floating(f.type)]
    return None, [] if len(integers) == 1 or len(numbers) < 2 else numbers  # a single integer column is the label


def _image_column(path: SourcePath, schema: pa.Schema) -> str:
    images = [f.name for f in schema if _holds_image(f.type)]
    if not images:
        raise UserError(
            f"{path}: no image column among {', '.join(schema.names)}. It must hold bytes or {{bytes, path}}"
        )
    return find_column(images, IMAGE_COLUMNS) or images[0]


def _label_column(path: SourcePath, schema: pa.Schema) -> str:
    """Return the column with a usual name, otherwise the only integer column that cannot be something else."""
    integers = [f.name for f in schema if pa.types.is_integer(f.type)]
    usual = find_column([*integers, *(f.name for f in schema if _is_text(f.type))], LABEL_COLUMNS)
    if usual is not None:
        return usual
    if (named := find_column(schema.names, LABEL_COLUMNS)) is not None:
        raise _wrong_type(path, schema.field(named))
    others = [name for name in integers if name.lower() not in NO_CLASSES]
    if len(others) == 1:
        return others[0]
    which = f"{' or '.join(others)} could be" if others else f"none of {', '.join(schema.names)} is"
    raise UserError(f"{path}: {which} the label column. Name the label column 'label'")


def _wrong_type(path: SourcePath, label: pa.Field) -> UserError:
    return UserError(f"{path}: {label.name} has the type {label.type}. Labels must be integers or names")


def _holds_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """Return the names in a ClassLabel feature, from the schema metadata that Hugging Face's `datasets` writes."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        feature = info["info"]["features"][label_column]
        names = feature.get("feature", feature)["names"]  # in a list of classes
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    return [str(name).encode("utf-8", "replace").decode() for name in names]  # JSON may have lone surrogates


def _class_numbers(path: SourcePath, file: pq.ParquetFile, column: str) -> np.ndarray:
    values = file.read(columns=[column]).column(0)
    if values.null_count:
        raise UserError(f"{path}: {values.null_count} rows have no {column}. Remove them")
    limits = pc.min_max(values).as_py() if len(values) else {"min": 0, "max": 0}
    if limits["min"] < 0:
        raise UserError(
            f"{path}: {column} {limits['min']} is negative. A test split has no labels. Give train or validation"
        )
    if limits["max"] >= MAX_CLASSES:
        raise UserError(
            f"{path}: {column} {limits['max']} is too large. Expected a number from 0 to {MAX_CLASSES - 1}. Correct the column"
        )
    return values.to_numpy().astype(np.int64)


def _has_paths(schema: pa.Schema, image_column: str) -> bool:
    kind = schema.field(image_column).type
    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and _is_text(kind.field("path").type)


def _number_labels(
    root: SourcePath, shards: Sequence[_Shard], classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (class numbers for all files, class list).

    Class names are numbered in sorted order, or as in `classes`.
    """
    _refuse_some_named(shards)
    lists = [shard.class_names for shard in shards if shard.class_names]
    own = lists[0] if lists else None
    if all(shard.labels is not None for shard in shards) and all(names == own for names in lists):
        numbers = np.concatenate([shard.labels for shard in shards if shard.labels is not None])
        labels = number_by_name(root, numbers, own, classes)
        known = classes or own
    else:  # numbers mean another class in each file, so they are replaced by names
        names = [name for shard in shards for name in shard.label_names()]
        labels, known = number_labels(root, names, classes)
    if len(labels) == 0:
        raise UserError(f"{root}: no rows. Give parquet files that contain images")
    return labels, tuple(check_labels(root, int(labels.max()), known))


def _refuse_some_named(shards: Sequence[_Shard]) -> None:
    """Raise UserError if class numbers have names in some files only. In the others, nothing tells what they mean."""
    numbered = [shard for shard in shards if shard.labels is not None]
    nameless = next((shard for shard in numbered if not shard.class_names), None)
    named = next((shard for shard in numbered if shard.class_names), None)
    if nameless is not None and named is not None:
        raise UserError(
            f"{nameless.table.path}: its labels are numbers without names, but {named.table.path} names its classes. Give files "
            "from one dataset"
        )
