"""Where the images come from."""

from beton_tools.sources.base import FileSpan, Location, Source
from beton_tools.sources.folder import folder_source

__all__ = ["FileSpan", "Location", "Source", "folder_source"]
