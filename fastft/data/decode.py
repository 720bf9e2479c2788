"""Read, decode and augment a batch in compiled code, touching only the pixels that its plans need.

Each row in `Workers` belongs to one thread. Images differ in cost, so threads have no fixed share: each takes the next
image when it has finished one. The functions are long on purpose. Numba optimises a function's callees again together
with it, so each level of calls adds seconds to the compilation.
"""

import time
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from beton_tools.base.jit import njit
from beton_tools.base.pixels import CHANNELS
from beton_tools.jpeg.crop import find_region, pack_rows
from beton_tools.jpeg.markers import BAD_REGION, OK, OTHER_SIZE, scan_header
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import RAW_MODE
from fastft.augment.cpu import Finish, augment_image
from fastft.augment.threads import run_in_threads

# in addition to the codes in `beton_tools.jpeg.markers`, and to `REASONS`, whose codes are negative here
READ_FAILED = 1000

# clock and pread -----------------------------------------------------------------------------------------------------

# `read` is wall time, because a thread that waits for the disk uses no core. `decode` and `augment` are the thread's
# CPU time, so that other programs on the machine do not count.
READ, DECODE, AUGMENT = range(3)
PARTS = ("read", "decode", "augment")
WALL, CPU = time.CLOCK_MONOTONIC, time.CLOCK_THREAD_CPUTIME_ID

_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))


@njit(nogil=True)
def now(clock: int, timespec: np.ndarray) -> int:
    """Read a POSIX clock, in nanoseconds. `timespec` (int64, (2,)) is overwritten."""
    _clock_gettime(clock, timespec.ctypes.data)
    return timespec[0] * 1_000_000_000 + timespec[1]


class WorkClock:
    """Nanoseconds that each thread spent reading, decoding and augmenting.

    Compiled loops add to `spent`, and any thread may call `pop`.
    """

    def __init__(self, threads: int) -> None:
        self.spent = np.zeros((threads, len(PARTS)), np.int64)
        self._popped = np.zeros(len(PARTS), np.int64)

    def pop(self) -> dict[str, float]:
        """Return the seconds that all threads spent reading, decoding and augmenting since the last call."""
        total = self.spent.sum(axis=0)
        seconds = (total - self._popped) / 1e9
        self._popped = total
        return dict(zip(PARTS, seconds.tolist(), strict=True))


# A memory map would save 10 microseconds per image (1 % of decoding it). But if a file is truncated or its disk fails,
# reading its map ends the process with SIGBUS, where `pread` returns an error. A map's pages also count as the process's
# memory.
# arguments: file descriptor, address to write to, number of bytes, offset in the file
_pread = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))
_ATTEMPTS = 100  # a signal can interrupt reading from some network file systems


@njit(nogil=True)
def read_at(descriptor: int, offset: int, num_bytes: int, target: np.ndarray) -> bool:
    """Read bytes [offset, offset + num_bytes) into `target` (uint8), from its first byte on.

    Returns False at the file's end or on an error.
    """
    done, failures = 0, 0
    while done < num_bytes:
        count = _pread(descriptor, target.ctypes.data + done, num_bytes - done, offset + done)
        if count > 0:
            done += count
            continue
        failures += 1
        if count == 0 or failures == _ATTEMPTS:
            return False
    return True


# one image -----------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A batch that threads share: where its images are, how they are stored, and whether they could be read.

    Arrays are (B,).
    """

    descriptor: np.ndarray  # int32, the open file's descriptor
    start: np.ndarray  # int64, byte offset in the file
    num_bytes: np.ndarray  # int64
    height: np.ndarray  # int64
    width: np.ndarray  # int64
    mode: np.ndarray  # uint8, JPEG_MODE or RAW_MODE
    codes: np.ndarray  # int64, set to 0, an error code, or minus the status of `augment_image`
    ticket: np.ndarray  # int64 (1,), how many images have been started


def new_job(betons: BetonSet, ids: np.ndarray) -> Job:
    """Create the job for a batch of sample ids (B,)."""
    rows = betons.image_column[ids]
    height, width = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
    descriptor = betons.descriptors[betons.files_of(ids)]
    start, codes, ticket = rows["data_ptr"].astype(np.int64), np.empty(len(ids), np.int64), np.zeros(1, np.int64)
    return Job(descriptor, start, betons.sizes[ids], height, width, rows["mode"].copy(), codes, ticket)


class Workers(NamedTuple):
    """Arrays that the threads work with, one row each.

    `memory`, uint8 (threads, bytes), is overwritten for every image.
    """

    stored: np.ndarray  # the image's bytes, as read from the file
    decode: np.ndarray  # the JPEG that is decoded, and its pixels
    augment: np.ndarray
    decoders: np.ndarray
    spent: np.ndarray  # int64 (threads, 3), see `WorkClock`


class Worker(NamedTuple):
    """The rows that belong to one thread."""

    stored: np.ndarray
    decode: np.ndarray
    augment: np.ndarray
    decoder: int
    spent: np.ndarray
    timespec: np.ndarray


@njit(nogil=True)
def _worker(workers: Workers, thread: int) -> Worker:
    rows = workers.stored[thread], workers.decode[thread], workers.augment[thread]
    decoder, spent = workers.decoders[thread], workers.spent[thread]
    return Worker(rows[0], rows[1], rows[2], decoder, spent, np.empty(2, np.int64))


@intrinsic
def _take_ticket(typing_context: Any, counter: Any) -> Any:
    """Add 1 to `counter[0]` (int64) atomically and return its value before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counter), codegen


