"""Parquet files in Hugging Face's layout for images: `image` = {bytes, path}, `label` = class number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beton_tools.base.errors import UserError
from beton_tools.base.names import Names
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources.base import Source, stamp_of
from beton_tools.sources.path_table import (
    GROUP_COLUMNS,
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    find_column,
    is_text,
    number_labels,
    read_schema,
    refuse_too_many_rows,
    refuse_too_much_text,
)
from beton_tools.sources.remote import RemoteError, RemotePath, SourcePath, Stamp, source_path
from beton_tools.sources.remote_files import map_files, open_regular_source, open_source_file
from beton_tools.sources.wnids import class_names_of

IMAGE_COLUMNS = ("image", "img", "jpg")
# columns of integers that are no labels
NO_LABELS = (
    *SPLIT_COLUMNS,
    *GROUP_COLUMNS,
    *("id", "index", "image_id", "img_id", "__index_level_0__", "width", "height"),
)


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The image bytes of one row. Reading loads the whole row group; each process caches the latest one.

    stamp: that of the file when it was indexed.
    """

    path: str | RemotePath
    stamp: Stamp
    column: str
    row_group: int
    row: int

    @property
    def group(self) -> tuple[str | RemotePath, int]:
        return self.path, self.row_group

    @property
    def is_remote(self) -> bool:
        return isinstance(self.path, RemotePath)

    def read(self) -> bytes:
        values = _read_row_group(self.path, self.stamp, self.column, self.row_group)
        with _one_line(self.path):
            return values[self.row].as_py() or b""


@lru_cache(maxsize=1)
def _read_row_group(path: str | RemotePath, stamp: Stamp, column: str, number: int) -> pa.ChunkedArray:
    with open_regular_source(source_path(path), read_ahead=False) as file:
        if stamp_of(file) != stamp:
            raise OSError(f"{path} changed after it was indexed")
        with _one_line(path):
            values = pq.ParquetFile(file).read_row_group(number, columns=[column]).column(0)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
        if stamp_of(file) != stamp:
            raise OSError(f"{path} changed while it was being read")
    return values


@contextmanager
def _one_line(path: str | RemotePath) -> Iterator[None]:
    """Any exception becomes an OSError of one line: pyarrow raises many types on damaged files."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        raise OSError(f"damaged parquet file {path}: {_first_line(error)}") from error


@dataclass(frozen=True)
class ParquetSource(Source):
    """Rows of parquet files, in file order. Shuffled writing reads a whole row group for nearly every image.

    file_stamps: the stamp of each file when it was indexed.
    column: name of the image column.
    group_starts: int64 (G + 1,), number of the first row of each row group, counted over all files.
    group_files: int64 (G,), index of its file in `files`.
    group_numbers: int64 (G,), number of the row group within its file.
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
        return ParquetCell(
            self.files[file], self.file_stamps[file], self.column, int(self.group_numbers[group]), row
        )

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        groups = np.searchsorted(self.group_starts, chosen, side="right") - 1
        return np.array(self.file_stamps, np.int64)[self.group_files[groups]]


@dataclass(frozen=True)
class _Index:
    """Columns, labels and names of one file, and the number of rows in each row group."""

    stamp: Stamp
    image_column: str
    class_names: list[str] | None
    labels: np.ndarray | list[str]  # class numbers, or class names
    names: list[str]
    group_rows: list[int]


def parquet_source(
    root: SourcePath, files: Sequence[SourcePath], classes: Sequence[str] | None = None
) -> ParquetSource:
    """Open parquet files, in the given order.

    Raises:
        UserError: a file that is not parquet, lacks a column of images or of labels, or has unusable labels.
    """
    indices = list(map_files(_read_index, files))
    columns = sorted({index.image_column for index in indices})
    if len(columns) > 1:
        raise UserError(
            f"{root}: the image column is named {' and '.join(columns)}; give files of one data set"
        )
    labels, class_list = _number_labels(root, [index.labels for index in indices], classes)
    class_list = class_list or next((i.class_names for i in indices if i.class_names), None)
    final = _check_labels(root, labels, class_list)
    groups = [(f, g, rows) for f, index in enumerate(indices) for g, rows in enumerate(index.group_rows)]
    table = np.array(groups, np.int64).reshape(-1, 3)
    return ParquetSource(
        "parquet",
        root,
        final,
        class_names_of(final, root),
        labels,
        Names.of(name for index in indices for name in index.names),
        tuple(path if isinstance(path, RemotePath) else str(path) for path in files),
        tuple(index.stamp for index in indices),
        columns[0],
        np.concatenate([[0], np.cumsum(table[:, 2])]),
        table[:, 0],
        table[:, 1],
    )


def lists_paths(path: SourcePath) -> bool:
    """Return True if a parquet file has a column of image paths instead of images.

    Raises:
        UserError: it cannot be read as parquet.
    """
    schema = read_schema(path)
    name = find_column(schema.names, PATH_COLUMNS)
    images = any(_holds_image(field.type) for field in schema)
    return name is not None and not images and is_text(schema.field(name).type)


def _number_labels(
    root: SourcePath, labels: Sequence[np.ndarray | list[str]], classes: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str] | None]:
    """(class numbers of all files, class list); names of classes are numbered in sorted order, or as in `classes`."""
    numbers = [part for part in labels if isinstance(part, np.ndarray)]
    if len(numbers) == len(labels):
        return np.concatenate(numbers), classes
    return number_labels(root, [str(label) for part in labels for label in part], classes)


