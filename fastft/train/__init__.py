"""The training loop, checkpoints, evaluation, distribution, preemption."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastft.train.loop import train

__all__ = ["train"]  # imported when first used: `fastft.run.checkpoint` and others do not need the loop


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastft.train.loop import train

    return train
