"""Device memory with a record beside every byte, and the check that every access passes through.

Global, const, shared and local memory are parts of one array behind made-up 64-bit addresses, 4,096
unallocated bytes apart. The record of a byte has four words: its state (space, initialised, read-only) and who
last wrote, read and atomically updated it since the launch began.

Who and when is a *tag*: interval << 10 | thread + 1. An interval is what one block executes between two
barriers; blocks run one after the other and intervals are numbered through, so two accesses of the same block
are ordered when their intervals differ, and accesses of different blocks never are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numba
import numpy as np
from numba import njit, types

from tests.ptx.parser import PtxError

NOT_ALLOCATED, GLOBAL, CONST, SHARED, LOCAL = range(5)  # the space: the lowest three bits of a state
SPACES = {"global": GLOBAL, "const": CONST, "shared": SHARED, "local": LOCAL}
SPACE_MASK, INITIALISED, READ_ONLY = 7, 8, 16
STATE, WRITTEN, READ, UPDATED = range(4)  # words of a record
WORDS = 4

LOAD, CONSTANT_LOAD, STORE, UPDATE = range(4)  # kinds of access; CONSTANT_LOAD: ld.global.nc

OUT_OF_BOUNDS, MISALIGNED, READ_ONLY_WRITE, UNINITIALISED, RACE, NOT_CONSTANT = range(6)
PROBLEMS = (  # an access with one of the first three is not carried out: the launch ends
    "out of bounds",
    "misaligned access",
    "write to read-only memory",
    "uninitialised read",
    "race",
    "non-coherent load of writable memory",
)
# The log has two words for every site and problem: how often, and the offset of the first case.
COUNT, OFFSET = range(2)
LOG_WORDS = 2

THREAD_BITS = 10
SEVERAL = (1 << THREAD_BITS) - 1  # in a tag's thread: more than one of the block
SEVERAL_BLOCKS = 0xFFFFFFFF  # a whole tag
MAX_THREADS, MAX_INTERVALS = SEVERAL - 1, 1 << 32 - THREAD_BITS

BASE = 0x7F00_0000_0000  # address of offset 0
GUARD = 4096  # unallocated bytes between allocations
GARBAGE = 0xCD  # uninitialised memory


class Allocation(NamedTuple):
    name: str
    start: int  # offset
    size: int

    @property
    def address(self) -> int:
        return BASE + self.start


class Memory:
    def __init__(self) -> None:
        self.end = GUARD
        self.allocations: list[Allocation] = []
        self.data = np.zeros(2 * GUARD, np.uint8)
        self.records = np.zeros((2 * GUARD, WORDS), np.uint32)

    def allocate(
        self,
        name: str,
        size: int,
        *,
        space: str = "global",
        align: int = 256,
        content: np.ndarray | None = None,
        read_only: bool = False,
    ) -> Allocation:
        """Uninitialised memory, or a copy of ``content`` (uint8)."""
        start = -(-self.end // align) * align
        self.end = start + size + GUARD
        if self.end > len(self.data):
            self._grow()
        allocation = Allocation(name, start, size)
        self.allocations.append(allocation)
        self.state(allocation)[:] = SPACES[space] | (READ_ONLY if read_only else 0)
        self.bytes(allocation)[:] = GARBAGE
        if content is not None:
            self.bytes(allocation)[:] = content
            self.state(allocation)[:] |= INITIALISED
        return allocation

    def _grow(self) -> None:
        capacity = 2 * self.end
        for name in ("data", "records"):
            old = getattr(self, name)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def bytes(self, allocation: Allocation) -> np.ndarray:
        """View, until the next allocation."""
        return self.data[allocation.start : allocation.start + allocation.size]

    def state(self, allocation: Allocation) -> np.ndarray:
        """View of the state words, until the next allocation."""
        return self.records[allocation.start : allocation.start + allocation.size, STATE]

    def mark_uninitialised(self, allocation: Allocation, where: np.ndarray) -> None:
        """where: bool per byte."""
        self.state(allocation)[where] &= ~np.uint32(INITIALISED)
        self.bytes(allocation)[where] = GARBAGE

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Release at the end what is allocated within."""
        end, count = self.end, len(self.allocations)
        try:
            yield
        finally:
            self.records[end : self.end] = 0
            self.end = end
            del self.allocations[count:]

    def renew(self, allocation: Allocation) -> None:
        """Uninitialised again, as shared memory is when a block starts."""
        self.bytes(allocation)[:] = GARBAGE
        self.state(allocation)[:] &= ~np.uint32(INITIALISED)
        self.records[allocation.start : allocation.start + allocation.size, WRITTEN:] = 0

    def forget_accesses(self) -> None:
        """A launch begins: everything before is ordered before it."""
        self.records[: self.end, WRITTEN:] = 0

    def locate(self, offset: int) -> str:
        """In words: the last allocation that begins before, or the first one."""
        nearest = max(
            (a for a in self.allocations if a.start <= offset), key=lambda a: a.start, default=self.allocations[0]
        )
        return f"{nearest.name}[{offset - nearest.start}] of {nearest.size} bytes"


