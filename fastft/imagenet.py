"""What holds for ImageNet alone: the paper's accuracies, and the validation images that they are of."""

from typing import Any

from fastft.config import IMAGENET_TRAIN_SIZE, Recipe

CLASSES = 1000
VAL_IMAGES = 50_000  # ILSVRC2012 validation


def is_imagenet(recipe: Recipe) -> bool:
    """By its classes and training images, which is all that a recipe says of its data."""
    return (recipe.data.num_classes, recipe.data.train_size) == (CLASSES, IMAGENET_TRAIN_SIZE)


def expected_top1(recipe: Recipe) -> float | None:
    """The recipe's expected accuracy, where it trains on what that was reached on."""
    return recipe.about.top1 if is_imagenet(recipe) else None


def assumed_val_images(recipe: Recipe) -> int:
    """ImageNet's 50,000; of other data the same share of the training images, as recipes do not say how many."""
    return round(recipe.data.train_size * VAL_IMAGES / IMAGENET_TRAIN_SIZE)


def val_images_row(recipe: Recipe, given: int | None = None) -> dict[str, Any]:
    """The number of validation images as an assumption to show, like those of `Overheads.describe`."""
    what, train_size = "validation images", recipe.data.train_size
    if given is not None:
        return {"name": "val_images", "what": what, "value": given, "basis": "given"}
    same = train_size == IMAGENET_TRAIN_SIZE
    rule = "as many as ImageNet has" if same else f"ImageNet's share of {train_size:,} training images"
    value = assumed_val_images(recipe)
    return {"name": "val_images", "what": f"{what}, {rule}", "value": value, "basis": "assumed"}
