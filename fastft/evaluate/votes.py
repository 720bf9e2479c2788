"""Where a prediction comes from: what each patch adds to a class's logit.

With the paper's head (LayerNorm on each patch token, mean, linear), each patch contributes one number to a logit, its vote,
and the logit is the votes' mean. So a vote map is exact, unlike gradients and attention, which only approximate. A patch's
token has seen the whole image through attention, so its votes say what the model concluded at this place, not only from its
pixels.

A picture shows the votes for one class minus the votes for another, in units of the largest difference: red patches vote for
the first class, and blue ones for the second.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from beton_tools.base.atomic import atomic_output
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.base.image_formats import open_image, orientation_of, upright_rgb
from fastft.augment.recipe_policy import build_policy
from fastft.evaluate.predictor import Prediction, resize_and_crop
from fastft.recipe import Recipe

SHOWN = 224  # a picture's side has at least this many pixels
FOR, AGAINST = (214, 39, 40), (31, 87, 180)  # red and blue
OPACITY = 0.7  # the opacity for the largest difference


def draw_votes(image: Image.Image, difference_HW: np.ndarray, recipe: Recipe) -> tuple[Image.Image, Image.Image]:
    """Return (the part of an RGB image that the model sees, the same part with the votes over it).

    Args:
        difference_HW: the votes for one class minus those for another, by patch.
        recipe: decides which part of the image the model sees.
    """
    size = recipe.evaluated_size
    seen = resize_and_crop(image, size * -(-SHOWN // size), build_policy(recipe))
    share_HW = difference_HW / max(float(np.abs(difference_HW).max()), np.finfo(np.float32).tiny)
    colour_HW3 = np.where(share_HW[..., None] > 0, FOR, AGAINST)
    alpha_HW1 = OPACITY * np.abs(share_HW)[..., None]
    over = Image.fromarray(np.concatenate([colour_HW3, 255 * alpha_HW1], 2).round().astype(np.uint8), "RGBA")
    over = over.resize(seen.size, Image.Resampling.NEAREST)
    return seen, Image.alpha_composite(seen.convert("RGBA"), over).convert("RGB")


def check_votes_folder(folder: Path, overwrite: bool) -> None:
    """Make the folder. Raises UserError if it is no folder, cannot be written, or has files and `overwrite` is not set."""
    with report_disk_errors(folder, "Give another --votes"):
        folder.mkdir(parents=True, exist_ok=True)
    if not overwrite and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty. Give another --votes, or replace its files with --overwrite")


def save_votes(predictions: Iterable[Prediction], folder: Path, say: Callable[[str], None]) -> Iterator[Prediction]:
    """Write each prediction's votes to `folder`, then yield it.

    NUMBER-NAME.png shows the image as the model sees it, and the votes for its most probable class against the second one.
    NUMBER-NAME.npz has `votes` (K, grid, grid) float32, whose means are `logits` (K,), `classes` (K,) and `path`. Votes that
    an earlier call left in the folder are removed at the end, because they may be another model's.

    Raises:
        UserError: a file cannot be written.
    """
    written: set[Path] = set()
    for number, prediction in enumerate(predictions):
        if (votes := prediction.votes) is not None:
            first, second = votes.ranked[:2]
            with open_image(prediction.path) as opened:
                rgb, _ = upright_rgb(opened, orientation_of(opened), votes.recipe.data.background)
            path = folder / f"{number:04}-{prediction.path.stem}.png"
            with atomic_output(path) as partial:
                _beside(*draw_votes(rgb, votes.against(first, second), votes.recipe)).save(partial, "PNG")
            names, name = np.array(votes.classes), np.array(str(prediction.path))
            with atomic_output(path.with_suffix(".npz")) as partial, partial.open("wb") as file:
                np.savez_compressed(file, votes=votes.by_patch_KHW, logits=votes.logits_K, classes=names, path=name)
            pair = [printable(votes.classes[k]) for k in (first, second)]
            say(f"{path}: red patches vote for {pair[0]}, blue ones for {pair[1]}")
            written.add(path.with_suffix(".npz"))
        yield prediction
    for earlier in set(folder.glob("[0-9][0-9][0-9][0-9]*-*.npz")) - written:
        if (picture := earlier.with_suffix(".png")).exists():
            earlier.unlink()
            picture.unlink()
    say(f"{folder}: votes for {len(written):,} images. Their mean over an image's patches is the class's logit")


def _beside(*panels: Image.Image) -> Image.Image:
    """Put images with one size in a row."""
    width, height = panels[0].size
    row = Image.new("RGB", (width * len(panels), height))
    for k, panel in enumerate(panels):
        row.paste(panel, (k * width, 0))
    return row
