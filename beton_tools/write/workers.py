"""Encode images in worker processes and return the results in order, with bounded memory.

FFCV's writer waits forever when a worker dies. Here each worker has its own pipe, through which it sends each image
that it has encoded. A closed pipe is noticed at once, and the worker died on the first image that did not arrive.
Another process replaces the worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path

from beton_tools.base.cgroup import process_room
from beton_tools.base.errors import UserError
from beton_tools.jpeg import JpegError
from beton_tools.sources.base import Location, fetch_remote
from beton_tools.sources.remote_errors import RemoteError
from beton_tools.write.images import BadImage, EncodedImage, EncodeOptions, encode_sample, warm_up

# images per message. Up to MAX_CHUNK from one group, such as a row group in a parquet file, which is read whole
CHUNK = 8
MAX_CHUNK = 128  # few enough that messages fit the pipe's buffer, so that sending never blocks
QUEUED = 2  # chunks per worker: one being encoded, one waiting
WINDOW = 4  # chunks per worker between the oldest unfinished image and the newest one sent to a worker
DESCRIPTORS = 3  # that a worker takes in this process: its pipe, and two of multiprocessing's
PROCESSES = 2  # that a worker takes of the limit on processes: its own, and the thread that reads ahead
SPARE_PROCESSES = 4  # for the server, multiprocessing's resource tracker, and threads of libraries
SPARE_DESCRIPTORS = 12  # for the server, the file that is written, and modules that are imported meanwhile
_REMEDY = "If memory, processes (ulimit -u, pids.max) or open files (ulimit -n) ran out, use fewer --workers"
_NO_THREAD = 71  # a worker's exit code if no thread can be started, and the server's if no process can (EX_OSERR)
_GUARD = "A script that converts images needs `if __name__ == '__main__':` around its statements"
_NO_PROCESS = (
    "The limit on processes and threads is reached (ulimit -u, or pids.max in the control group). Use fewer --workers, then "
    "run the same command again to continue"
)
_CONTINUE = f"{_REMEDY}, then run the same command again to continue"

# not fork: the parent may have OpenMP, Numba and CUDA threads
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Failed:
    """An image that was not encoded.

    Attributes:
        is_lost: Whether the remote file cannot be read. The image itself may be intact, so it must not be skipped.
    """

    reason: str
    is_lost: bool = False


Result = EncodedImage | Failed


def encode_in_order(locations: Iterable[Location], options: EncodeOptions, workers: int) -> Generator[Result]:
    """Return an iterator with one result per image, in the order of the locations.

    With workers = 0, images are encoded in this process. Fewer workers are started if the limits on open files and on
    processes require it.

    If worker processes die twice on an image, the image is Failed. Closing the iterator ends the workers.

    Raises:
        UserError: A worker process died while it was starting.
    """
    workers = min(workers, _most_workers())
    if workers == 0:
        chunks = map(fetch_remote, _in_chunks(locations))
        return (_encode(location, options) for chunk in chunks for location in chunk)
    return _encode_pooled(_in_chunks(locations), options, workers)


def _most_workers() -> int:
    """Return how many workers the limits on open files and on processes allow: at least 1 by the first, 0 by the second.

    Without descriptors, the server that forks workers dies with a traceback.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = limit - len(list(Path("/proc/self/fd").iterdir())) - SPARE_DESCRIPTORS
    room = max(0, process_room() - SPARE_PROCESSES) // PROCESSES
    return int(min(max(1, free // DESCRIPTORS), room))


def _in_chunks(locations: Iterable[Location]) -> Iterator[list[Location]]:
    """Yield lists of CHUNK locations. A list is longer if the following locations belong to the last one's group."""
    chunk: list[Location] = []
    for location in locations:
        if len(chunk) >= CHUNK:
            group = getattr(location, "group", None)
            same = group is not None and group == getattr(chunk[-1], "group", None)
            if not same or len(chunk) == MAX_CHUNK:
                yield chunk
                chunk = []
        chunk.append(location)
    if chunk:
        yield chunk


def _encode(location: Location, options: EncodeOptions) -> Result:
    """Return the image, or why it cannot be stored. Errors that do not concern the image are raised."""
    try:
        data = location.read()
    except (BadImage, UserError) as error:
        return Failed(str(error), is_lost=isinstance(error, RemoteError))
    except OSError as error:
        return Failed(f"cannot be read ({error.strerror or error})")
    try:
        return encode_sample(data, options)
    except (BadImage, JpegError) as error:
        return Failed(str(error))


@dataclass(frozen=True, slots=True)
class _Deadly:
    """Replaces the location of an image on which worker processes die."""

    reason: str

    def read(self) -> bytes:
        raise BadImage(self.reason)


def _serve(pipe: Connection, options: EncodeOptions) -> None:
    """Run a worker: send None, then receive lists of locations and send results, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    with contextlib.suppress(EOFError, OSError), ThreadPoolExecutor(1) as reader:  # until the parent ends
        try:
            received = reader.submit(_receive, pipe)
        except RuntimeError:  # no thread can be started
            os._exit(_NO_THREAD)
        pipe.send(None)
        while True:
            locations = received.result()
            received = reader.submit(_receive, pipe)
            for location in locations:
                try:
                    result = _encode(location, options)
                except MemoryError:  # the parent starts another worker. Leaving `with` would wait for `reader` for ever
                    os._exit(1)
                pipe.send(result)


def _receive(pipe: Connection) -> list[Location]:
    """Receive the next chunk. Its remote images are read while the previous chunk is encoded."""
    return fetch_remote(pipe.recv())


@dataclass(slots=True)
class _Chunk:
    locations: list[Location]
    results: list[Result]

    @property
    def is_complete(self) -> bool:
        return len(self.results) == len(self.locations)


class _Worker:
    """A worker process with its pipe, and the chunks that were sent to it."""

    def __init__(self, options: EncodeOptions) -> None:
        self.options = options
        self.queue: deque[_Chunk] = deque()
        self._suspects: list[Location] = []  # images on which a process has died
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.has_started = False
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, self.options), daemon=True)
        try:
            self.process.start()
        except (OSError, EOFError) as error:  # the server that forks workers died
            if _server_ended_with(_NO_THREAD):
                raise UserError(f"a worker could not be started. {_NO_PROCESS}") from error
            raise UserError(f"a worker died while it was starting. {_CONTINUE}") from error
        finally:
            theirs.close()  # so that our end reads end-of-file when the worker dies

    def assign(self, chunk: _Chunk) -> None:
        self.queue.append(chunk)
        self._send(chunk)

    def _send(self, chunk: _Chunk) -> None:
        with contextlib.suppress(OSError):  # the process died, which `receive` notices
            self.pipe.send(chunk.locations[len(chunk.results) :])

    def receive(self) -> None:
        """Receive a result from the oldest chunk. If the process died, start another one with what is missing."""
        try:
            result = self.pipe.recv()
        except (EOFError, OSError):
            self._blame()
            self.pipe.close()
            self._start()
            for chunk in self.queue:
                self._send(chunk)
            return
        if not self.has_started:
            self.has_started = True
            return
        self.queue[0].results.append(result)
        if self.queue[0].is_complete:
            self.queue.popleft()

    def _blame(self) -> None:
        """Fail an image if a process died on it twice. The first time, other processes may have used up the memory."""
        self.process.join(5)
        code = self.process.exitcode
        if code == 1 and not self.has_started:  # Python ended it and has written the error's message
            raise UserError(f"a worker ended with the Python error above. {_GUARD}")
        if code == _NO_THREAD:
            raise UserError(f"a worker could not start a thread. {_NO_PROCESS}")
        if not self.has_started:
            raise UserError(f"a worker died while it was starting (exit code {code}). {_CONTINUE}")
        locations, number = self.queue[0].locations, len(self.queue[0].results)
        location = locations[number]
        if any(location is suspect for suspect in self._suspects):
            locations[number] = _Deadly(f"a worker died on it twice (exit code {code}). {_REMEDY}")
        self._suspects.append(location)


def _encode_pooled(chunks: Iterator[list[Location]], options: EncodeOptions, count: int) -> Generator[Result]:
    warm_up()  # fills Numba's cache, so that the server does not compile
    _start_server()
    pool: list[_Worker] = []
    window: deque[_Chunk] = deque()
    try:
        for _ in range(count):
            pool.append(_Worker(options))
        while True:
            _send_tasks(chunks, pool, window, WINDOW * count)
            if not window:
                return
            by_pipe = {worker.pipe: worker for worker in pool if worker.queue}
            for pipe in wait(list(by_pipe)):
                by_pipe[pipe].receive()  # type: ignore[index]
            while window and window[0].is_complete:
                yield from window.popleft().results
    finally:
        for worker in pool:
            worker.pipe.close()
            worker.process.terminate()
        for worker in pool:
            worker.process.join()


def _start_server() -> None:
    """Start the server that forks workers, with SIGINT blocked in the server and its workers.

    Ctrl-C sends SIGINT to the whole process group, but only this process must react to it.
    """
    _CONTEXT.set_forkserver_preload(["beton_tools.write.workers", "beton_tools.write.worker_preload"])
    resource_tracker.ensure_running()  # before SIGINT is blocked, because it unblocks it
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _server_ended_with(code: int) -> bool:
    """Return whether the server that forks workers ended with this exit code. It stays for `forkserver` to reap."""
    pid: int = getattr(forkserver._forkserver, "_forkserver_pid", None) or 0
    for _ in range(20):  # its pipes close before it ends
        with contextlib.suppress(OSError):
            if (ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                return ended.si_status == code
        time.sleep(0.05)
    return False


def _send_tasks(chunks: Iterator[list[Location]], pool: list[_Worker], window: deque[_Chunk], limit: int) -> None:
    for worker in sorted(pool, key=lambda w: len(w.queue)):
        while len(worker.queue) < QUEUED and len(window) < limit:
            chunk = _Chunk(next(chunks, []), [])
            if not chunk.locations:
                return
            worker.assign(chunk)
            window.append(chunk)
