"""Class predictions for image files. Threads decode a batch while the model works on the batch before."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beton_tools.base.atomic import write_csv
from beton_tools.base.cgroup import usable_cpus
from beton_tools.base.console import by_suffix
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import (
    DEEP_IMAGES,
    IMAGE_SUFFIXES,
    TRANSPARENT,
    depth_prefix,
    open_image,
    orientation_of,
    upright_rgb,
)
from fastft.evaluate.notebook import html_image, html_table
from fastft.evaluate.scores import forward
from fastft.evaluate.trained import BATCH, Trained, adjust_logits, load_trained
from fastft.machine.distributed import World, find_world
from fastft.machine.precision import inference_precision
from fastft.model.classifier import rank_classes
from fastft.recipe import Recipe
from fastft.recipe.constants import AUTO

Source = Path | str | Image.Image
Given = Source | np.ndarray
Colour = Sequence[float]  # per channel, in 0..1
TOPK = 5  # classes per image
BATCHES_AHEAD = 2  # being decoded or ready, including the one that is delivered next
MOST_PIXELS = 1 << 26  # of a resized image; one of 1 x 65,000 pixels would have 3.3 billion


@dataclass(frozen=True, repr=False)
class Prediction:
    """The top classes of one file with their probabilities, or the reason why it cannot be read (`error`).

    None below the predictor's `min_probability`. Multi-label: those that reach their thresholds, which may be none.
    path: of the file; empty for an image in memory, which is then `image`.
    notes: what to know of the pixels, for "1 image has ...": that those above 8 bits per value were clipped, that transparent
    ones were laid on `data.background`.
    """

    path: Path
    classes: list[str]
    probabilities: list[float]
    error: str | None = None
    notes: tuple[str, ...] = ()
    image: Image.Image | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        shares = (f"{name} {share:.1%}" for name, share in zip(self.classes, self.probabilities, strict=True))
        said = f"not read: {self.error}" if self.error else ", ".join(shares) or "no class"
        return f"Prediction({str(self.path)!r}: {said})" if self.path != Path() else f"Prediction({said})"

    def _repr_html_(self) -> str:
        """The image beside its classes, for notebooks."""
        shares: list[tuple[str, str | None]] = [
            (name, f"{share:.1%}") for name, share in zip(self.classes, self.probabilities, strict=True)
        ]
        rows = [("not read", self.error)] if self.error else shares or [("no class", "")]
        picture = html_image(self.path if self.image is None else self.image)
        name = "" if self.path == Path() else f"<div>{escape(str(self.path))}</div>"
        return f'{name}<div style="display: flex; gap: 1em">{picture}{html_table(rows)}</div>'


class Predictor:
    """A trained model that names the class of images.

    predictor = Predictor("runs/photos")
    for prediction in predictor.predict(["a.jpg", "b.jpg"], topk=3):
        print(prediction.path, prediction.classes[0], prediction.probabilities[0])

    Args:
        checkpoint: a run directory or a checkpoint in it.
        device: "auto" (the GPU if there is one), "cuda" or "cpu".
        weights: "raw", "ema", "best", "last", "probe", or "auto": those that the run's rule chose.
        logit_adjustment: correct the logits for the class sizes of the training file, as `fastft eval --logit-adjustment`; for
            probabilities without the temperature, which was fitted without the correction.
        temperature: divide the logits by the temperature that was fitted on the run's validation images; no ranking changes.
        min_probability: an image whose most probable class has less gets no class.
        flip_average: take the mean of the logits of an image and its mirror image.

    Raises:
        UserError: there is no such checkpoint or device, or the checkpoint is damaged; `min_probability` for a multi-label model;
            `flip_average` for one that was trained without horizontal flips.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str = "auto",
        weights: str = AUTO,
        logit_adjustment: bool = False,
        temperature: bool = True,
        min_probability: float = 0.0,
        flip_average: bool = False,
    ) -> None:
        self.device = find_world(device).device
        self.trained = load_trained(Path(checkpoint), self.device, weights)
        if logit_adjustment:
            self.trained = adjust_logits(self.trained)
        self.temperature = (self.trained.temperature if temperature else None) or 1.0
        self.classes = self.trained.outputs
        self.min_probability, self.flip_average = min_probability, flip_average
        if min_probability and self.trained.recipe.data.multi_label:
            raise UserError("each label of this model has a threshold of its own; leave --min-probability out")
        if flip_average and not self.trained.recipe.augment.hflip:
            raise UserError("this model was trained without horizontal flips; leave --flip-average out")

    def predict(self, images: Given | Iterable[Given], topk: int | None = None) -> Iterator[Prediction]:
        """The `topk` most probable classes of every image, in order, a batch at a time; the next batch is read meanwhile.

        images: paths, Pillow images or uint8 arrays (H, W, 3) or (H, W), or one of them. An image that cannot be read gives a
            `Prediction` whose `error` is the reason.
        topk: default 5; multi-label: at most so many, by default all that reach their thresholds.

        Raises:
            UserError: topk < 1, or something else is given in the place of an image.
        """
        multi_label, thresholds_K = self.trained.recipe.data.multi_label, torch.tensor(self.trained.thresholds)
        topk = topk if topk is not None else len(self.classes) if multi_label else TOPK
        if topk < 1:
            raise UserError(f"topk is {topk}: give 1 or more")
        given = as_several(images)
        for image, read, logits_K in compute_outputs(self.trained, given, self.device, flip_average=self.flip_average):
            held = image if isinstance(image, Image.Image) else None
            path = Path(getattr(held, "filename", "") if isinstance(image, Image.Image) else image)
            if isinstance(read, str):
                yield Prediction(path, [], [], read, image=held)
                continue
            ranked = rank_classes(logits_K[None], len(self.classes))[0]
            shares_K = logits_K.sigmoid() if multi_label else (logits_K / self.temperature).softmax(0)
            if multi_label:
                ranked = ranked[shares_K[ranked] >= thresholds_K[ranked]]
            elif shares_K[ranked[0]] < self.min_probability:
                ranked = ranked[:0]
            ranked = ranked[:topk]
            names = [self.classes[k] for k in ranked.tolist()]
            yield Prediction(path, names, shares_K[ranked].tolist(), notes=read.notes, image=held)


