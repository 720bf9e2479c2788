"""Open files that the user names: regular files only, and never more bytes than expected.

A FIFO, a socket, a device or a directory in a file's place could block for ever, never end, or react to being opened.
All of them are refused before they are opened.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import zlib
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from beton_tools.base.errors import UserError

StrPath = str | os.PathLike[str]

_CHUNK = 1 << 20  # bytes
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# O_NONBLOCK: a FIFO that replaces the file between the check and the opening must not block
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def expand_home(path: str) -> Path:
    """Expand `~` and `~USER` in a path. The path is unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's raises RuntimeError


def open_regular(path: StrPath) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: The file does not exist, cannot be opened, or is not a regular file. `strerror` is the reason.
    """
    _check_regular(stat_path(path), path)
    file = os.fdopen(os.open(path, _FLAGS), "rb")
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: StrPath, max_bytes: int) -> bytes:
    """Read a regular file with at most `max_bytes` bytes.

    Raises:
        OSError: As for `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        parts = [file.read(size + 1)] if size <= max_bytes else []  # not max_bytes, which would be allocated
        done = sum(map(len, parts)) or size
        while size < done <= max_bytes and (more := file.read(_CHUNK)):  # files in /proc have size 0
            parts.append(more)
            done += len(more)
    if done > max_bytes:
        raise OSError(0, f"larger than the limit of {max_bytes:,} bytes", os.fspath(path))
    return b"".join(parts)


def file_checksum(path: StrPath) -> str:
    """Return the CRC-32 of a regular file in hexadecimal digits. Raises OSError as `open_regular`."""
    crc = 0
    with open_regular(path) as file:
        while block := file.read(_CHUNK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def stat_path(path: StrPath) -> os.stat_result:
    """Call `os.stat`, but raise OSError also for a path that no file can have (NUL or unencodable characters)."""
    try:
        return os.stat(path)  # noqa: PTH116 - called for each of a million images
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        if encoding == "utf-8":
            raise OSError(0, f"not a valid path: {error}", os.fspath(path)) from error
        reason = f"the locale's encoding, {encoding}, has no such name. Set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        raise OSError(0, reason, os.fspath(path)) from error
    except ValueError as error:
        raise OSError(0, f"not a valid path: {error}", os.fspath(path)) from error


def _check_regular(status: os.stat_result, path: StrPath) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
        raise OSError(0, f"{kind}, not a regular file", os.fspath(path))


def open_user_file(path: StrPath, expected: str = "a readable file") -> BufferedReader:
    """Open a regular file for reading.

    Args:
        expected: What the user should give instead, for the error message, such as "a .beton file".

    Raises:
        UserError: The file does not exist, cannot be opened, or is not a regular file.
    """
    try:
        return open_regular(path)
    except OSError as error:
        raise _unreadable(path, error, expected) from error


def open_own(path: StrPath, flags: int) -> int:
    """Return a descriptor for a file that fastft keeps beside its results. The file is created if there is none.

    Links and FIFOs are refused, because folders may come from other people: a link could lead to any of the user's
    files, and a FIFO could block.

    Args:
        flags: As for `os.open`, without O_TRUNC.

    Raises:
        UserError: Something other than a regular file has this name.
        OSError: The file cannot be opened.
    """
    refused = UserError(f"{os.fspath(path)}: not a regular file. Remove it, or use another folder")
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise refused from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return descriptor


def try_lock(file: IO[Any] | int) -> bool:
    """Lock a file or descriptor until it is closed or the process ends.

    Returns False if another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system does not support locks
        pass
    return True


def was_replaced(file: IO[Any], path: Path) -> bool:
    """Return True if `path` no longer refers to the open `file`: it was removed, or another file has its name."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return True


def check_user_file(path: StrPath, expected: str = "a readable file") -> Path:
    """Return the path of a regular file that can be opened, for libraries that open files themselves."""
    open_user_file(path, expected).close()
    return Path(path)


def read_user_file(path: StrPath, max_bytes: int, expected: str = "a readable file") -> bytes:
    """Read a regular file with at most `max_bytes` bytes.

    Raises:
        UserError: As for `open_user_file`, or the file is larger.
    """
    try:
        return read_regular(path, max_bytes)
    except OSError as error:
        raise _unreadable(path, error, expected) from error


def read_user_text(path: StrPath, max_bytes: int, expected: str = "a readable file") -> str:
    """Read a UTF-8 text file with at most `max_bytes` bytes, without its byte order mark.

    Raises:
        UserError: As for `read_user_file`, or the text is not UTF-8.
    """
    try:
        return read_user_file(path, max_bytes, expected).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}). Give {expected}") from error


def _unreadable(path: StrPath, error: OSError, expected: str) -> UserError:
    return UserError(f"{os.fspath(path)}: cannot be read ({error.strerror or error}). Give {expected}")
