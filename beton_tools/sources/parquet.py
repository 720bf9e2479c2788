"""Parquet files in Hugging Face's layout for images: `image` = {bytes, path}, `label` = class number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beton_tools.errors import UserError
from beton_tools.names import Names
from beton_tools.sources.base import Source, stamps_of
from beton_tools.sources.wnids import class_names_of


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """The image bytes of one row. Reading loads the whole row group; each process caches the latest one."""

    path: str
    column: str
    row_group: int
    row: int

    def read(self) -> bytes:
        try:
            value = _row_group(self.path, self.column, self.row_group)[self.row].as_py()
        except pa.ArrowException as error:
            raise OSError(f"damaged parquet file: {error}") from error
        return value or b""


@lru_cache(maxsize=1)
def _row_group(path: str, column: str, number: int) -> pa.ChunkedArray:
    table = pq.ParquetFile(path).read_row_group(number, columns=[column])
    array = table.column(0).combine_chunks()
    return array.field("bytes") if pa.types.is_struct(array.type) else array


@dataclass(frozen=True)
class ParquetSource(Source):
    """Rows of parquet files, in file order. Shuffled writing reads a whole row group for nearly every image.

    column: name of the image column.
    group_starts: int64 (G + 1,), number of the first row of each row group, counted over all files.
    group_files: int64 (G,), index of its file in `files`.
    group_numbers: int64 (G,), number of the row group within its file.
    """

    files: tuple[str, ...]
    column: str
    group_starts: np.ndarray
    group_files: np.ndarray
    group_numbers: np.ndarray

    def locate(self, i: int) -> ParquetCell:
        group = int(np.searchsorted(self.group_starts, i, side="right")) - 1
        path, number = self.files[self.group_files[group]], int(self.group_numbers[group])
        return ParquetCell(path, self.column, number, i - int(self.group_starts[group]))

    def stamps(self, chosen: np.ndarray) -> np.ndarray:
        groups = np.searchsorted(self.group_starts, chosen, side="right") - 1
        return stamps_of(self.files)[self.group_files[groups]]


def parquet_source(root: Path, files: Sequence[Path], classes: Sequence[str] | None = None) -> ParquetSource:
    """Open parquet files, in the given order.

    Raises:
        UserError: a file that is not parquet, lacks an image or an integer label column, or has unusable labels.
    """
    names: list[str] = []
    labels: list[np.ndarray] = []
    groups: list[tuple[int, int, int]] = []  # file, row group, rows
    known: Sequence[str] | None = classes
    column = ""
    for number, path in enumerate(files):
        try:
            file = pq.ParquetFile(path)
            column, label_column = _columns(path, file.schema_arrow)
            known = known or _class_names(file.schema_arrow, label_column)
            labels.append(_labels(path, file, label_column))
            names += _names(path, file, column)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot be read as parquet ({error})".splitlines()[0]) from error
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        groups += [(number, g, rows) for g, rows in enumerate(sizes)]
    all_labels = np.concatenate(labels)
    final = _check_labels(root, all_labels, known)
    table = np.array(groups, np.int64).reshape(-1, 3)
    return ParquetSource(
        "parquet",
        root,
        final,
        class_names_of(final, root),
        all_labels,
        Names.of(names),
        tuple(str(path) for path in files),
        column,
        np.concatenate([[0], np.cumsum(table[:, 2])]),
        table[:, 0],
        table[:, 1],
    )


def _columns(path: Path, schema: pa.Schema) -> tuple[str, str]:
    """Names of the image and the label column; the usual names are preferred if several columns qualify."""
    images = [f.name for f in schema if _holds_image(f.type)]
    labels = [f.name for f in schema if pa.types.is_integer(f.type)]
    for found, usual, what in (
        (images, ("image", "img", "jpg"), "image"),
        (labels, ("label", "cls"), "label"),
    ):
        found.sort(key=lambda name: usual.index(name) if name in usual else len(usual))
        if not found:
            raise UserError(
                f"{path}: no {what} column among {schema.names}; "
                "the image column must hold bytes or {bytes, path}, the label column integers"
            )
    return images[0], labels[0]


def _holds_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_image(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """Names of a ClassLabel feature, from the schema metadata written by Hugging Face's `datasets`."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _labels(path: Path, file: pq.ParquetFile, column: str) -> np.ndarray:
    values = file.read(columns=[column]).column(0)
    if values.null_count:
        raise UserError(f"{path}: {values.null_count} rows have no {column}; remove them")
    return values.to_numpy().astype(np.int64)


def _names(path: Path, file: pq.ParquetFile, column: str) -> list[str]:
    """Name of each row: `path` of the image struct if it has one, otherwise file name and row number."""
    rows = file.metadata.num_rows
    kind = file.schema_arrow.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        table = file.read(columns=[f"{column}.path"]).column(0).combine_chunks()
        paths = table.field("path").to_pylist()
    else:
        paths = [None] * rows
    return [paths[row] or f"{path.name}:{row}" for row in range(rows)]


def _check_labels(root: Path, labels: np.ndarray, known: Sequence[str] | None) -> tuple[str, ...]:
    if len(labels) == 0:
        raise UserError(f"{root}: no rows; give parquet files that contain images")
    if labels.min() < 0:
        raise UserError(
            f"{root}: label {labels.min()} is negative; a test split has no labels, give train or validation"
        )
    known = known or [str(i) for i in range(labels.max() + 1)]
    if labels.max() >= len(known):
        raise UserError(f"{root}: label {labels.max()}, but there are only {len(known)} classes")
    return tuple(known)