def as_several(images: Given | Iterable[Given]) -> Iterable[Source]:
    """The images, where one may be given; arrays as Pillow images. An array of four dimensions is several images.

    Raises UserError: something else is in the place of an image.
    """
    is_one = images.ndim < 4 if isinstance(images, np.ndarray) else isinstance(images, Source)
    return map(_checked_source, [cast(Given, images)] if is_one else cast(Iterable[Given], images))


def _checked_source(image: Given) -> Source:
    if isinstance(image, Source):
        return image
    what = f"an object of the type {type(image).__name__}"
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.shape[2:] in ((), (3,), (4,)):
            return Image.fromarray(image)
        what = f"an array of {image.dtype} {image.shape}"
    raise UserError(f"{what} is no image; give a path, a Pillow image, or an array of uint8 (height, width, 3)")


def predict_files(
    checkpoint: Path,
    images: Sequence[Path],
    topk: int | None,
    device: str,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Iterator[Prediction]:
    """The top classes of image files and of the images in folders, in order, one batch at a time.

    say: called with the weights in words, the temperature, and lines about files in folders that are left out and, at the end,
    for each of the notes on images. options: as `Predictor`.
    Raises UserError: there is no such checkpoint; when the iteration ends, that no file could be read.
    """
    find_world(device)  # refuses a device that is not there
    left_out: Counter[str] = Counter()
    paths = list(image_paths(images, left_out))
    if left_out:
        say(describe_left_out(left_out))
    predictor = Predictor(checkpoint, device, **options)
    say(f"using the {predictor.trained.weights}")
    if predictor.temperature != 1:
        scores = predictor.trained.scores
        fitted = f"{predictor.temperature:.3f}, fitted on {0 if scores is None else scores.samples:,} held-out images"
        say(f"probabilities: logits are divided by the temperature {fitted} (--no-temperature: the plain softmax)")
    return _checked(predictor.predict(paths, topk), say)


def describe_left_out(left_out: Counter[str]) -> str:
    """Warning text for the files that `image_paths` left out."""
    return f"files of other kinds are left out: {by_suffix(left_out)}"


def image_paths(given: Sequence[Path], left_out: Counter[str] | None = None) -> Iterator[Path]:
    """The given paths, for folders all image files in them and their subfolders, found as in class folders.

    left_out: counts the other files in the folders, by suffix.
    """
    for path in given:
        if not path.is_dir():
            yield path
            continue
        from beton_tools.sources.folder import images_below  # loads Arrow, which single files do without

        names = images_below(path, left_out)
        if not names:
            raise UserError(f"{path} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
        yield from (path / name for name in names)


def say_notes(notes: Counter[str], say: Callable[[str], None]) -> None:
    """Say each of the notes (see `Prediction`), with its number of images."""
    for text, count in notes.items():
        say(f"{count:,} image{' has' if count == 1 else 's have'} {text}")


def _checked(predictions: Iterator[Prediction], say: Callable[[str], None]) -> Iterator[Prediction]:
    """Yield the predictions; then say the notes on images, and raise UserError if none of the files could be read."""
    any_read, first = False, None
    notes: Counter[str] = Counter()
    for prediction in predictions:
        any_read |= prediction.error is None
        notes.update(prediction.notes)
        first = first or prediction
        yield prediction
    say_notes(notes, say)
    if first is not None and not any_read:
        raise UserError(f"no image could be read; the first, {first.path}: {first.error}")


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a CSV file with one row per image file and rank. Raises UserError: it cannot be written."""

    def rows() -> Iterator[Sequence[object]]:
        for p in predictions:
            if not p.classes:
                yield [p.path, "", "", "", p.error or ""]
            for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
                yield [p.path, rank, name, f"{probability:.6f}", ""]

    write_csv(path, ["file", "rank", "class", "probability", "error"], rows())


# images through a model -----------------------------------------------------------------------------------------------


class ReadImage(NamedTuple):
    """An image as the model's input (3, S, S), and the notes on its pixels (see `Prediction`)."""

    tensor: Tensor
    notes: tuple[str, ...]


Read = ReadImage | str  # an image, or the reason why it cannot be read


@dataclass(frozen=True)
class FileBatch:
    """Images in order, each as read, and those that could be read as one tensor on the device; a black one if none could."""

    reads: list[tuple[Source, Read]]
    images: Tensor


def compute_outputs(
    trained: Trained, images: Iterable[Source], device: torch.device, **options: Any
) -> Iterator[tuple[Source, Read, Tensor]]:
    """Each image, as read, and its row of the model's output, float32 on the CPU; an empty row if it cannot be read.

    options: `method` and `flip_average` of `forward`.
    """
    batches = read_batches(images, trained.recipe, BATCH, device)
    precision = inference_precision(trained.recipe.train.amp, device)
    world = World(0, 1, 0, device)  # every process reads all files
    for batch, (outputs,) in forward([trained.model], batches, world, precision, **options):
        rows = iter(outputs.cpu())
        for source, read in batch.reads:
            yield source, read, next(rows) if isinstance(read, ReadImage) else torch.empty(0)


def read_batches(images: Iterable[Source], recipe: Recipe, size: int, device: torch.device) -> Iterator[FileBatch]:
    """The images in order, at most `size` at a time."""
    remaining = iter(images)
    ahead: deque[list[tuple[Source, Future[Read] | Read]]] = deque()
    pool = ThreadPoolExecutor(usable_cpus(), "decode")
    side = recipe.model.image_size
    try:
        while True:
            while len(ahead) < BATCHES_AHEAD and (chunk := list(islice(remaining, size))):
                ahead.append([(image, _begin(pool, image, recipe)) for image in chunk])
            if not ahead:
                return
            reads = [(image, r.result() if isinstance(r, Future) else r) for image, r in ahead.popleft()]
            tensors = [read.tensor for _, read in reads if isinstance(read, ReadImage)]
            stacked = torch.stack(tensors or [torch.zeros(3, side, side)])
            yield FileBatch(reads, stacked.to(device, memory_format=torch.channels_last))
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, image: Source, recipe: Recipe) -> Future[Read] | Read:
    """Start to read a file. An image in memory is read here: it may be in the batch twice, and is not safe for threads."""
    if isinstance(image, Image.Image):
        return read_image(image, recipe)
    return pool.submit(read_image, image, recipe)


def read_image(source: Source, recipe: Recipe) -> Read:
    """The image as the model's input, or the reason why it cannot be read."""
    size, crop_pct = recipe.model.image_size, recipe.train.eval_crop_pct
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else open_image(Path(source))
        with opened as image:
            colours = {"mean": recipe.augment.mean, "std": recipe.augment.std}
            rgb, is_transparent = upright_rgb(image, orientation_of(image), recipe.data.background)
            tensor = eval_tensor(rgb, size=size, crop_pct=crop_pct, **colours)
            return ReadImage(tensor, (DEEP_IMAGES,) * bool(depth_prefix(image)) + (TRANSPARENT,) * is_transparent)
    except Exception as error:  # Pillow's plug-ins raise many kinds of exceptions for damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def eval_tensor(image: Image.Image, *, size: int, crop_pct: float, mean: Colour, std: Colour) -> Tensor:
    """The evaluation input (3, size, size) for an image, normalised, float32 on the CPU.

    Short side to floor(size / crop_pct) by Pillow's bicubic filter, the longer side truncated; then the central crop. Each
    operation is the same as in torchvision's Resize, CenterCrop, ToTensor and Normalize, which are not imported.
    """
    cropped = _resize_and_crop(image.convert("RGB"), math.floor(size / crop_pct), size)
    scaled_HWC = np.asarray(cropped).astype(np.float32) / np.float32(255)
    normalised_HWC = (scaled_HWC - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised_HWC.transpose(2, 0, 1)))


def _resize_and_crop(image: Image.Image, short_side: int, size: int) -> Image.Image:
    width, height = image.size
    shortest = min(width, height)
    target = int(short_side * width / shortest), int(short_side * height / shortest)
    left, top = (round((side - size) / 2) for side in target)
    crop = left, top, left + size, top + size
    if target[0] * target[1] > MOST_PIXELS:  # resize the crop only: equal but for rounding
        across, down = width / target[0], height / target[1]
        box = crop[0] * across, crop[1] * down, min(crop[2] * across, width), min(crop[3] * down, height)
        return image.resize((size, size), Image.Resampling.BICUBIC, box)
    return (image if target == image.size else image.resize(target, Image.Resampling.BICUBIC)).crop(crop)
