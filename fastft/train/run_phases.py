"""The phases of a run on this machine: micro-batch, accumulation and FLOPs of each image size and patch dropout."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastft.model.phases import Phase


@dataclass(frozen=True)
class RunPhase(Phase):
    """A phase with what this process computes in it; flops: of training on one image. loader_bytes: GPU memory."""

    micro_batch: int
    accumulation: int
    flops: float
    loader_bytes: float

    def describe(self, world_size: int) -> str:
        """Image size and batch in words."""
        batch = world_size * self.accumulation * self.micro_batch
        return f"{self.size} px, batch {batch} = {world_size} x {self.accumulation} x {self.micro_batch}"

    def log_line(self) -> dict[str, float]:
        """The 'phase' line of metrics.jsonl."""
        return {
            "epoch": self.first, "image_size": self.size, "patch_dropout": self.patch_dropout,
            "micro_batch": self.micro_batch, "accumulation": self.accumulation,
        }  # fmt: skip


class RunPhases:
    """All phases of a run, in order."""

    def __init__(self, phases: Sequence[RunPhase]) -> None:
        self.all = phases

    def at(self, epoch: int) -> RunPhase:
        """The phase of an epoch; after the last epoch the last one."""
        return next(phase for phase in reversed(self.all) if phase.first <= epoch)

    @property
    def smallest_micro_batch(self) -> int:
        return min(phase.micro_batch for phase in self.all)

    def steps_left(self, global_step: int, steps_per_epoch: int, phase: RunPhase) -> float:
        """Remaining steps, each counted as many times as it takes the FLOPs of a step of `phase`."""
        left = 0.0
        for other in self.all:
            end = (other.first + other.epochs) * steps_per_epoch
            steps = max(0, end - max(global_step, other.first * steps_per_epoch))
            left += steps * (other.flops / phase.flops)
        return left
