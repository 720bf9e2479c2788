"""The time split of training, always on: host clocks on a CPU, CUDA events on a GPU."""

import time

import torch

from fastft.recipe.constants import STEP_PARTS


class Split:
    """Seconds per part of a step, summed until they are collected.

    On a GPU a mark is an event in the current stream. Nothing waits, and a part is the time that the GPU took for it
    (for `wait`: the time it was idle). The events are read when the interval is logged, which waits for the GPU anyway.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._seconds = dict.fromkeys(STEP_PARTS, 0.0)
        self._last = time.perf_counter()
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []

    def mark(self, part: str | None) -> None:
        """Count the time since the last mark to `part`, or to none."""
        if self._on_gpu:
            event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
            return
        now = time.perf_counter()
        if part is not None:
            self._seconds[part] += now - self._last
        self._last = now

    def collect(self) -> dict[str, float]:
        """Return the seconds by part since the last call. Waits for the GPU's last mark."""
        if self._marks:
            self._marks[-1][1].synchronize()
            for (_, before), (part, event) in zip(self._marks, self._marks[1:], strict=False):
                if part is not None:
                    self._seconds[part] += before.elapsed_time(event) / 1e3
            self._spare += [event for _, event in self._marks]
            self._marks.clear()
        collected, self._seconds = self._seconds, dict.fromkeys(STEP_PARTS, 0.0)
        return collected