# -- the check, compiled ---------------------------------------------------------------------------------------


@njit(inline="always")
def _conflicts(other, tag, first_interval):
    """True if an access by `other` is by another thread and no barrier orders it before `tag`."""
    if other == 0 or other == tag:
        return False
    interval = other >> THREAD_BITS
    return other == SEVERAL_BLOCKS or interval < first_interval or interval == tag >> THREAD_BITS


@njit(inline="always")
def _joined(other, tag, first_interval):
    """Tag of a byte that `other` has read (or updated) and `tag` now does too."""
    if not _conflicts(other, tag, first_interval):
        return tag
    if other == SEVERAL_BLOCKS or other >> THREAD_BITS < first_interval:
        return SEVERAL_BLOCKS
    return tag | SEVERAL


@njit(inline="always")
def _note(log, site, problem, offset):
    at = (site * len(PROBLEMS) + problem) * LOG_WORDS
    if log[at + COUNT] == 0:
        log[at + OFFSET] = offset
    log[at + COUNT] += 1


@njit(inline="always")
def _check_race(records, log, site, byte, kind, tag, first_interval):
    """Compares with the byte's record and enters this access there."""
    at = byte * WORDS
    written, read, updated = records[at + WRITTEN], records[at + READ], records[at + UPDATED]
    if (
        _conflicts(written, tag, first_interval)
        or (kind != UPDATE and _conflicts(updated, tag, first_interval))
        or (kind >= STORE and _conflicts(read, tag, first_interval))
    ):
        _note(log, site, RACE, byte)
    if kind == STORE:
        records[at + WRITTEN] = tag
    elif kind == UPDATE:
        records[at + UPDATED] = _joined(updated, tag, first_interval)
    else:
        records[at + READ] = _joined(read, tag, first_interval)


@njit(inline="always")
def _fatal_problem(records, end, offset, size, kind, space):
    """Number of the problem, or -1."""
    if offset < 0 or offset + size > end:
        return OUT_OF_BOUNDS
    if offset & (size - 1):
        return MISALIGNED
    for byte in range(offset, offset + size):
        state = records[byte * WORDS + STATE]
        if state & SPACE_MASK != space:
            return OUT_OF_BOUNDS
        if kind >= STORE and state & READ_ONLY:
            return READ_ONLY_WRITE
    return -1


CHECK_SIGNATURE = types.int32(
    types.CPointer(types.uint32),  # records
    types.CPointer(types.int64),  # log
    types.int64,  # end of the memory
    types.int64,  # address
    types.int32,  # bytes
    types.int32,  # kind of access
    types.int32,  # space
    types.int32,  # site: number of the instruction
    types.uint32,  # tag
    types.uint32,  # first interval of the block
)


@numba.cfunc(CHECK_SIGNATURE, cache=True)
def check_access(records, log, end, address, size, kind, space, site, tag, first_interval):
    """Notes what is wrong with an access and enters it in the records. 1: it must not be carried out."""
    offset = address - BASE
    fatal = _fatal_problem(records, end, offset, size, kind, space)
    if fatal >= 0:
        _note(log, site, fatal, offset)
        return 1
    for byte in range(offset, offset + size):
        state = records[byte * WORDS + STATE]
        if kind != STORE and not state & INITIALISED:
            _note(log, site, UNINITIALISED, byte)
        if kind == CONSTANT_LOAD and not state & READ_ONLY:
            _note(log, site, NOT_CONSTANT, byte)
        if kind >= STORE:
            records[byte * WORDS + STATE] = state | INITIALISED
        if not state & READ_ONLY:
            _check_race(records, log, site, byte, kind, tag, first_interval)
    return 0


def check_limits(threads: int, intervals: int) -> None:
    """Raises ``PtxError`` where tags have no room for a launch."""
    if threads > MAX_THREADS or intervals > MAX_INTERVALS:
        raise PtxError(f"{threads} threads in a block, {intervals} intervals: tags hold {MAX_THREADS}, {MAX_INTERVALS}")
