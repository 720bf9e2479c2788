"""Worker processes: results in order, bounded memory, and a death that is noticed and named."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from beton_tools import UserError
from beton_tools.images import EncodedImage, EncodeOptions
from beton_tools.sources import FileSpan, Location
from beton_tools.workers import CHUNK, WINDOW, Failed, Task, encode_in_order


@dataclass(frozen=True)
class Deadly:
    """A location whose reading kills the process, as the kernel's out-of-memory killer would."""

    def read(self) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


@dataclass(frozen=True)
class Unreadable:
    def read(self) -> bytes:
        raise OSError(5, "Input/output error")


def tasks_of(folder: Path, count: int) -> list[Task]:
    paths = sorted(folder.glob("*/*.JPEG"))
    return [Task(f"{i}", FileSpan(str(paths[i % len(paths)]))) for i in range(count)]


def test_results_come_in_order_and_reading_ahead_is_bounded(photo_folder: Path) -> None:
    workers, taken = 2, 0

    def counted():
        nonlocal taken
        for task in tasks_of(photo_folder, 300):
            taken += 1
            yield task

    expected = list(encode_in_order(tasks_of(photo_folder, 300), EncodeOptions(), 0))
    for done, result in enumerate(encode_in_order(counted(), EncodeOptions(), workers)):
        assert result == expected[done]
        assert taken - done <= (WINDOW * workers + 1) * CHUNK
    assert taken == done + 1 == 300


def test_a_dead_worker_is_an_error_that_names_the_image(photo_folder: Path) -> None:
    tasks: list[Task] = tasks_of(photo_folder, 60)
    location: Location = Deadly()
    tasks[37] = Task("n02123045/killer.JPEG", location)
    results = encode_in_order(tasks, EncodeOptions(), 2)
    with pytest.raises(UserError, match=r"worker died \(exit code -9\) on n02123045/killer\.JPEG"):
        for result in results:
            assert isinstance(result, EncodedImage)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_a_result_not_an_exception(photo_folder: Path, workers: int) -> None:
    tasks = [*tasks_of(photo_folder, 1), Task("bad", Unreadable()), Task("gone", FileSpan("/nowhere/x.jpg"))]
    image, *failures = encode_in_order(tasks, EncodeOptions(), workers)
    assert isinstance(image, EncodedImage)
    assert failures == [
        Failed("cannot be read (Input/output error)"),
        Failed("cannot be read (No such file or directory)"),
    ]
