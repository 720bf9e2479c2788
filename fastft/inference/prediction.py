"""Class predictions for image files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from beton_tools.errors import UserError
from beton_tools.image_formats import IMAGE_SUFFIXES, is_image_name, open_image
from beton_tools.user_files import check_user_file
from fastft.config import Recipe
from fastft.inference.image_transform import eval_tensor
from fastft.inference.trained import BATCH, Trained, choose_device, load_trained
from fastft.train.precision import inference_precision


@dataclass(frozen=True)
class Prediction:
    """The top classes of one file with their softmax probabilities, or the reason why it cannot be read (`error`)."""

    path: Path
    classes: list[str]
    probabilities: list[float]
    error: str | None = None


def predict_files(checkpoint: Path, images: Sequence[Path], topk: int, device: str) -> Iterator[Prediction]:
    """The top classes of image files and of the images in folders, in order, one batch at a time.

    Raises:
        UserError: there is no such checkpoint or image, or topk < 1; when the iteration ends, that no file could be read.
    """
    if topk < 1:
        raise UserError(f"topk is {topk}: give 1 or more")
    torch_device = choose_device(device)
    paths = list(image_paths(images))
    trained = load_trained(checkpoint, torch_device)
    return _require_one(_predict(trained, paths, topk, torch_device))


def image_paths(given: Sequence[Path]) -> Iterator[Path]:
    """The given files, and all image files in the given folders and their subfolders.

    Raises:
        UserError: a given path is neither a folder with images nor a regular file.
    """
    for path in given:
        if not path.is_dir():
            yield check_user_file(path, "an image file or a folder of images")
            continue
        found = sorted(p for p in path.rglob("*") if is_image_name(p.name) and not p.is_dir())
        if not found:
            raise UserError(f"{path} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
        yield from found


def _require_one(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """The same predictions; after the last, an error if none of the files could be read."""
    any_read, first = False, None
    for prediction in predictions:
        any_read |= prediction.error is None
        first = first or prediction
        yield prediction
    if first is not None and not any_read:
        raise UserError(f"no image could be read; the first, {first.path}: {first.error}")


@torch.inference_mode()
def _predict(
    trained: Trained, paths: Sequence[Path], topk: int, device: torch.device
) -> Iterator[Prediction]:
    precision = inference_precision(trained.recipe.train.amp, device)
    remaining, outputs = iter(paths), trained.outputs
    while chunk := list(islice(remaining, BATCH)):
        read = {path: _read_image(path, trained.recipe) for path in chunk}
        tensors = [t for t in read.values() if isinstance(t, torch.Tensor)]
        if tensors:
            images = torch.stack(tensors).to(device, memory_format=torch.channels_last)
            with precision.autocast():
                logits_BK = trained.model(images)
            ranked = iter(zip(*(t.tolist() for t in _top(logits_BK.float(), topk)), strict=True))
        for path, result in read.items():
            if isinstance(result, str):
                yield Prediction(path, [], [], result)
                continue
            probabilities, classes = next(ranked)
            yield Prediction(path, [outputs[k] for k in classes], probabilities)


def _top(logits_BK: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities_BK, classes_BK = logits_BK.softmax(1).topk(min(topk, logits_BK.shape[1]), dim=1)
    return probabilities_BK, classes_BK


def _read_image(path: Path, recipe: Recipe) -> torch.Tensor | str:
    """The image as the model's input, or the reason why it cannot be read."""
    try:
        with open_image(path) as image:
            return eval_tensor(
                image,
                size=recipe.model.image_size,
                crop_pct=recipe.train.eval_crop_pct,
                mean=recipe.augment.mean,
                std=recipe.augment.std,
            )
    except Exception as error:  # Pillow's plug-ins raise many kinds of exceptions for damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
