"""A recipe's work: FLOPs, images and parameters, counted from shapes."""

from dataclasses import dataclass

from fastft.model import Flops, TowerArch, count_flops, count_frozen_blocks
from fastft.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """Floating-point operations in a whole run."""

    train: float
    evaluate: float

    @property
    def total(self) -> float:
        return self.train + self.evaluate


def recipe_flops(recipe: Recipe, arch: TowerArch) -> Flops:
    """Return the FLOPs per training image, with the recipe's frozen blocks and patch dropout."""
    frozen = count_frozen_blocks(arch.layers, recipe.model.trainable_layers)
    return count_flops(arch, recipe.data.num_classes, frozen_blocks=frozen, patch_dropout=recipe.model.patch_dropout)


def recipe_work(recipe: Recipe, arch: TowerArch, val_images: int) -> Work:
    """Return FLOPs for all training steps, every evaluation on the validation images, and `model.head_init=probe`."""
    probed, evaluated = (
        count_flops(arch.at(size), recipe.data.num_classes).forward
        for size in (recipe.model.image_size, recipe.evaluated_size)
    )
    images = val_images + recipe.selection_images(recipe.data.train_size)
    evaluated *= recipe.evaluations * evaluated_models(recipe) * images
    probed *= probed_images(recipe, images)
    return Work(train_images(recipe) * recipe_flops(recipe, arch).train, evaluated + probed)


def probed_images(recipe: Recipe, val_images: int) -> int:
    """Return the number of images processed before the first step.

    These are the training images whose features the linear probe is fitted to, and the images for evaluating it.
    """
    return recipe.data.train_size + val_images if recipe.model.head_init == "probe" else 0


def train_images(recipe: Recipe) -> int:
    return recipe.epochs * recipe.steps_per_epoch() * recipe.optim.batch_size


def evaluated_models(recipe: Recipe) -> int:
    """Return 2 with an EMA (raw and EMA model), unless only the EMA is evaluated, else 1."""
    return 2 if recipe.ema.decay > 0 and recipe.train.eval_weights == "both" else 1
