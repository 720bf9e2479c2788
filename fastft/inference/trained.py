"""A trained model from a checkpoint, and the device to run it on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from beton_tools.errors import UserError
from fastft.build import build_model
from fastft.config import Recipe, recipe_from_dict
from fastft.data.classes import name_outputs
from fastft.model import Arch, Classifier
from fastft.train.checkpoint import find_checkpoint, read_checkpoint

BATCH = 32  # images per forward pass


@dataclass(frozen=True)
class Trained:
    """A model ready for inference, with the recipe and the classes of its training."""

    model: Classifier
    recipe: Recipe
    classes: list[str]  # of the training file; there may be fewer than outputs
    path: Path  # of the checkpoint

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
    found = read_checkpoint(find_checkpoint(checkpoint))
    recipe = recipe_from_dict(found.state["name"], found.state["recipe"])
    arch = Arch(**found.state["arch"])  # the recipe may name an architecture file that no longer exists
    with torch.device("meta"):  # no time for random weights that the checkpoint replaces
        model = build_model(recipe, pretrained=False, arch=arch)
    weights = found.tensors.get("ema", found.tensors["model"])
    # copies: these tensors are maps of a file, which may be replaced or deleted while the model is in use
    model.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in weights.items()}, assign=True)
    model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Trained(model, recipe, found.state["classes"], found.path)


def check_device(device: str) -> None:
    """Check that the device named on the command line exists.

    Raises:
        UserError: it is "cuda", and torch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no GPU; run 'nvidia-smi' or omit --device")


def choose_device(device: str) -> torch.device:
    """The device for a command line's "auto", "cuda" or "cpu".

    Raises:
        UserError: as `check_device`.
    """
    check_device(device)
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
