"""A trained model from its checkpoint alone, without the files that the run used."""

from pathlib import Path

import torch

from fastft.build import build_model
from fastft.config import Recipe, recipe_from_dict
from fastft.model import Arch, Classifier
from fastft.train.checkpoint import Checkpoint, Damaged, check_tensors, read_checkpoint
from fastft.train.step_state import forms


def read_model(path: Path) -> tuple[Classifier, Recipe, Checkpoint]:
    """The model of a checkpoint on the CPU: its EMA weights if it has any (the paper's protocol), and its recipe.

    Raises:
        UserError: not a checkpoint, or damaged.
    """
    stem = "ema" if (path / "ema.safetensors").exists() else "model"
    checkpoint = read_checkpoint(path, (stem,))
    recipe = recipe_from_dict(checkpoint.state["name"], checkpoint.state["recipe"])
    arch = Arch(**checkpoint.state["arch"])  # not the recipe's, which may name a file that is gone
    tensors = checkpoint.tensors[stem]
    _check_fits(recipe, arch, checkpoint, stem)
    model = build_model(recipe, pretrained=False, arch=arch)
    model.load_state_dict(tensors)
    return model, recipe, checkpoint


def _check_fits(recipe: Recipe, arch: Arch, checkpoint: Checkpoint, stem: str) -> None:
    """Compare the state with the tensors before a model of the state's size is allocated.

    Raises:
        Damaged: they contradict each other.
    """
    path, tensors = checkpoint.path, checkpoint.tensors[stem]
    if arch.image_size != recipe.model.image_size:
        raise Damaged(path, "arch and recipe have different image sizes")
    if len(checkpoint.state["classes"]) > recipe.data.num_classes:
        raise Damaged(path, "it names more classes than the recipe has outputs")
    if arch.layers > len(tensors):
        raise Damaged(path, f"{stem}.safetensors has too few tensors for {arch.layers} layers")
    try:
        with torch.device("meta"):
            expected = forms(build_model(recipe, pretrained=False, arch=arch).state_dict())
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(path, f"arch is not an architecture: {' '.join(str(error).split())}") from None
    check_tensors(tensors, expected, path, f"{stem}.safetensors")
