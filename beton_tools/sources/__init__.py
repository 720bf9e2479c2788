"""Labelled images in class folders, ILSVRC tars, WebDataset shards or parquet files, read in place.

Archives are not unpacked to disk.
"""

from beton_tools.sources.base import FileSpan, Location, Source
from beton_tools.sources.find import SPLITS, find_split, open_source

__all__ = ["SPLITS", "FileSpan", "Location", "Source", "find_split", "open_source"]
