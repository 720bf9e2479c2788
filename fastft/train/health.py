"""A run that has gone wrong stops, and says at which step, on which samples, and what is still good."""

from collections.abc import Sequence
from pathlib import Path

from fastft.train.checkpoint import step_checkpoints
from fastft.train.distributed import World
from fastft.train.step import Step

NEVER = 1 << 62  # later than any step
SMALLEST_LOSS_SCALE = 2.0**-10  # 17 halvings below the start: every recent step has overflowed
SHOWN_SAMPLES = 8


def find_trouble(step: Step, world: World, steps_done: int, weights: bool = False) -> tuple[int, str] | None:
    """(the first bad step of any process, what is wrong with it), the same in all of them; None while all is well.

    weights: look at them too, not at the loss alone, which shows a bad gradient one step later.
    """
    bad = int(step.first_bad_step.item())
    first = -world.max(-bad if bad >= 0 else -NEVER)
    if first != NEVER:
        return first, "the loss is not a finite number"
    if weights and world.any(not step.weights_are_finite()):
        return steps_done - 1, "the weights are no finite numbers any more"
    scaler = step.scaler  # its scale is the same in every process
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
        return steps_done - 1, "every recent fp16 step overflows"
    return None


def describe_trouble(step: int, what: str, samples: Sequence[int], checkpoints: Path) -> str:
    """One line. samples: of that step, by their number in the file; checkpoints: the run's folder of them."""
    listed = ", ".join(map(str, samples[:SHOWN_SAMPLES]))
    rest = f", ... {len(samples)} in all" if len(samples) > SHOWN_SAMPLES else ""
    good = step_checkpoints(checkpoints)
    left = f"last good checkpoint: {good[-1]}" if good else "no checkpoint yet"
    return f"{what} at step {step} (samples {listed}{rest}); {left}"
