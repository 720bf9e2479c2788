"""Encode images in worker processes and return the results in order, with bounded memory.

FFCV's writer waits forever when a worker dies. Here each worker has its own pipe: a closed pipe is noticed at once, and
another process replaces the worker. Worker and parent share a block of memory, the arena. The worker writes there which
image of a chunk it is encoding, so that the image on which it died is known, and the encoded bytes: a pipe would copy
them five times.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import forkserver, reduction, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.sources.base import Location, fetch_remote
from beton_tools.sources.servers import RemoteError
from beton_tools.write.images import BadImage, EncodedImage, EncodeOptions, encode_sample, warm_up

CHUNK = 8  # images per message, up to MAX_CHUNK of one group, such as a row group of a parquet file, which is read whole:
MAX_CHUNK = 128  # few enough that messages fit the pipe's buffer, so that sending never blocks, and a byte counts them
QUEUED = 2  # chunks per worker: one being encoded, one waiting
WINDOW = 4  # chunks per worker between the oldest unfinished image and the newest one sent to a worker
# where images begin in the arena; byte 0 is the number of the image that is being encoded, from 1, or 0
_IMAGES = mmap.PAGESIZE
_REMEDY = "if memory ran out use fewer --workers"
_GUARD = "a script that converts images needs `if __name__ == '__main__':` around its statements"
_CONTINUE = f"{_REMEDY}, then run the same command again to continue"

# not fork: the parent may have OpenMP, Numba and CUDA threads
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    location: Location


@dataclass(frozen=True, slots=True)
class Failed:
    """is_lost: the image may be in order, but its remote file cannot be read; it must not be skipped."""

    reason: str
    is_lost: bool = False


@dataclass(frozen=True, slots=True)
class InArena:
    """An EncodedImage whose bytes lie in the worker's arena."""

    start: int
    stop: int
    height: int
    width: int
    how: str


Result = EncodedImage | Failed


def encode_in_order(tasks: Iterable[Task], options: EncodeOptions, workers: int) -> Generator[Result]:
    """One result per task, in the order of the tasks. workers = 0 encodes in this process.

    An image on which worker processes die twice is Failed. Closing the iterator ends the workers.

    Raises:
        UserError: a worker process died while it was starting or between images.
    """
    if workers == 0:
        chunks = (fetch_remote([task.location for task in chunk]) for chunk in _in_chunks(tasks))
        return (_encode(location, options) for chunk in chunks for location in chunk)
    return _encode_pooled(_in_chunks(tasks), options, workers)


