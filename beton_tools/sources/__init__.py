"""Where the images come from: folders, ILSVRC's tars, WebDataset shards, parquet. Nothing is unpacked to
disk."""

from beton_tools.sources.base import FileSpan, Location, Source
from beton_tools.sources.find import SPLITS, find_split, open_source

__all__ = ["SPLITS", "FileSpan", "Location", "Source", "find_split", "open_source"]
