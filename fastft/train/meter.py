"""What a line of the log is made of: steps, loss and seconds since the line before, over a resume too."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fastft.data import TrainLoader
from fastft.train.distributed import World
from fastft.train.step import Step


@dataclass(frozen=True)
class Reading:
    """Of an interval: mean loss over all processes; of this one, seconds without pauses, and by part (train/timing.py)."""

    steps: int
    loss: float
    seconds: float
    waited: float  # for data
    split: dict[str, float]


class Meter:
    """Counts since `reset`. Reading waits for the device, counting does not."""

    def __init__(self, step: Step, loader: TrainLoader, world: World) -> None:
        self._step, self._loader, self._world = step, loader, world
        self._epoch: defaultdict[str, float] = defaultdict(float)
        self.reset()

    def reset(self) -> None:
        """Begin an interval."""
        self._step.reset_loss()
        self._loader.wait_seconds = 0.0
        self.steps = 0
        self._split: defaultdict[str, float] = defaultdict(float)
        self._began = time.monotonic()

    def pause(self, part: str, seconds: float) -> None:
        """That evaluation or a checkpoint has just taken: the pace is that of the steps."""
        self._began += seconds
        self._epoch[part] += seconds

    def read(self) -> Reading:
        loss = self._world.sum(self._step.loss_sum / max(1, self.steps) / self._world.size).item()
        seconds = time.monotonic() - self._began  # after the device has been waited for
        self._collect()
        return Reading(self.steps, loss, seconds, self._loader.wait_seconds, dict(self._split))

    def state(self) -> dict[str, Any]:
        """The interval so far, for a checkpoint: its line, written after a resume, is of all its steps."""
        loss_sum = self._world.sum(self._step.loss_sum / self._world.size).item()
        seconds = time.monotonic() - self._began
        self._collect()
        return {
            "steps": self.steps, "loss_sum": loss_sum, "seconds": seconds, "waited": self._loader.wait_seconds,
            "split": dict(self._split),
        }  # fmt: skip

    def take_up(self, state: dict[str, Any]) -> None:
        """Inverse of `state`, on an interval that has just begun."""
        if state["steps"] == 0:
            return
        self.steps = state["steps"]
        self._step.loss_sum += state["loss_sum"]
        self._loader.wait_seconds = state["waited"]
        self._split.update(state["split"])
        self._began -= state["seconds"]

    def take_epoch(self) -> dict[str, float]:
        """Where this process's seconds went since the last call: by part, evaluation and checkpoints too."""
        taken = dict(self._epoch)
        self._epoch.clear()
        return taken

    def _collect(self) -> None:
        for part, seconds in (self._step.split.collect() | self._loader.pop_timings()).items():
            self._split[part] += seconds
            self._epoch[part] += seconds