@njit(nogil=True)
def read_stored(job: Job, b: int, region: np.ndarray, buffer: np.ndarray) -> int:
    """Read image b into `buffer`: a whole JPEG, or a raw image's rows that `region` (y, x, h, w) covers.

    Returns 0 or an error code.
    """
    start, num_bytes = job.start[b], job.num_bytes[b]
    if job.mode[b] == RAW_MODE:
        y, x, h, w = region[0], region[1], region[2], region[3]
        height, width = job.height[b], job.width[b]
        if y < 0 or x < 0 or h < 1 or w < 1 or y + h > height or x + w > width:
            return BAD_REGION
        start, num_bytes = start + CHANNELS * width * y, CHANNELS * width * h
    return OK if read_at(job.descriptor[b], start, num_bytes, buffer) else READ_FAILED


@njit(nogil=True)
def decode_stored(job: Job, b: int, region: np.ndarray, worker: Worker) -> tuple[int, np.ndarray, int]:
    """Decode `region` (y, x, h, w) from image b's bytes in `worker.stored`, where `read_stored` wrote the same region.

    Returns (code, pixels, stride). code: 0 or an error code. The region's row r begins at `pixels[r * stride]`. The
    pixels stay in the worker's memory.
    """
    # int64, as the writer uses: Numba would compile the decoder again for int32
    y, x, h, w = np.int64(region[0]), np.int64(region[1]), np.int64(region[2]), np.int64(region[3])
    if job.mode[b] == RAW_MODE:
        return OK, worker.stored[CHANNELS * x :], CHANNELS * job.width[b]
    source = worker.stored[: job.num_bytes[b]]
    head = scan_header(source)
    if head.code != OK:
        return head.code, source, 0
    if head.height != job.height[b] or head.width != job.width[b]:
        return OTHER_SIZE, source, 0
    code, at, stride = find_region(source, head, y, x, h, w, worker.decode, worker.decoder)
    return code, worker.decode[at:], stride


@njit(nogil=True)
def _read_and_decode(job: Job, b: int, region: np.ndarray, worker: Worker) -> tuple[int, np.ndarray, int]:
    """Read image b and decode `region`. Returns what `decode_stored` returns."""
    begun = now(WALL, worker.timespec)
    code = read_stored(job, b, region, worker.stored)
    worker.spent[READ] += now(WALL, worker.timespec) - begun
    if code != OK:
        return code, worker.stored, 0
    begun = now(CPU, worker.timespec)
    code, pixels, stride = decode_stored(job, b, region, worker)
    worker.spent[DECODE] += now(CPU, worker.timespec) - begun
    return code, pixels, stride


# batches -------------------------------------------------------------------------------------------------------------


def decode_packed(job: Job, workers: Workers, regions: np.ndarray, offsets: np.ndarray, packed: np.ndarray) -> None:
    """Decode `regions` (B, 4) into `packed[offsets[b] : offsets[b + 1]]` and set `job.codes`."""
    run_in_threads(_decode_images, len(workers.decoders), job, workers, regions, offsets, packed)


@njit(nogil=True)
def _decode_images(thread, job, workers, regions, offsets, packed):
    worker = _worker(workers, thread)
    b = _take_ticket(job.ticket)
    while b < len(regions):
        code, pixels, stride = _read_and_decode(job, b, regions[b], worker)
        if code == OK:
            begun, h, w = now(CPU, worker.timespec), np.int64(regions[b, 2]), np.int64(regions[b, 3])
            code = pack_rows(pixels, 0, stride, h, w, packed[offsets[b] : offsets[b + 1]])
            worker.spent[DECODE] += now(CPU, worker.timespec) - begun
        job.codes[b] = code
        b = _take_ticket(job.ticket)


def decode_and_augment(
    job: Job, workers: Workers, regions: np.ndarray, plan: np.ndarray, finish: Finish, out: np.ndarray
) -> None:
    """Decode the images and carry out `plan` (B,). out: (B, S, S, 3), viewed as uint8.

    Each image is processed while its pixels are in cache.
    """
    run_in_threads(_augment_images, len(workers.decoders), job, workers, regions, plan, finish, out)


@njit(nogil=True)
def _augment_images(thread, job, workers, regions, plan, finish, out):
    worker = _worker(workers, thread)
    b = _take_ticket(job.ticket)
    while b < len(plan):
        # int64, as in `_augment_rows`: Numba would compile augment_image again for int32
        y, x, h, w = np.int64(regions[b, 0]), np.int64(regions[b, 1]), np.int64(regions[b, 2]), np.int64(regions[b, 3])
        code, pixels, stride = _read_and_decode(job, b, regions[b], worker)
        if code == OK:
            begun = now(CPU, worker.timespec)
            code = -augment_image(pixels, stride, (y, x, h, w), plan[b], finish, worker.augment, out[b])
            worker.spent[AUGMENT] += now(CPU, worker.timespec) - begun
        job.codes[b] = code
        b = _take_ticket(job.ticket)
