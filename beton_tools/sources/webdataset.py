"""WebDataset shards: tars in which the files of one sample have the same name up to the first dot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, BinaryIO

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import IMAGE_SUFFIXES
from beton_tools.read.format import MAX_CLASSES
from beton_tools.sources.base import SpanSource, check_labels, stamp_of
from beton_tools.sources.remote import SourcePath, Stamp
from beton_tools.sources.remote_files import map_files, open_source_file
from beton_tools.sources.side_files import class_names_of, read_lines
from beton_tools.sources.tars import Member, SpanTable, members, read_member

_CLASS_LISTS = ("classes.txt", "classnames.txt", "synsets.txt")  # one class per line, in the shards' folder
_MAX_JSON_BYTES = 1 << 20
_MAX_NUMBER_BYTES = 32  # of a .cls file, with white space


def webdataset_source(
    root: SourcePath, shards: Sequence[SourcePath], classes: Sequence[str] | None = None
) -> SpanSource:
    """Samples in the order of the shards. The label is a number in `.cls`, or "label" in `.json`.

    Args:
        classes: names of the labels; None takes a class list from the shards' folder, or else the numbers themselves.

    Raises:
        UserError: a damaged archive, no image, a sample without a usable label, or a label that has no class.
    """
    table = SpanTable()
    for path, (stamp, samples, left_out) in zip(shards, map_files(_read_shard, shards), strict=True):
        table.add_archive(path, stamp)
        table.left_out.update(left_out)
        for key, image, label in samples:
            table.add(f"{path.name}/{key}.{_extension(image)}", label, image)
    lists = (read_lines(root / name) for name in _CLASS_LISTS)
    class_list = check_labels(root, max(table.labels, default=-1), classes or next(filter(None, lists), None))
    return table.source("webdataset", root, class_list, class_names_of(class_list, root), key=None)


def _read_shard(path: SourcePath) -> tuple[Stamp, list[tuple[str, Member, int]], Counter[str]]:
    left_out: Counter[str] = Counter()
    with open_source_file(path, "a .tar file") as file:
        return stamp_of(file), list(_samples(file, path, left_out)), left_out


def _samples(file: BinaryIO, path: SourcePath, left_out: Counter[str]) -> Iterator[tuple[str, Member, int]]:
    """left_out: counts the files of samples without an image."""
    for key, group in groupby(members(file, path, left_out=left_out), key=_key):
        parts = {_extension(member): member for member in group}
        images = [m for extension, m in parts.items() if f".{extension}".endswith(IMAGE_SUFFIXES)]
        if images:
            yield key, images[0], _label(file, path, key, parts)
        else:
            left_out.update(f".{extension}" if extension else "" for extension in parts)


def _key(member: Member) -> str:
    folder, _, name = member.name.rpartition("/")
    return f"{folder}/{name.split('.')[0]}" if folder else name.split(".")[0]


def _extension(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _label(file: BinaryIO, path: SourcePath, key: str, parts: dict[str, Member]) -> int:
    member = parts.get("cls") or parts.get("json")
    if member is None:
        raise UserError(f"{path}: sample {key} has no label: add a .cls or .json file to it")
    in_cls = "cls" in parts
    try:
        if member.size > (_MAX_NUMBER_BYTES if in_cls else _MAX_JSON_BYTES):
            raise ValueError(f"{member.size:,} bytes in its label file")
        text = read_member(file, path, member)
        label: Any = int(text) if in_cls else json.loads(text)["label"]
        if type(label) is not int or not 0 <= label < MAX_CLASSES:
            raise ValueError(f"{str(label)[:_MAX_NUMBER_BYTES]}, expected a number from 0 to {MAX_CLASSES - 1}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: sample {key} has no usable label ({_reason(error)}); correct or remove the sample"
        ) from error
    return label


def _reason(error: Exception) -> str:
    """One short line."""
    text = f"no {error} in its .json" if isinstance(error, KeyError) else str(error)
    return text.partition("\n")[0][:200]
