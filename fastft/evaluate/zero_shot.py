"""`fastft zeroshot`: CLIP's zero-shot classifier for the classes of a file, evaluated, and written as a head to train from."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from beton_tools.base.console import ProgressCallback
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from fastft.evaluate.evaluation import describe_scores, evaluate_model, validation_file
from fastft.evaluate.text_tower import Prompts, class_embeddings, load_text_tower, read_prompts
from fastft.evaluate.trained import Trained
from fastft.model.classifier import TOKEN
from fastft.model.head_file import Head, check_head_path, set_head, write_head
from fastft.model.recipe_model import build_model
from fastft.recipe import Recipe
from fastft.recipe.constants import RAW
from fastft.recipe.training_images import with_num_classes
from fastft.train.distributed import World, connected, find_world


def evaluate_zero_shot(
    recipe: Recipe,
    data: Path | None,
    device: str,
    *,
    names: Path | None = None,
    templates: str,
    out: Path | None = None,
    only_present_classes: bool = False,
    progress: AbstractContextManager[ProgressCallback | None],
) -> tuple[dict[str, Any], Prompts]:
    """(scores as `fastft eval` gives them, prompts) of the zero-shot classifier of a recipe's architecture and weights.

    Args:
        data: images and classes; default: the recipe's validation file. names, templates: as `read_prompts`.
        out: write the head to this .safetensors file.
        progress: shows the classes whose texts are embedded.
    """
    if out is not None:
        check_head_path(out)
    path = data or validation_file(recipe)
    betons = BetonSet.open(path)
    classes, manifest = betons.class_names, Manifest.of_beton(betons.files[0].path)
    prompts = read_prompts(path, classes, manifest, names, templates)
    recipe = with_num_classes(
        recipe.with_option("model.pool", TOKEN).with_option("model.head", None), len(classes), path
    )
    world = find_world(device)
    with connected(world):
        trained = _build(recipe, classes, prompts, world, progress)
        found = evaluate_model(trained, path, world, only_present_classes)
    if out is not None and world.is_main:
        head, source = trained.model.head, {"arch": recipe.model.arch, "weights": recipe.model.weights}
        source |= {"names": prompts.names_source, "templates": prompts.templates_source}
        tensors = head.weight.detach().cpu(), head.bias.detach().cpu()
        write_head(out, Head(*tensors, trained.classes, TOKEN, source))
    return describe_scores(trained, found), prompts


def _build(
    recipe: Recipe,
    classes: list[str],
    prompts: Prompts,
    world: World,
    progress: AbstractContextManager[ProgressCallback | None],
) -> Trained:
    """The image tower with the head of text embeddings times CLIP's logit scale, which the main process computes."""
    m, weight_KD = recipe.model, None
    model = build_model(recipe)
    if world.is_main:
        tower = load_text_tower(recipe, world.device)
        with progress as show:
            embeddings_KD = class_embeddings(tower, prompts.names, prompts.templates, show)
        weight_KD = (tower.logit_scale * embeddings_KD).cpu()
    weight_KD = world.broadcast(weight_KD)
    set_head(model, Head(weight_KD, torch.zeros(len(classes)), classes, TOKEN), Path("of the text tower"))
    model = model.to(world.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    weights = f"zero-shot head of {m.arch}, {Path(m.weights).name}"
    return Trained(model, recipe, classes, Path(m.weights), [], weights, RAW)
