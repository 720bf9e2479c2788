"""Images per second of the training loader on more cores than were measured.

The model is a closed queue. A process takes its batches one after the other, as `Engine` does: one thread draws the plans,
then the threads take one image after the other, and the batch ends with its slowest image. An image is computed on its
thread's core, and then moves its bytes through the memory that all cores share: each of the k images that move bytes at a
time gets 1/k of the bandwidth, and at most what one core can take (processor sharing).

Assumptions: the CPU time of an image does not depend on the number of cores; a core has its own caches, as the measured
one; hardware threads of a core do not count; memory bandwidth is shared equally; the consumer never makes the loader wait.

`simulate` runs this queue. `steady_rate` is its exact solution without batches, which the tests compare it with.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

import numpy as np


@dataclass(frozen=True)
class LoaderWork:
    """CPU time and memory traffic of the loader."""

    # (n,) CPU seconds of each image, alone on the machine: its memory accesses included
    image_seconds: np.ndarray
    batch_seconds: float  # per batch, in one thread, while the others wait
    image_bytes: float  # through the machine's memory

    @property
    def mean_seconds(self) -> float:
        return float(self.image_seconds.mean())


@dataclass(frozen=True)
class Host:
    """A machine; bandwidths in bytes/s."""

    cores: int
    bandwidth: float  # of the memory, for all cores together
    core_bandwidth: float  # the most that one core takes

    def compute_seconds(self, work: LoaderWork) -> np.ndarray:
        """(n,) seconds of each image without those in which one core alone moves its bytes; not below 0."""
        return np.maximum(work.image_seconds - work.image_bytes / min(self.core_bandwidth, self.bandwidth), 0)


def cores_limit(work: LoaderWork, cores: int) -> float:
    """Images/s if every core worked without a pause."""
    return cores / work.mean_seconds


def bandwidth_limit(work: LoaderWork, host: Host) -> float:
    """Images/s if the memory were busy without a pause."""
    return host.bandwidth / work.image_bytes if work.image_bytes else float("inf")


class SharedBandwidth:
    """Processor sharing: transfers under way get equal parts of the bandwidth, each at most `most`."""

    def __init__(self, total: float, most: float) -> None:
        self.total, self.most = total, most
        self.time = self.moved = 0.0  # bytes that a transfer under way since the start would have moved
        self._ends: list[tuple[float, int]] = []  # `moved` at the end of a transfer, its owner

    def _rate(self) -> float:
        return min(self.most, self.total / len(self._ends))

    def _advance(self, time: float) -> None:
        if self._ends:
            self.moved += (time - self.time) * self._rate()
        self.time = time

    def begin(self, time: float, num_bytes: float, owner: int) -> None:
        self._advance(time)
        heappush(self._ends, (self.moved + num_bytes, owner))

    def next_end(self) -> float:
        """When the next transfer ends if none begins before; infinite if there is none."""
        if not self._ends:
            return float("inf")
        return self.time + (self._ends[0][0] - self.moved) / self._rate()

    def end_next(self) -> int:
        """End that transfer; returns its owner."""
        self._advance(self.next_end())
        return heappop(self._ends)[1]


class _Process:
    """A loader's threads in one batch: images that no thread has taken, and threads at work."""

    def __init__(self, threads: int, batch: int) -> None:
        self.threads, self.batch = threads, batch
        self.waiting = self.busy = 0

    def begin_batch(self) -> int:
        """Return the number of threads that take an image."""
        self.busy = min(self.threads, self.batch)
        self.waiting = self.batch - self.busy
        return self.busy

    def end_image(self) -> bool:
        """End the image of one thread; return True if the thread takes another one."""
        if self.waiting:
            self.waiting -= 1
            return True
        self.busy -= 1
        return False


def simulate(
    work: LoaderWork, host: Host, *, batch: int, processes: int = 1, batches: int = 20, seed: int = 0
) -> float:
    """Images/s of `processes` loaders that divide the cores, each making `batches` batches of `batch` images.

    The first batch of each process is not counted.

    Raises:
        ValueError: there are fewer cores than processes.
    """
    if host.cores < processes:
        raise ValueError(f"{processes} processes need as many cores, not {host.cores}")
    compute = _endless(work, host, seed)
    memory = SharedBandwidth(host.bandwidth, min(host.core_bandwidth, host.bandwidth))
    loaders = [_Process(host.cores // processes, batch) for _ in range(processes)]
    order = count()  # of events at the same time
    computing: list[tuple[float, int, int, bool]] = []  # end, order, process, whether it is a batch's plans

    def add(end: float, process: int, plans: bool) -> None:
        heappush(computing, (end, next(order), process, plans))

    for process in range(processes):
        add(work.batch_seconds, process, True)
    done, warm = 0, processes * batch
    wanted, began, now = warm + processes * batch * (batches - 1), 0.0, 0.0
    while done < wanted:
        if not computing or memory.next_end() <= computing[0][0]:
            process = memory.end_next()
            now = memory.time
            done += 1
            began = now if done == warm else began
            loader = loaders[process]
            if loader.end_image():
                add(now + next(compute), process, False)
            elif not loader.busy:
                add(now + work.batch_seconds, process, True)
            continue
        now, _, process, plans = heappop(computing)
        if plans:
            for _ in range(loaders[process].begin_batch()):
                add(now + next(compute), process, False)
        else:
            memory.begin(now, work.image_bytes, process)
    return (done - warm) / (now - began)


def _endless(work: LoaderWork, host: Host, seed: int) -> Iterator[float]:
    """Compute seconds of images in random order, without the time of their memory transfer."""
    seconds = host.compute_seconds(work)
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(seconds).tolist()


def steady_rate(work: LoaderWork, host: Host) -> float:
    """Images/s without batches: every thread always has an image.

    With k of n threads moving bytes, the memory ends min(k * core_bandwidth, bandwidth) / image_bytes images per second, and
    each of the others ends its computing once in `compute` seconds. This is a birth-death process; its throughput depends on
    the distributions of both times only through their means (Baskett, Chandy, Muntz and Palacios, JACM 22(2), 1975).
    """
    compute = float(host.compute_seconds(work).mean())
    if work.image_bytes == 0:
        return cores_limit(work, host.cores)
    if compute == 0:
        return min(host.cores * host.core_bandwidth, host.bandwidth) / work.image_bytes
    moving = np.arange(1, host.cores + 1)
    ends = np.minimum(moving * host.core_bandwidth, host.bandwidth) / work.image_bytes
    begins = (host.cores - moving + 1) / compute
    log_weight = np.concatenate([[0.0], np.cumsum(np.log(begins / ends))])
    weight = np.exp(log_weight - log_weight.max())
    return float(weight[1:] @ ends / weight.sum())
