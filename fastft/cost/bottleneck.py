"""Diagnose a step's time: its parts, the bottleneck, and advice."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastft.recipe.constants import STEP_PARTS

# LOOP_PARTS are wall seconds in the training process, which add up. LOADER_PARTS are seconds in the loader's threads
# and streams, which overlap with them.
LOOP_PARTS = (*STEP_PARTS, "eval", "checkpoint")
LOADER_PARTS = ("read", "decode", "copy", "augment")
NAMES = {
    "start": "first batch",
    "wait": "waiting for data",
    "eval": "evaluation",
    "ema": "EMA",
    "optimizer": "optimiser",
}
WAIT_LIMIT = 0.05  # the loader is the bottleneck if waiting for it takes this fraction of the loop or more

ADVICE = {
    "read": "Keep the .beton in memory or on a faster disk, or convert with a smaller --max-resolution",
    "decode": "Give the process more cores, convert with a smaller --max-resolution, or store raw pixels (--write-mode raw)",
    "augment": "If the CPU augments, give the process more cores. If the GPU does, use a cheaper augmentation",
    "copy": "A larger --train.micro_batch needs fewer copies",
    "compute": "This is the expected bottleneck. On a GPU --train.step=measure or a larger --train.micro_batch may help",
    "optimizer": "The update is limited by memory bandwidth. Train fewer layers with --model.trainable_layers",
    "ema": "The update is limited by memory bandwidth. A larger --optim.batch_size needs fewer updates",
    "eval": "Evaluate less often with --train.eval_every",
    "checkpoint": "Save less often with --train.checkpoint_steps=0, or write to a faster disk",
}


@dataclass(frozen=True)
class Diagnosis:
    """The part that limits the speed, and advice against it."""

    sentence: str
    advice: str


@dataclass(frozen=True)
class Part:
    """A measured part of a step's time. share: its fraction of all measured parts."""

    key: str
    name: str
    seconds: float
    share: float


def shares(seconds: Mapping[str, float], parts: tuple[str, ...]) -> list[Part]:
    """Return the parts that were measured."""
    known = {part: seconds[part] for part in parts if seconds.get(part)}
    total = sum(known.values())
    return [Part(k, NAMES.get(k, k), s, s / total) for k, s in known.items()]


def diagnose(seconds: Mapping[str, float]) -> Diagnosis | None:
    """Find the bottleneck by wall time in the loop, without its start. Returns None if nothing was measured."""
    loop = {part.key: part.share for part in shares(seconds, LOOP_PARTS[1:])}
    if not loop:
        return None
    time = "the time after the first batch" if seconds.get("start") else "the time"
    if loop.get("wait", 0.0) >= WAIT_LIMIT:
        return _loader_limits(seconds, f"{loop['wait']:.0%} of {time}")
    compute = loop.pop("forward", 0.0) + loop.pop("backward", 0.0)
    loop.pop("wait", None)
    other = max(loop, key=loop.__getitem__, default="")
    if compute >= loop.get(other, 0.0):
        said = f"The model is the bottleneck: forward and backward take {compute:.0%} of {time}."
        return Diagnosis(said, ADVICE["compute"])
    name = NAMES.get(other, other)
    said = f"{name[0].upper()}{name[1:]} is the bottleneck: it takes {loop[other]:.0%} of {time}."
    return Diagnosis(said, ADVICE[other])


def _loader_limits(seconds: Mapping[str, float], wait: str) -> Diagnosis:
    said = f"The loader is the bottleneck: {wait} is spent waiting for it"
    worst = max(shares(seconds, LOADER_PARTS), key=lambda part: part.share, default=None)
    if worst is None:
        return Diagnosis(f"{said}.", ADVICE["decode"])
    said = f"{said}, and {worst.share:.0%} of its work is {worst.key}."
    return Diagnosis(said, ADVICE[worst.key])
