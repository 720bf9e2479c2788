"""Notes about training files: they do not fit the memory, or parts are missing."""

import logging
from collections.abc import Sequence

from beton_tools.base.console import format_bytes
from beton_tools.read.beton_set import BetonSet
from fastft.data.block_order import MIB
from fastft.data.read_ahead import BLOCKS_IN_MEMORY
from fastft.machine.page_cache import fits_page_cache, memory_bytes
from fastft.recipe.constants import BLOCKS

# silent unless the program configures logging; `fastft train` prints the notes itself
_log = logging.getLogger("fastft.data")
_log.addHandler(logging.NullHandler())


def log_notes(notes: Sequence[str]) -> None:
    """Log each as a warning of `fastft.data`."""
    for note in notes:
        _log.warning(note)


def data_notes(betons: BetonSet, order: str, block_mib: int) -> list[str]:
    """Notes about files that are read in this order, one line each."""
    available = memory_bytes()[1]
    notes = []
    if missing := betons.missing_parts:
        notes.append(f"{betons.title}: parts {missing} of the conversion are not among the files")
    if fits_page_cache(betons.file_size, available):
        return notes
    size, free = format_bytes(betons.file_size), format_bytes(available)
    too_large = f"{betons.title}: {size} do not fit the page cache ({free} available)"
    blocks = BLOCKS_IN_MEMORY * block_mib * MIB
    if order != BLOCKS:
        notes.append(
            f"{too_large}: every epoch reads images from the disk; data.order=blocks reads each page once"
        )
    elif not fits_page_cache(blocks, available):
        notes.append(
            f"{too_large}, nor do {BLOCKS_IN_MEMORY} blocks of {block_mib} MiB: reduce data.block_mib"
        )
    else:
        notes.append(f"{too_large}: every epoch reads each page once (data.order=blocks)")
    return notes
