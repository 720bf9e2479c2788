"""A trained model from its checkpoint alone, without the files that the run used."""

from pathlib import Path

import torch

from beton_tools.base.errors import UserError
from fastft.model import ImageClassifier, arch_from_dict
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
    recipe, tensors = stored_recipe(checkpoint), checkpoint.tensors[stem]
    model = _build_without_weights(recipe, checkpoint, len(tensors))
    check_tensors(tensors, forms(model.state_dict()), path, f"{stem}.safetensors")
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


def _build_without_weights(recipe: Recipe, checkpoint: Checkpoint, tensors: int) -> ImageClassifier:
    """The model on the meta device, so that nothing is allocated.

    Its architecture is the checkpoint's, not the recipe's, which may name a file that is gone. tensors: their number.

    Raises:
        Damaged: the state contradicts itself or the tensors. UserError: a model that the installed timm lacks.
    """
    path, state = checkpoint.path, checkpoint.state
    try:
        arch = arch_from_dict(state["arch"])
        for wrong, reason in (
            (arch.image_size != recipe.model.image_size, "arch and recipe have different image sizes"),
            (arch.layers > tensors, f"too few tensors for {arch.layers} layers"),
            (len(state["classes"]) > recipe.data.num_classes, "more classes than the recipe has outputs"),
        ):
            if wrong:
                raise Damaged(path, reason)
        with torch.device("meta"):
            return build_model(recipe, pretrained=False, arch=arch)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(path, f"arch is not an architecture: {' '.join(str(error).split())}") from None
