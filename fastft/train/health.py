"""Detect a run that has diverged: at which step, on which samples, and which checkpoint is still good."""

from collections.abc import Sequence
from pathlib import Path

from fastft.run.checkpoint import list_checkpoints
from fastft.train.distributed import World
from fastft.train.step import Step

NEVER = 1 << 62  # later than any step
SMALLEST_LOSS_SCALE = 2.0**-10  # 17 halvings below the start: every recent step has overflowed
SHOWN_SAMPLES = 8


def find_divergence(
    step: Step, world: World, steps_done: int, weights: bool = False
) -> tuple[int, str] | None:
    """(first bad step of any process, what is wrong), the same in all processes; None if nothing is wrong.

    weights: also check the weights. The loss shows a bad gradient only one step later.
    """
    bad = int(step.first_bad_step.item())
    first = -world.max(-bad if bad >= 0 else -NEVER)
    if first != NEVER:
        return first, "the loss is NaN or Inf"
    if weights and world.any(not step.weights_are_finite()):
        return steps_done - 1, "the weights contain NaN or Inf"
    scaler = step.scaler  # its scale is the same in every process
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
        return steps_done - 1, "every recent fp16 step overflows"
    return None


def describe_divergence(step: int, what: str, samples: Sequence[int], checkpoints: Path) -> str:
    """The error message. samples: of that step, by their index in the file. checkpoints: their folder."""
    listed = ", ".join(map(str, samples[:SHOWN_SAMPLES]))
    rest = f", ... {len(samples)} in all" if len(samples) > SHOWN_SAMPLES else ""
    good = list_checkpoints(checkpoints)
    last = f"last good checkpoint: {good[-1]}" if good else "no checkpoint yet"
    return f"{what} at step {step} (samples {listed}{rest}); {last}"
