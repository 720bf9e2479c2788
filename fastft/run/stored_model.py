"""A trained model from its checkpoint alone, without the files that the run used."""

from pathlib import Path

import torch

from beton_tools.base.errors import UserError
from fastft.model import ImageClassifier, TowerArch, arch_from_dict
from fastft.model.recipe_model import build_model
from fastft.recipe import Recipe, recipe_from_dict
from fastft.run.checkpoint import Checkpoint, Damaged, check_tensors, forms, read_checkpoint


def read_model(path: Path, stem: str) -> tuple[ImageClassifier, Recipe, Checkpoint]:
    """The model of a checkpoint on the CPU, and its recipe.

    stem: of the tensor file, "model" or "ema".

    Raises:
        UserError: not a checkpoint, or damaged.
    """
    checkpoint = read_checkpoint(path, (stem,))
    recipe = stored_recipe(checkpoint)
    arch = _stored_arch(checkpoint)
    tensors = checkpoint.tensors[stem]
    model = _build_without_weights(recipe, arch, checkpoint, stem)
    # copies, because these tensors are maps of a file that may be replaced or deleted while the model is in use
    model.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in tensors.items()}, assign=True)
    model.visual.restore_buffers()
    return model, recipe, checkpoint


def stored_recipe(checkpoint: Checkpoint) -> Recipe:
    """The recipe of a checkpoint's run.

    Raises:
        UserError: this version cannot read it.
    """
    try:
        return recipe_from_dict(checkpoint.state["name"], checkpoint.state["recipe"])
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.path}: {error}; was it written by a newer fastft?") from None


def _stored_arch(checkpoint: Checkpoint) -> TowerArch:
    """The checkpoint's architecture, not the recipe's, which may name a file that is gone.

    Raises:
        Damaged: it is no architecture. UserError: a model that the installed timm lacks.
    """
    try:
        return arch_from_dict(checkpoint.state["arch"])
    except (TypeError, ValueError) as error:
        raise Damaged(checkpoint.path, f"arch is not an architecture: {error}") from None


def _build_without_weights(
    recipe: Recipe, arch: TowerArch, checkpoint: Checkpoint, stem: str
) -> ImageClassifier:
    """The model on the meta device, after the state and the tensors have been compared: nothing is allocated.

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
            model = build_model(recipe, pretrained=False, arch=arch)
    except UserError as error:  # an absurd size
        raise Damaged(path, str(error)) from None
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(path, f"arch is not an architecture: {' '.join(str(error).split())}") from None
    check_tensors(tensors, forms(model.state_dict()), path, f"{stem}.safetensors")
    return model