def _read_index(path: SourcePath) -> _Index:
    with open_source_file(path, "a .parquet file", read_ahead=False) as file:
        try:
            return _index_of(path, file)
        except (UserError, RemoteError):
            raise
        except Exception as error:  # pyarrow raises many types on damaged files
            raise UserError(
                f"{path}: cannot be read as parquet ({_first_line(error)}); download it again"
            ) from error


def _index_of(path: SourcePath, opened: BinaryIO) -> _Index:
    stamp = stamp_of(opened)
    file = pq.ParquetFile(opened)
    group_rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    rows = file.metadata.num_rows
    refuse_too_many_rows(path, opened)
    if min(group_rows, default=0) < 0 or sum(group_rows) != rows:
        raise UserError(f"{path}: damaged parquet file, it cannot have {rows} rows; download it again")
    image_column, label_column = _columns(path, file.schema_arrow)
    texts = [label_column] if is_text(file.schema_arrow.field(label_column).type) else []
    texts += [f"{image_column}.path"] if _has_paths(file, image_column) else []
    refuse_too_much_text(path, opened, texts)
    labels, names = _labels(path, file, label_column), _names(path, file, image_column)
    if not rows == len(labels) == len(names):
        raise UserError(f"{path}: damaged parquet file, columns differ in length; download it again")
    return _Index(
        stamp, image_column, _class_names(file.schema_arrow, label_column), labels, names, group_rows
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]


def _columns(path: SourcePath, schema: pa.Schema) -> tuple[str, str]:
    """Names of the image and the label column."""
    images = [f.name for f in schema if _holds_image(f.type)]
    if not images:
        raise UserError(
            f"{path}: no image column among {', '.join(schema.names)}; it must hold bytes or {{bytes, path}}"
        )
    return find_column(images, IMAGE_COLUMNS) or images[0], _label_column(path, schema)


def _label_column(path: SourcePath, schema: pa.Schema) -> str:
    """The column with a usual name, otherwise the only column of integers that cannot be something else."""
    integers = [f.name for f in schema if pa.types.is_integer(f.type)]
    usual = find_column([*integers, *(f.name for f in schema if is_text(f.type))], LABEL_COLUMNS)
    if usual is not None:
        return usual
    others = [name for name in integers if name.lower() not in NO_LABELS]
    if len(others) == 1:
        return others[0]
    named = find_column(schema.names, LABEL_COLUMNS)
    if named is not None:
        kind = schema.field(named).type
        raise UserError(f"{path}: {named} is of the type {kind}; labels must be integers or names")
    found = f"{' or '.join(others)} could be" if others else f"none of {', '.join(schema.names)} is"
    raise UserError(f"{path}: {found} the label column; name the column of labels 'label'")


def _holds_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """Names of a ClassLabel feature, from the schema metadata written by Hugging Face's `datasets`."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    return [str(name).encode("utf-8", "replace").decode() for name in names]  # JSON may have lone surrogates


def _labels(path: SourcePath, file: pq.ParquetFile, column: str) -> np.ndarray | list[str]:
    values = file.read(columns=[column]).column(0)
    if values.null_count:
        raise UserError(f"{path}: {values.null_count} rows have no {column}; remove them")
    if is_text(values.type):
        texts = [text.strip() for text in values.to_pylist()]
        if "" in texts:
            raise UserError(
                f"{path}, row {texts.index('') + 2}: no {column}; fill the cell, or remove the row"
            )
        return texts
    limits = pc.min_max(values).as_py() if len(values) else {"min": 0, "max": 0}
    if limits["min"] < 0:
        raise UserError(
            f"{path}: {column} {limits['min']} is negative; a test split has no labels, give train or validation"
        )
    if limits["max"] >= MAX_CLASSES:
        raise UserError(
            f"{path}: {column} {limits['max']}, expected a number from 0 to {MAX_CLASSES - 1}; correct the column"
        )
    return values.to_numpy().astype(np.int64)


def _names(path: SourcePath, file: pq.ParquetFile, column: str) -> list[str]:
    """Name of each row: `path` of the image struct if it is text, otherwise file name and row number."""
    if not _has_paths(file, column):
        return [f"{path.name}:{row}" for row in range(file.metadata.num_rows)]
    paths = pc.struct_field(file.read(columns=[f"{column}.path"]).column(0), "path")
    as_bytes = paths.cast(pa.large_binary()).to_pylist()  # text of a damaged file need not be UTF-8
    texts = [(name or b"").decode("utf-8", "surrogateescape") for name in as_bytes]
    return [text or f"{path.name}:{row}" for row, text in enumerate(texts)]


def _has_paths(file: pq.ParquetFile, image_column: str) -> bool:
    kind = file.schema_arrow.field(image_column).type
    return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)


def _check_labels(root: SourcePath, labels: np.ndarray, class_list: Sequence[str] | None) -> tuple[str, ...]:
    if len(labels) == 0:
        raise UserError(f"{root}: no rows; give parquet files that contain images")
    class_list = class_list or [str(i) for i in range(labels.max() + 1)]
    if labels.max() >= len(class_list):
        raise UserError(
            f"{root}: label {labels.max()}, but there are only {len(class_list)} classes; "
            "correct the label or the list of classes"
        )
    return tuple(class_list)
