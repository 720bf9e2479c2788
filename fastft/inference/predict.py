"""Trained checkpoints at work: exact evaluation of a `.beton`, labels for a user's own image files."""

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torchvision import transforms

from beton_tools.errors import UserError
from beton_tools.image_formats import IMAGE_SUFFIXES
from fastft.build import build_model
from fastft.config import Recipe, recipe_from_dict
from fastft.data import EvalLoader
from fastft.data.classes import name_outputs, refuse_other_classes
from fastft.files.atomic import atomic_path
from fastft.model import Arch, Classifier
from fastft.train.checkpoint import find_checkpoint, read_checkpoint
from fastft.train.distributed import World, find_world, peer_lost
from fastft.train.evaluate import Scores, evaluate
from fastft.train.precision import inference_precision

BATCH = 32  # images per forward pass


@dataclass(frozen=True)
class Trained:
    """A model ready to use, and what it was trained with; `classes` are the training file's, which may be fewer than outputs."""

    model: Classifier
    recipe: Recipe
    classes: list[str]
    path: Path

    @property
    def outputs(self) -> list[str]:
        """A name for every output of the head."""
        return name_outputs(self.classes, self.recipe.data.num_classes)


@dataclass(frozen=True)
class Prediction:
    """The top classes of one file with their softmax probabilities; `error` says why a file could not be read."""

    path: Path
    classes: list[str]
    probabilities: list[float]
    error: str | None = None


def load_trained(checkpoint: Path, device: torch.device) -> Trained:
    """The model of a checkpoint; of one with EMA weights, these (the paper's protocol).

    Raises:
        UserError: no such checkpoint, or a damaged one.
    """
    found = read_checkpoint(find_checkpoint(checkpoint))
    recipe = recipe_from_dict(found.state["name"], found.state["recipe"])
    arch = Arch(**found.state["arch"])  # the recipe's may name a file that is gone
    model = build_model(recipe, pretrained=False, arch=arch)
    model.load_state_dict(found.tensors.get("ema", found.tensors["model"]))
    model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Trained(model, recipe, found.state["classes"], found.path)


def evaluate_checkpoint(checkpoint: Path, data: Path | None, device: str) -> dict[str, Any]:
    """Scores of a checkpoint on a `.beton` (default: its recipe's validation file), over all processes.

    Raises:
        UserError: no such checkpoint or file, a damaged one, or a file with other classes.
    """
    world = _find_world(device)
    try:
        with world:
            trained, path, scores = _evaluate(checkpoint, data, world)
    except RuntimeError as error:
        if not world.lost_peer(error):
            raise
        raise peer_lost(error, "run the same command again") from None
    return {
        "checkpoint": str(trained.path),
        "data": str(path),
        **asdict(scores),
        "standard_error": scores.standard_error,
    }


def _evaluate(checkpoint: Path, data: Path | None, world: World) -> tuple[Trained, str | Path, Scores]:
    trained = load_trained(checkpoint, world.device)
    recipe, precision = trained.recipe, inference_precision(trained.recipe.train.amp, world.device)
    path = data or recipe.data.val
    if path is None:
        raise UserError("the recipe names no validation file; give one with --data FILE.beton")
    with EvalLoader(
        path, size=recipe.model.image_size, crop_pct=recipe.train.eval_crop_pct, batch_size=BATCH,
        mean=recipe.augment.mean, std=recipe.augment.std, rank=world.rank, world_size=world.size,
        device=world.device, dtype=precision.dtype,
    ) as loader:  # fmt: skip
        refuse_other_classes(loader.class_names, trained.outputs, path)
        try:
            (scores,) = evaluate([trained.model], loader, world, precision)
        except UserError as error:
            raise world.leave_word(error) from error
    return trained, path, scores


