"""Values with large arrays that several processes on a host use at once, while only one process holds them.

The arrays lie in an anonymous file in memory. The other processes open it through /proc and map it. It has no name, so
it is freed when the last process ends, however that ends, and the size of /dev/shm does not limit it.
"""

from __future__ import annotations

import mmap
import os
import pickle
from dataclasses import dataclass
from typing import Any

_ALIGNMENT = 64  # bytes
_PIECE = 64 << 20  # bytes written at once


@dataclass(frozen=True)
class SharedArrays:
    """Tells a process on the same host where a value and its arrays are.

    Attributes:
        process, descriptor: the process that shares the arrays, and the file's descriptor there. The process must not end
            or close the descriptor before the others have mapped the file.
        value: pickled, without the arrays.
        spans: for each array, (offset, bytes).
    """

    process: int
    descriptor: int
    value: bytes
    spans: list[tuple[int, int]]

    def map(self) -> Any:
        """Return the value. Its arrays cannot be written to.

        Raises:
            OSError: this process may not open the other process's files, or is in another container.
        """
        descriptor = os.open(f"/proc/{self.process}/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            memory = memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ) if size else b"")
        finally:
            os.close(descriptor)
        return pickle.loads(self.value, buffers=[memory[begin : begin + length] for begin, length in self.spans])

    def close(self) -> None:
        """Close the file in the process that shares it. Arrays that are mapped stay."""
        os.close(self.descriptor)


def share_arrays(value: Any) -> SharedArrays:
    """Copy the arrays in a value to memory that other processes can map. `value` must be picklable.

    Raises:
        OSError: the system has no such files, or the memory is full.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    descriptor = os.memfd_create("fastft")
    try:
        spans, end = [], 0
        for raw in (buffer.raw() for buffer in buffers):
            begin = -(-end // _ALIGNMENT) * _ALIGNMENT
            done = 0
            while done < len(raw):
                done += os.pwrite(descriptor, raw[done : done + _PIECE], begin + done)
            end = begin + len(raw)
            spans.append((begin, len(raw)))
        os.ftruncate(descriptor, end)
    except OSError:
        os.close(descriptor)
        raise
    return SharedArrays(os.getpid(), descriptor, pickled, spans)
