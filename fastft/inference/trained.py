"""A trained model from a checkpoint, and the device to run it on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fastft.config import Recipe
from fastft.data.classes import name_outputs
from fastft.model import Classifier
from fastft.train.checkpoint import find_checkpoint
from fastft.train.distributed import check_device
from fastft.train.stored_model import read_model

BATCH = 32  # images per forward pass


@dataclass(frozen=True)
class Trained:
    """A model ready for inference, with the recipe and the classes of its training."""

    model: Classifier
    recipe: Recipe
    classes: list[str]  # of the training file; there may be fewer than outputs
    path: Path  # of the checkpoint
    class_counts: list[int]  # training images by label; empty if the checkpoint does not hold them

    @property
    def outputs(self) -> list[str]:
        """A name for every output of the head."""
        return name_outputs(self.classes, self.recipe.data.num_classes)


def load_trained(checkpoint: Path, device: torch.device) -> Trained:
    """The model of a checkpoint, with its EMA weights if it has them (the paper's protocol).

    checkpoint: a run directory (its best checkpoint) or a checkpoint in it.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    model, recipe, found = read_model(find_checkpoint(checkpoint))
    model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Trained(model, recipe, found.state["classes"], found.path, found.state.get("class_counts", []))


def choose_device(device: str) -> torch.device:
    """The device for a command line's "auto", "cuda" or "cpu".

    Raises:
        UserError: as `check_device`.
    """
    check_device(device)
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
