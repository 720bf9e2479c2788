"""Steps, loss and seconds since the last line of the log, also across a resume."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fastft.data import TrainLoader
from fastft.train.distributed import World
from fastft.train.step import Step


@dataclass(frozen=True)
class IntervalStats:
    """An interval of the log: mean loss over all processes, and the seconds of this process without pauses."""

    steps: int
    loss: float
    seconds: float
    wait_seconds: float  # waiting for data
    split: dict[str, float]  # seconds by part (train/timing.py), and the loader's work in parallel


class Meter:
    """Counts since `reset`. Reading waits for the device, counting does not."""

    def __init__(self, step: Step, loader: TrainLoader, world: World) -> None:
        self._step, self._loader, self._world = step, loader, world
        self._epoch: defaultdict[str, float] = defaultdict(float)
        self._split: defaultdict[str, float] = defaultdict(float)
        self._has_batch = False  # whether this process has received its first batch
        self.steps, self._began = 0, time.monotonic()
        self.reset()

    def reset(self) -> None:
        """Begin an interval."""
        self._step.reset_loss()
        self._loader.wait_seconds = 0.0
        self.steps = 0
        self._split.clear()
        self._began = time.monotonic()

    def mark_batch(self, logged: dict[str, Any] | None) -> None:
        """End the wait for a batch; that for a process's first batch is counted as `start`, in no interval.

        logged: the interval of the checkpoint that the process continues from (`state_dict`).
        """
        if self._has_batch:
            self._step.split.mark("wait")
            return
        self.reset()
        if logged is not None:
            self.load_state_dict(logged)
        self._step.split.mark("start")
        self._has_batch = True

    def pause(self, part: str, seconds: float) -> None:
        """Leave the last `seconds`, of evaluation or saving, out of the interval; count them as `part` of the epoch."""
        self._began += seconds
        self._epoch[part] += seconds

    def read(self) -> IntervalStats:
        loss = self._world.sum(self._step.loss_sum / max(1, self.steps) / self._world.size).item()
        seconds = time.monotonic() - self._began  # after .item(), which waits for the device
        self._collect()
        return IntervalStats(self.steps, loss, seconds, self._loader.wait_seconds, dict(self._split))

    def state_dict(self) -> dict[str, Any]:
        """The interval so far, for a checkpoint: after a resume, its log line covers all its steps."""
        loss_sum = self._world.sum(self._step.loss_sum / self._world.size).item()
        seconds = time.monotonic() - self._began
        self._collect()
        return {
            "steps": self.steps, "loss_sum": loss_sum, "seconds": seconds, "waited": self._loader.wait_seconds,
            "split": dict(self._split),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`, on an interval that has just begun."""
        if state["steps"] == 0:
            return
        self.steps = state["steps"]
        self._step.loss_sum += state["loss_sum"]
        self._loader.wait_seconds = state["waited"]
        self._split.update(state["split"])
        self._began -= state["seconds"]

    def pop_epoch(self) -> dict[str, float]:
        """Seconds of this process by part since the last call, with evaluation and checkpoints."""
        seconds = dict(self._epoch)
        self._epoch.clear()
        return seconds

    def _collect(self) -> None:
        for part, seconds in (self._step.split.collect() | self._loader.pop_timings()).items():
            self._split[part] += seconds
            self._epoch[part] += seconds
