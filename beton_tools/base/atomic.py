"""Write files that appear under their name only when they are complete."""

import csv
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.base.user_files import try_lock

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the first characters of what spreadsheets run
_PREFIX, _TOKEN = ".partial-", 8  # hexadecimal digits, different in every call


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file. It is renamed to `path` at the end, or removed after an error.

    Several processes may write `path` at the same time. Each has its own temporary file, and the last one to finish
    determines the content.
    """
    partial = _new_partial(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o666), "wb") as file:
        try_lock(file)  # for `_remove_leftovers` in other processes
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, for files that will be moved there. It is removed at the end.

    Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _new_partial(path)
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try_lock(descriptor)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _new_partial(path: Path) -> Path:
    """Return a new name beside `path`, and remove what killed processes left behind for `path`.

    The name keeps the suffix, because libraries choose the format by it.
    """
    _remove_leftovers(path)
    return path.with_name(f"{_PREFIX}{secrets.token_hex(_TOKEN // 2)}-{path.name}")


def _remove_leftovers(path: Path) -> None:
    for name in _found_partials(path.parent):
        if name[len(_PREFIX) + _TOKEN + 1 :] != path.name:
            continue
        partial = path.with_name(name)
        with suppress(OSError):  # another process writes it, or the file system has no locks
            descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                    shutil.rmtree(partial)
                else:
                    partial.unlink()
            finally:
                os.close(descriptor)


@lru_cache
def _found_partials(folder: Path) -> tuple[str, ...]:
    """List the partial files and folders that a folder contained when this process first wrote into it."""
    with suppress(OSError), os.scandir(folder) as entries:
        return tuple(entry.name for entry in entries if entry.name.startswith(_PREFIX))
    return ()


def check_writable(path: Path, *, suffixes: Sequence[str] = (), makes_directories: bool = False) -> None:
    """Refuse a path that cannot be written, before the work that produces its content.

    Args:
        suffixes: The name must end in one of these, so that a mistyped command does not replace an image or a log.
            () allows any name.
        makes_directories: Whether missing parent directories will be created later.

    Raises:
        UserError: The path is a directory, a link or a device, or has another suffix, or its directory is missing or
            not writable.
    """
    folder = path.parent
    if makes_directories:
        folder = next(p for p in path.absolute().parents if p.exists())
    if path.is_dir():
        reason = "it is a directory"
    elif path.is_symlink() or (path.exists() and not path.is_file()):
        reason = "it is a link, or not a regular file"
    elif suffixes and path.suffix.lower() not in suffixes:
        reason = f"its name should end in {' or '.join(suffixes)}"
    elif not folder.exists():
        reason = f"{folder} does not exist"
    elif not folder.is_dir():
        reason = f"{folder} is not a directory"
    elif not os.access(folder, os.W_OK):
        reason = f"no permission to write into {folder}"
    else:
        return
    raise UserError(f"{path}: cannot be written ({reason}). Give another path")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to replace an existing file, which may belong to the user, unless `overwrite` is set."""
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{path} exists. Give another path, or replace it with --overwrite (in Python overwrite=True)")


def check_output(path: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Apply `check_writable` and `refuse_existing` to a file that the user names."""
    check_writable(path, suffixes=suffixes)
    refuse_existing(path, overwrite)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file. Bytes in paths that are not UTF-8 are written as escapes (`\\udcXX`)."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_output(path: Path, then: str = "Give another path, or free some space") -> Iterator[Path]:
    """Apply `atomic_path` to a file that the user asked for.

    Args:
        then: What the user should do if the file cannot be written, for the error message.

    Raises:
        UserError: The file cannot be written.
    """
    with report_disk_errors(f"{path}:", then), atomic_path(path) as partial:
        yield partial


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file. Names that are not UTF-8 keep their bytes. Raises UserError if the file cannot be written.

    Texts that a spreadsheet would run as a formula, such as `=HYPERLINK(...)`, get a `'` before them, as OWASP advises.
    """
    with (
        atomic_output(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(map(_inert, header))
        writer.writerows(map(_inert, row) for row in rows)


def _inert(cell: object) -> object:
    is_text = isinstance(cell, str | os.PathLike)
    return f"'{cell}" if is_text and str(cell).startswith(_FORMULA) else cell


def save_picture(path: Path, save: Callable[[Path], object]) -> None:
    """Write a picture atomically.

    Args:
        save: Writes the picture to the path that it is given. The suffix selects the format.

    Raises:
        UserError: The file cannot be written, or the format is not known.
    """
    try:
        with atomic_output(path) as partial:
            save(partial)
    except ValueError as error:
        raise UserError(f"{path}: cannot be written ({error}). Give a file name that ends in .png") from error


def sync(path: Path) -> None:
    """Make data written to a file, or renames in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
