"""Preprocessing of an image without fastft: as data for a file's metadata, and as Python code for the model card."""

import json
import math

from beton_tools import __version__
from fastft.evaluate.trained import Trained
from fastft.recipe import Recipe
from fastft.recipe.constants import SQUASH

# the rule that `fastft.evaluate.predictor.eval_tensor` follows, in words
RESIZE = (
    "RGB. Resize the short side to resize_short_side, and the other in proportion, truncated to whole pixels (resize_mode "
    "squash: both to resize_short_side), with Pillow's filter named in interpolation (antialiased). Crop image_size x "
    "image_size, with left and top edge at round((side - image_size) / 2). "
    "Scale to 0..1, subtract mean, and divide by std"
)


def image_record(recipe: Recipe) -> dict[str, object]:
    """Return the numbers that turn an image into the model's input, and the rule that uses them."""
    return {
        "image_size": recipe.model.image_size,
        "resize_short_side": short_side(recipe),
        "resize_mode": recipe.train.eval_resize,
        "interpolation": recipe.train.eval_interpolation,
        "mean": list(recipe.augment.mean),
        "std": list(recipe.augment.std),
        "background": recipe.data.background,
        "preprocessing": RESIZE,
    }


LICENCE = (
    "The weights derive from pretrained weights and from training images. "
    "Both licences apply to what you do with the weights."
)


def origin(trained: Trained) -> dict[str, object]:
    """Return where an exported file comes from: fastft's version, the run, the weights in it, and what licence applies."""
    path = trained.path.resolve()
    is_average = trained.state is not None and trained.state.average is not None  # a checkpoint by itself
    run = {
        "name": path.name if is_average else path.parents[1].name,
        "recipe": trained.recipe.name,
        "checkpoint": trained.path.name,
        "weights": trained.kind,
    }
    return {"fastft": __version__, "run": run, "licence": LICENCE}


def metadata(trained: Trained) -> dict[str, object]:
    """Return class names by output, preprocessing, temperature or thresholds, and origin, for formats that can hold them."""
    return {"classes": trained.outputs, **image_record(trained.recipe), **trained.temperature_record, **origin(trained)}


def short_side(recipe: Recipe) -> int:
    """Return the pixels on an image's short side before the central crop."""
    return math.floor(recipe.model.image_size / recipe.train.eval_crop_pct)


def preprocessing_code(recipe: Recipe, *, normalised: bool) -> str:
    """Return Python code whose `preprocess(path)` gives the same pixels that `fastft predict` gives the model.

    It uses only NumPy and Pillow. normalised: the result is the model's float32 input (3, S, S). If False, it is uint8
    in the same shape, before normalisation.
    """
    constants = [
        f"SIZE = {recipe.model.image_size}",
        f"SHORT_SIDE = {short_side(recipe)}",
        f"BACKGROUND = {json.dumps(recipe.data.background)}  # below transparent pixels",
    ]
    result = "    return np.asarray(image).transpose(2, 0, 1)  # uint8 (3, SIZE, SIZE)"
    if normalised:
        constants += [
            f"MEAN = np.float32({list(recipe.augment.mean)})",
            f"STD = np.float32({list(recipe.augment.std)})",
        ]
        result = (
            "    pixels = np.asarray(image).astype(np.float32) / np.float32(255)\n"
            "    return ((pixels - MEAN) / STD).transpose(2, 0, 1)  # float32 (3, SIZE, SIZE)"
        )
    train = recipe.train
    sides = _SQUASHED if train.eval_resize == SQUASH else _IN_PROPORTION
    return _CODE.format(
        constants="\n".join(constants), sides=sides, filter=train.eval_interpolation.upper(), result=result
    )


_SQUASHED = "    width = height = SHORT_SIDE"
_IN_PROPORTION = """\
    shortest = min(image.size)
    width, height = (int(SHORT_SIDE * side / shortest) for side in image.size)  # truncated, not rounded"""
_CODE = """\
import numpy as np
from PIL import Image, ImageOps

{constants}


def preprocess(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, BACKGROUND)
        image.alpha_composite(picture)
    image = image.convert("RGB")
{sides}
    image = image.resize((width, height), Image.Resampling.{filter})
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    image = image.crop((left, top, left + SIZE, top + SIZE))
{result}"""
