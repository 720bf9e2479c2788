"""Encode images in worker processes and hand the results back in order, with bounded memory.

FFCV's writer waits for ever when a worker dies. Here each worker owns one pipe: a closed pipe is noticed at
once, and another process takes the worker's place. Worker and parent share memory, an arena, in which the
worker notes which image of a chunk it is at, so that the one it died on is known. Image bytes go through the
arena too: the pipe would copy them five times.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2

from beton_tools.errors import UserError
from beton_tools.images import BadImage, EncodedImage, EncodeOptions, encode_sample, warm_up
from beton_tools.jpeg.markers import JpegError
from beton_tools.sources.base import Location

CHUNK = 8  # images per message: a worker's queue stays far below a pipe's buffer, so sending never blocks
QUEUED = 2  # chunks per worker: one in work, one waiting
WINDOW = 4  # chunks per worker between the oldest unfinished image and the newest one handed out
_IMAGES = mmap.PAGESIZE  # where images begin in the arena; byte 0: the chunk's image in work, from 1, or 0

# not fork: the parent may hold OpenMP, numba and CUDA threads
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    location: Location


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str


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
    """One result per task, in the tasks' order. workers = 0 works in this process.

    An image on which worker processes die twice is Failed. Raises UserError when one dies without an image.
    Closing the iterator ends the workers.
    """
    if workers == 0:
        return (_encode(task.location, options) for task in tasks)
    return _encode_pooled(iter(tasks), options, workers)


def _encode(location: Location, options: EncodeOptions) -> Result:
    try:
        return encode_sample(location.read(), options)
    except (BadImage, JpegError) as error:
        return Failed(str(error))
    except OSError as error:
        return Failed(f"cannot be read ({error.strerror or error})")


@dataclass(frozen=True, slots=True)
class _Deadly:
    """In place of the location of an image on which worker processes die."""

    reason: str

    def read(self) -> bytes:
        raise BadImage(self.reason)


class _Inherited:
    """A file descriptor that reaches a worker process as an argument of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> _Inherited:
    return _Inherited(duplicate.detach())


def _arena_size(options: EncodeOptions) -> int:
    """Bytes of address space: QUEUED chunks of images as large as they may be. Memory is used where
    touched."""
    return _IMAGES + QUEUED * CHUNK * options.page_size


def _serve(pipe: Connection, arena: _Inherited, options: EncodeOptions) -> None:
    """A worker's life: lists of locations in, lists of results out, until the pipe closes.

    Chunk k is written to part k % QUEUED of the arena: its last tenant has been received when chunk k is
    sent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it ends us
    cv2.setNumThreads(1)
    memory = mmap.mmap(arena.descriptor, _arena_size(options))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        for part in cycle(range(QUEUED)):
            at = _IMAGES + part * CHUNK * options.page_size
            pipe.send(_encode_chunk(pipe.recv(), options, memory, at))


def _encode_chunk(
    locations: list[Location], options: EncodeOptions, memory: mmap.mmap, at: int
) -> list[InArena | Failed]:
    """Results of a chunk; images go to the arena from `at` on."""
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
    results: list[Result]  # empty until all are there


class _Worker:
    """A process with its pipe and arena, and the chunks that it has been sent."""

    def __init__(self, options: EncodeOptions) -> None:
        self.options = options
        self.queue: deque[_Chunk] = deque()
        self._suspects: list[Task] = []  # images on which a process has died
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        memory = os.memfd_create("beton arena")
        os.ftruncate(memory, _arena_size(self.options))
        arguments = (theirs, _Inherited(memory), self.options)
        self.process = _CONTEXT.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # so that our end reads end-of-file when the worker dies
        self.arena = mmap.mmap(memory, _arena_size(self.options))
        os.close(memory)

    def assign(self, chunk: _Chunk) -> None:
        self.queue.append(chunk)
        self._send(chunk)

    def _send(self, chunk: _Chunk) -> None:
        with contextlib.suppress(OSError):  # a process that died: `receive` will find out
            self.pipe.send([task.location for task in chunk.tasks])

    def receive(self) -> None:
        """Results of the oldest chunk; where the process died instead, another one begins the chunk again."""
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
        """Give up an image at the second death on it: at the first, others may have taken the memory."""
        self.process.join(5)
        code, remedy = self.process.exitcode, "if memory ran out use fewer --workers"
        if number == 0:
            raise UserError(
                f"a worker died (exit code {code}) with no image in work; {remedy}, then run the same command "
                "again to go on"
            )
        tasks = self.queue[0].tasks
        task = tasks[number - 1]
        if any(task is suspect for suspect in self._suspects):
            reason = f"a worker died on it twice (exit code {code}); {remedy}"
            tasks[number - 1] = Task(task.name, _Deadly(reason))
        self._suspects.append(task)

    def _restart(self) -> None:
        self.pipe.close()
        self.arena.close()
        self._start()
        for chunk in self.queue:
            self._send(chunk)


def _encode_pooled(tasks: Iterator[Task], options: EncodeOptions, count: int) -> Generator[Result]:
    warm_up()  # fills numba's cache, so that the server need not compile
    _CONTEXT.set_forkserver_preload(["beton_tools.workers", "beton_tools.worker_preload"])
    pool = [_Worker(options) for _ in range(count)]
    try:
        window: deque[_Chunk] = deque()
        while True:
            _hand_out(tasks, pool, window, WINDOW * count)
            if not window:
                return
            by_pipe = {worker.pipe: worker for worker in pool if worker.queue}
            for pipe in wait(list(by_pipe)):
                by_pipe[pipe].receive()  # type: ignore[index]
            while window and window[0].results:
                yield from window.popleft().results
    finally:
        _stop(pool)


def _hand_out(tasks: Iterator[Task], pool: list[_Worker], window: deque[_Chunk], limit: int) -> None:
    for worker in sorted(pool, key=lambda w: len(w.queue)):
        while len(worker.queue) < QUEUED and len(window) < limit:
            chunk = _Chunk(list(islice(tasks, CHUNK)), [])
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
