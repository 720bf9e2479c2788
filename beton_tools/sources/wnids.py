"""Readable names of ImageNet's wnids, from a list near the images or from timm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from beton_tools.sources.remote import SourcePath
from beton_tools.sources.side_files import folder_and_parents, read_lines

_WNID = re.compile(r"n\d{8}")
_KAGGLE_LIST = "LOC_synset_mapping.txt"  # "n01440764 tench, Tinca tinca", in the ILSVRC download of Kaggle
_TIMM_LISTS = "data/_info"  # of timm, which is slow to import
_TIMM_NAMES = "imagenet_synset_to_lemma.txt"  # as Kaggle's, with a tab
_TIMM_WNIDS = "imagenet_synsets.txt"  # one on each line


def is_wnid(name: str) -> bool:
    """Whether a name has the form of a WordNet id, such as n01440764."""
    return _WNID.fullmatch(name) is not None


def class_names_of(classes: Sequence[str], root: SourcePath) -> tuple[str, ...] | None:
    """Readable names if all classes are wnids and one list (near `root`, or timm's) has all of them; otherwise None."""
    if not classes or not all(is_wnid(c) for c in classes):
        return None
    for path in _name_lists(root):
        names = _parse_names(read_lines(path) or [])
        if all(c in names for c in classes):
            return tuple(names[c] for c in classes)
    return None


def _name_lists(root: SourcePath) -> list[SourcePath]:
    near = [folder / _KAGGLE_LIST for folder in folder_and_parents(root)]
    return [*near, *_timm_list(_TIMM_NAMES)]


def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 wnids of ILSVRC2012 by label, from timm's list; empty without timm."""
    return tuple(wnid for path in _timm_list(_TIMM_WNIDS) for wnid in read_lines(path) or ())


def _timm_list(name: str) -> list[Path]:
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        return []
    return [Path(timm.origin).parent / _TIMM_LISTS / name]


def _parse_names(lines: Sequence[str]) -> dict[str, str]:
    rows = (line.split(maxsplit=1) for line in lines)
    return {row[0]: row[1].strip() for row in rows if len(row) == 2}