def predict_files(checkpoint: Path, images: Sequence[Path], topk: int, device: str) -> Iterator[Prediction]:
    """The top classes of image files and of the images in folders, in order, a batch at a time.

    Raises:
        UserError: no such checkpoint or image, or topk < 1; at the end of the iteration, that no file at all could be read.
    """
    if topk < 1:
        raise UserError(f"topk is {topk}: give 1 or more")
    world = _find_world(device)
    paths = list(image_paths(images))
    trained = load_trained(checkpoint, world.device)
    return _insist_on_one(_predict(trained, paths, topk, world.device))


def _find_world(device: str) -> World:
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no GPU; run 'nvidia-smi' or leave --device out")
    return find_world(device)


def _insist_on_one(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """The same, and after the last one an error where none of the files could be read."""
    any_read, first = False, None
    for prediction in predictions:
        any_read |= prediction.error is None
        first = first or prediction
        yield prediction
    if first is not None and not any_read:
        raise UserError(f"no image could be read; the first, {first.path}: {first.error}")


def image_paths(given: Sequence[Path]) -> Iterator[Path]:
    """The files given, and all image files below the folders given."""
    for path in given:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"{path} holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))})")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"image {path} does not exist")


def eval_transform(recipe: Recipe) -> transforms.Compose:
    """Short side to the input size over the crop share, bicubic; centre crop; normalise: as in evaluation."""
    size = recipe.model.image_size
    return transforms.Compose(
        [
            transforms.Resize(
                math.floor(size / recipe.train.eval_crop_pct), transforms.InterpolationMode.BICUBIC
            ),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(recipe.augment.mean, recipe.augment.std),
        ]
    )


@torch.inference_mode()
def _predict(
    trained: Trained, paths: Sequence[Path], topk: int, device: torch.device
) -> Iterator[Prediction]:
    precision = inference_precision(trained.recipe.train.amp, device)
    transform, outputs = eval_transform(trained.recipe), trained.outputs
    waiting = iter(paths)
    while chunk := list(islice(waiting, BATCH)):
        opened = {path: _open(path, transform) for path in chunk}
        tensors = [t for t in opened.values() if isinstance(t, Tensor)]
        if tensors:
            images = torch.stack(tensors).to(device, memory_format=torch.channels_last)
            with precision.autocast():
                logits_BK = trained.model(images)
            ranked = iter(zip(*(t.tolist() for t in _top(logits_BK.float(), topk)), strict=True))
        for path, result in opened.items():
            if isinstance(result, str):
                yield Prediction(path, [], [], result)
                continue
            probabilities, classes = next(ranked)
            yield Prediction(path, [outputs[k] for k in classes], probabilities)


def _top(logits_BK: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    probabilities_BK, classes_BK = logits_BK.softmax(1).topk(min(topk, logits_BK.shape[1]), dim=1)
    return probabilities_BK, classes_BK


def _open(path: Path, transform: transforms.Compose) -> Tensor | str:
    """The image as the model takes it, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            return transform(image.convert("RGB"))
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged data
        return str(error) or type(error).__name__


def print_predictions(predictions: Iterator[Prediction]) -> None:
    console = Console()
    for p in predictions:
        shown = ", ".join(
            f"{name} {share:.1%}" for name, share in zip(p.classes, p.probabilities, strict=True)
        )
        path = os.fsencode(p.path).decode(errors="replace")  # what is not UTF-8 in a name
        console.print(
            f"{path}: {shown or 'not read: ' + str(p.error)}", highlight=False, markup=False, soft_wrap=True
        )


def write_predictions(predictions: Iterator[Prediction], path: Path) -> None:
    """One row per file and rank: file, rank, class, probability, error. The file appears when complete.

    Raises:
        UserError: it cannot be written.
    """
    try:
        # file names are bytes: what is not UTF-8 in them comes out as it was
        with (
            atomic_path(path) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            _write_rows(predictions, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _write_rows(predictions: Iterator[Prediction], file: TextIO) -> None:
    writer = csv.writer(file)
    writer.writerow(["file", "rank", "class", "probability", "error"])
    for p in predictions:
        if p.error is not None:
            writer.writerow([p.path, "", "", "", p.error])
        for rank, (name, share) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
            writer.writerow([p.path, rank, name, f"{share:.6f}", ""])
