"""The paper's hyperparameters for its two towers. Rules for other towers and other datasets start from them."""

import math
from dataclasses import dataclass

from fastft.recipe.constants import TIMM
from fastft.recipe.schema import Recipe

PAPER_BATCH = 2048


@dataclass(frozen=True)
class PaperRecipe:
    """The paper's hyperparameters for one tower at batch size 2,048 (Table 10 and the reference's logs)."""

    name: str
    epochs: int
    lr: float
    layer_decay: float
    warmup: float  # fraction of all steps
    horizon: float  # EMA horizon as a fraction of all steps: 5,000 steps at decay 0.9998


BASE = PaperRecipe("B/16", epochs=50, lr=6e-4, layer_decay=0.6, warmup=0.2, horizon=0.16)
LARGE = PaperRecipe("L/14", epochs=30, lr=4e-4, layer_decay=0.65, warmup=1 / 6, horizon=4 / 15)
# open_clip's names for towers from L/14 on
LARGE_TOWERS = ("ViT-L", "ViT-H", "ViT-g", "ViT-bigG", "ViT-SO400M")
# parts of timm's names
LARGE_TIMM = ("_large", "_xlarge", "_huge", "_giant", "_gigantic", "_enormous", "_so400m", "_xxlarge")


def paper_recipe(recipe: Recipe) -> PaperRecipe:
    """Return the paper's recipe for the nearest of its two towers."""
    arch = recipe.model.arch
    if arch.startswith(TIMM):
        return LARGE if any(size in arch for size in LARGE_TIMM) else BASE
    return LARGE if arch.startswith(LARGE_TOWERS) else BASE


def square_root_lr(recipe: Recipe) -> float:
    """Return the paper's learning rate times sqrt(batch size / the paper's batch size)."""
    return paper_recipe(recipe).lr * math.sqrt(recipe.optim.batch_size / PAPER_BATCH)
