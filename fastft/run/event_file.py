"""TensorBoard's event file, written without TensorBoard and at once.

PyTorch's `SummaryWriter` needs the package, and writes in a thread: a full disk ends that thread with a traceback, and the
queue before it has no time limit. The format: TFRecord frames (length, masked CRC-32C, data, masked CRC-32C) around `Event`
messages of tensorboard/compat/proto/event.proto.
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

VERSION = b"brain.Event:2"  # of the file format
CASTAGNOLI = 0x82F63B78  # polynomial of CRC-32C, reflected
# of this process's files: several can begin in one second, and TensorBoard sorts by name
_numbers = itertools.count()


class EventFile:
    """A new event file in `folder`. TensorBoard discards what earlier files there hold from `first_step` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06}"
        self._file = (folder / name).open("wb")
        self._write(_chunk(3, VERSION))
        start = b"\x08\x01"  # SessionLog.status = START
        self._write(_step(first_step) + _chunk(7, start))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Append one event with these values at `step`."""
        values = [  # Summary.value: tag, simple_value
            _chunk(1, _chunk(1, name.encode()) + b"\x15" + np.array(value, "<f4").tobytes())
            for name, value in scalars.items()
        ]
        self._write(_step(step) + _chunk(5, b"".join(values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, fields: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + fields  # Event.wall_time
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))
        self._file.flush()


def _varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _chunk(field: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _step(step: int) -> bytes:
    return b"\x10" + _varint(step)  # Event.step


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ CASTAGNOLI * (crc & 1) for crc in table]
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
