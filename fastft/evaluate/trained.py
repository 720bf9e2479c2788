"""A trained model from a checkpoint, and the device to run it on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fastft.data.classes import name_outputs
from fastft.model import ImageClassifier
from fastft.recipe import Recipe
from fastft.recipe.constants import AUTO
from fastft.run.chosen_weights import find_weights
from fastft.run.stored_model import read_model
from fastft.train.distributed import check_device

BATCH = 32  # images per forward pass


@dataclass(frozen=True)
class Trained:
    """A model ready for inference, with the recipe and the classes of its training."""

    model: ImageClassifier
    recipe: Recipe
    classes: list[str]  # of the training file; there may be fewer than outputs
    path: Path  # of the checkpoint
    class_counts: list[int]  # training images by label; empty if the checkpoint does not hold them
    weights: str  # which weights these are, in words
    kind: str  # "raw" or "ema"; the best epoch's are those that it was chosen by
    is_adjusted: bool = False  # for the class sizes: not the model that was evaluated in training

    @property
    def outputs(self) -> list[str]:
        """A name for every output of the head."""
        return name_outputs(self.classes, self.recipe.data.num_classes)


def load_trained(checkpoint: Path, device: torch.device, weights: str = AUTO) -> Trained:
    """The model of a run or of a checkpoint.

    Args:
        checkpoint: a run directory or a checkpoint in it.
        weights: "raw", "ema", "best", "last", or "auto": those that the run's rule chose (`fastft.run.chosen_weights`); of a
            checkpoint its EMA, if it has one.

    Raises:
        UserError: there is no such checkpoint, it does not hold these weights, or it is damaged.
    """
    chosen = find_weights(checkpoint, weights)
    model, recipe, found = read_model(chosen.path, chosen.stem)
    model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Trained(
        model,
        recipe,
        found.state["classes"],
        found.path,
        found.state.get("class_counts", []),
        chosen.description,
        chosen.kind,
    )


def choose_device(device: str) -> torch.device:
    """The device for a command line's "auto", "cuda" or "cpu".

    Raises:
        UserError: as `check_device`.
    """
    check_device(device)
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