def _in_chunks(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Lists of CHUNK tasks; longer ones where the locations that follow belong to the group of the last."""
    chunk: list[Task] = []
    for task in tasks:
        if len(chunk) >= CHUNK:
            group = getattr(task.location, "group", None)
            same = group is not None and group == getattr(chunk[-1].location, "group", None)
            if not same or len(chunk) == MAX_CHUNK:
                yield chunk
                chunk = []
        chunk.append(task)
    if chunk:
        yield chunk


def _encode(location: Location, options: EncodeOptions) -> Result:
    try:
        return encode_sample(location.read(), options)
    except (BadImage, UserError) as error:
        return Failed(str(error))
    except RemoteError as error:
        return Failed(f"cannot be read ({error})", is_lost=True)
    except OSError as error:
        return Failed(f"cannot be read ({error.strerror or error})")


@dataclass(frozen=True, slots=True)
class _Deadly:
    """Replaces the location of an image on which worker processes die."""

    reason: str

    def read(self) -> bytes:
        raise BadImage(self.reason)


class _Inherited:
    """A file descriptor that is passed to a worker process as an argument."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> _Inherited:
    return _Inherited(duplicate.detach())


def _arena_size(options: EncodeOptions) -> int:
    """Bytes of address space for QUEUED chunks of the largest images; only what is written to takes memory."""
    return _IMAGES + QUEUED * MAX_CHUNK * options.page_size


def _serve(pipe: Connection, arena: _Inherited, options: EncodeOptions) -> None:
    """Main function of a worker: receive lists of locations, send lists of results, until the pipe closes.

    The images of chunk k are written to part k % QUEUED of the arena. The parent has received those of the chunk that
    used the part before when it sends chunk k.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    memory = mmap.mmap(arena.descriptor, _arena_size(options))
    with contextlib.suppress(EOFError, OSError), ThreadPoolExecutor(1) as reader:  # until the parent ends
        received = reader.submit(_receive, pipe)
        for part in cycle(range(QUEUED)):
            locations = received.result()
            received = reader.submit(_receive, pipe)
            at = _IMAGES + part * MAX_CHUNK * options.page_size
            pipe.send(_encode_chunk(locations, options, memory, at))


def _receive(pipe: Connection) -> list[Location]:
    """The next chunk; images of remote files are read, while the chunk before is encoded."""
    return fetch_remote(pipe.recv())


def _encode_chunk(
    locations: list[Location], options: EncodeOptions, memory: mmap.mmap, at: int
) -> list[InArena | Failed]:
    """Results of a chunk; images are written to the arena from `at` on."""
    results: list[InArena | Failed] = []
    for number, location in enumerate(locations, 1):
        memory[0] = number
        result = _encode(location, options)
        if isinstance(result, EncodedImage):
            stop = at + len(result.data)
            memory[at:stop] = result.data
            results.append(InArena(at, stop, result.height, result.width, result.how))
            at = stop
        else:
            results.append(result)
    memory[0] = 0
    return results


@dataclass(slots=True)
class _Chunk:
    tasks: list[Task]
    results: list[Result]  # empty until the chunk is complete


class _Worker:
    """A worker process with its pipe and arena, and the chunks that were sent to it."""

    def __init__(self, options: EncodeOptions) -> None:
        self.options = options
        self.queue: deque[_Chunk] = deque()
        self._suspects: list[Task] = []  # images on which a process has died
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        memory = os.memfd_create("beton arena")
        os.ftruncate(memory, _arena_size(self.options))
        self.arena = mmap.mmap(memory, _arena_size(self.options))
        arguments = (theirs, _Inherited(memory), self.options)
        self.process = _CONTEXT.Process(target=_serve, args=arguments, daemon=True)
        try:
            self.process.start()
        except (OSError, EOFError) as error:  # the server that forks workers died
            raise UserError(f"a worker died while it was starting; {_CONTINUE}") from error
        finally:
            theirs.close()  # so that our end reads end-of-file when the worker dies
            os.close(memory)

    def assign(self, chunk: _Chunk) -> None:
        self.queue.append(chunk)
        self._send(chunk)

    def _send(self, chunk: _Chunk) -> None:
        with contextlib.suppress(OSError):  # the process died, which `receive` notices
            self.pipe.send([task.location for task in chunk.tasks])

    def receive(self) -> None:
        """Receive the results of the oldest chunk. If the process died, start another one with the same chunks."""
        try:
            results = self.pipe.recv()
        except (EOFError, OSError):
            self._blame(self.arena[0])
            self._restart()
        else:
            self.queue.popleft().results = [self._fetch(result) for result in results]

    def _fetch(self, result: InArena | Failed) -> Result:
        if isinstance(result, Failed):
            return result
        data = self.arena[result.start : result.stop]
        return EncodedImage(data, result.height, result.width, result.how)

    def _blame(self, number: int) -> None:
        """Fail an image when a process died on it twice; the first time, other processes may have used up the memory.

        number: of the image in the oldest chunk, from 1; 0: none was being encoded.
        """
        self.process.join(5)
        code = self.process.exitcode
        if number == 0 and code == 1:  # of Python, whose message it has written
            raise UserError(f"a worker ended with the Python error above; {_GUARD}")
        if number == 0:
            raise UserError(f"a worker died between images (exit code {code}); {_CONTINUE}")
        tasks = self.queue[0].tasks
        task = tasks[number - 1]
        if any(task is suspect for suspect in self._suspects):
            reason = f"a worker died on it twice (exit code {code}); {_REMEDY}"
            tasks[number - 1] = Task(task.name, _Deadly(reason))
        self._suspects.append(task)

    def _restart(self) -> None:
        self.pipe.close()
        self.arena.close()
        self._start()
        for chunk in self.queue:
            self._send(chunk)


def _encode_pooled(chunks: Iterator[list[Task]], options: EncodeOptions, count: int) -> Generator[Result]:
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
            while window and window[0].results:
                yield from window.popleft().results
    finally:
        _stop(pool)


def _start_server() -> None:
    """Start the server that forks workers, with SIGINT blocked in it and in them.

    Ctrl-C sends SIGINT to the whole process group, but only this process must react to it.
    """
    _CONTEXT.set_forkserver_preload(["beton_tools.write.workers", "beton_tools.write.worker_preload"])
    resource_tracker.ensure_running()  # before SIGINT is blocked, because it unblocks it
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _send_tasks(chunks: Iterator[list[Task]], pool: list[_Worker], window: deque[_Chunk], limit: int) -> None:
    for worker in sorted(pool, key=lambda w: len(w.queue)):
        while len(worker.queue) < QUEUED and len(window) < limit:
            chunk = _Chunk(next(chunks, []), [])
            if not chunk.tasks:
                return
            worker.assign(chunk)
            window.append(chunk)


def _stop(pool: list[_Worker]) -> None:
    for worker in pool:
        worker.pipe.close()
        worker.process.terminate()
    for worker in pool:
        worker.process.join()
        worker.arena.close()
