"""Worker processes: results in order, bounded memory, and a death that loses at most the image that caused it."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from beton_tools.base.signals import raise_on_stop_signals
from beton_tools.sources import FileSpan, Location
from beton_tools.write.images import EncodedImage, EncodeOptions
from beton_tools.write.workers import CHUNK, WINDOW, Failed, encode_in_order


@dataclass(frozen=True)
class Deadly:
    """A location whose reading kills the process, as the kernel's out-of-memory killer would."""

    def read(self) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


@dataclass(frozen=True)
class DeadlyOnce:
    """Kills the first process that reads it, as a momentary lack of memory would."""

    image: FileSpan
    mark: Path

    def read(self) -> bytes:
        if not self.mark.exists():
            self.mark.touch()
            Deadly().read()
        return self.image.read()


@dataclass(frozen=True)
class Huge:
    def read(self) -> bytes:
        raise MemoryError


@dataclass(frozen=True)
class Unreadable:
    def read(self) -> bytes:
        raise OSError(5, "Input/output error")


def tasks_of(folder: Path, count: int) -> list[Location]:
    paths = sorted(folder.glob("*/*.JPEG"))
    return [FileSpan(str(paths[i % len(paths)])) for i in range(count)]


def test_results_come_in_order_and_reading_ahead_is_bounded(photo_folder):
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


def test_an_image_on_which_a_worker_dies_once_is_not_lost(photo_folder, tmp_path):
    tasks = tasks_of(photo_folder, 30)
    expected = list(encode_in_order(tasks, EncodeOptions(), 0))
    image = tasks[12]
    assert isinstance(image, FileSpan)
    tasks[12] = DeadlyOnce(image, tmp_path / "died")
    assert list(encode_in_order(tasks, EncodeOptions(), 2)) == expected
    assert (tmp_path / "died").exists()


def test_an_image_that_is_too_large_for_the_memory_fails_alone(photo_folder):
    tasks = [Huge(), *tasks_of(photo_folder, 3)]
    failed, *others = encode_in_order(tasks, EncodeOptions(), 1)
    assert isinstance(failed, Failed) and "a worker died on it twice" in failed.reason
    assert all(isinstance(result, EncodedImage) for result in others)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interruption_while_workers_start_leaves_no_worker(photo_folder, monkeypatch, number):
    truly_start, started = multiprocessing.context.ForkServerProcess.start, []

    def start(process: multiprocessing.context.ForkServerProcess) -> None:
        if started:
            signal.raise_signal(number)
        truly_start(process)
        started.append(process)

    monkeypatch.setattr(multiprocessing.context.ForkServerProcess, "start", start)
    with raise_on_stop_signals("beton verify"), pytest.raises(KeyboardInterrupt):
        list(encode_in_order(tasks_of(photo_folder, 30), EncodeOptions(), 3))
    assert len(started) == 1 and not started[0].is_alive()


def test_a_worker_that_is_killed_between_images_is_replaced(photo_folder):
    expected = list(encode_in_order(tasks_of(photo_folder, 30), EncodeOptions(), 0))
    results = encode_in_order(tasks_of(photo_folder, 30), EncodeOptions(), 1)
    found = [next(results)]
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    assert found + list(results) == expected


def test_more_workers_than_open_files_allow_are_not_started(photo_folder):
    """In a process of its own, as in this one other tests' files are open."""
    script = (
        "import resource, sys; from tests.beton_tools.write.test_workers import *\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))\n"
        "tasks = tasks_of(Path(sys.argv[1]), 40)\n"
        "assert list(encode_in_order(tasks, EncodeOptions(), 8)) == list(encode_in_order(tasks, EncodeOptions(), 0))"
    )
    command = [sys.executable, "-c", script, str(photo_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("room", [0, 4, 5])
def test_without_room_for_processes_images_are_encoded_in_this_process(photo_folder, monkeypatch, room):
    monkeypatch.setattr("beton_tools.write.workers.process_room", lambda: room)
    monkeypatch.setattr("beton_tools.write.workers._start_server", lambda: pytest.fail("a process was started"))
    assert len(list(encode_in_order(tasks_of(photo_folder, 9), EncodeOptions(), 8))) == 9


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "looks"), [(6, True), (6, False), (9, False)])
def test_a_limit_on_processes_costs_time_or_is_one_line(photo_folder, tmp_path, tmp_path_factory, limit, looks):
    """looks: whether the limit is known beforehand. Root has no limit, so it becomes another user that may read its files."""
    code = (
        "import sys; from beton_tools.write import workers; from fastft.cli import main\n"
        f"if not {looks}: workers.process_room = lambda: 1e9\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "convert", "folder", "--data", photo_folder, "--out", tmp_path / "o.beton"]
    cache = tmp_path_factory.getbasetemp() / "cache of another user"  # compiled once for all cases
    cache.mkdir(exist_ok=True)
    for folder in (tmp_path, cache):
        folder.chmod(0o777)
    shell = ["bash", "-c", f'ulimit -u {limit}; exec "$@"', "bash", *map(str, command), "--workers", "4"]
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, to become a user without other processes, and setpriv")
    more = ["--clear-groups", "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    shell = ["setpriv", "--reuid=4321", "--regid=4321", *more, *shell]
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(cache), "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(shell, capture_output=True, text=True, timeout=280, env=environment)
    assert "Traceback" not in done.stderr
    if looks:
        assert done.returncode == 0 and (tmp_path / "o.beton").exists(), done.stderr
    else:
        assert done.returncode == 2 and "The limit on processes and threads is reached (ulimit -u" in done.stderr


@pytest.mark.slow
def test_a_script_whose_statements_run_again_in_its_workers_is_told_so(photo_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom beton_tools.write.convert import convert_folder\n"
        "from beton_tools.write.writer import WriteOptions\n"
        f"convert_folder(Path({str(photo_folder)!r}), Path({str(tmp_path / 'a.beton')!r}), WriteOptions(workers=1))\n"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1].endswith(
        "a worker ended with the Python error above. A script that converts images needs `if __name__ == '__main__':` "
        "around its statements"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_a_result_not_an_exception(photo_folder, workers):
    tasks = [*tasks_of(photo_folder, 1), Unreadable(), FileSpan("/nowhere/x.jpg")]
    image, *failures = encode_in_order(tasks, EncodeOptions(), workers)
    assert isinstance(image, EncodedImage)
    assert failures == [
        Failed("cannot be read (Input/output error)"),
        Failed("cannot be read (No such file or directory)"),
    ]
