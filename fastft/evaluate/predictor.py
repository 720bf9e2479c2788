"""Class predictions for image files. Threads decode a batch while the model works on the batch before."""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
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
from fastft.augment.policies import AugmentPolicy
from fastft.augment.recipe_policy import build_policy
from fastft.evaluate.notebook import html_image, html_table
from fastft.evaluate.scores import forward
from fastft.evaluate.trained import BATCH, Trained, adjust_logits, load_trained, refuse_votes
from fastft.machine.distributed import World, find_device
from fastft.machine.precision import inference_precision
from fastft.model.classifier import rank_classes
from fastft.recipe import Recipe
from fastft.recipe.constants import AUTO, SQUASH

Source = Path | str | Image.Image
Given = Source | np.ndarray
TOPK = 5  # classes per image
BATCHES_AHEAD = 2  # batches being decoded or ready, including the one that is delivered next
MOST_PIXELS = 1 << 26  # in a resized image. An image with 1 x 65,000 pixels would grow to 3.3 billion


@dataclass(frozen=True)
class PatchVotes:
    """The contribution of each patch to each class's logit, which is their mean.

    Attributes:
        by_patch_KHW: float32 (K, grid, grid).
        classes: K names.
        recipe: decides which part of the image the patches cover.
    """

    by_patch_KHW: np.ndarray
    classes: list[str]
    recipe: Recipe

    @property
    def logits_K(self) -> np.ndarray:
        logits: np.ndarray = self.by_patch_KHW.mean((1, 2))
        return logits

    @property
    def ranked(self) -> list[int]:
        """The classes' numbers, the most probable first."""
        return np.argsort(-self.logits_K, kind="stable").tolist()

    def against(self, first: int, second: int) -> np.ndarray:
        """Return the votes for one class minus those for another, (grid, grid)."""
        difference: np.ndarray = self.by_patch_KHW[first] - self.by_patch_KHW[second]
        return difference


@dataclass(frozen=True, repr=False)
class Prediction:
    """The top classes of one file with their probabilities, or the reason why it cannot be read (`error`).

    There are no classes if the predictor rejects the image (`min_probability`, `reject_foreign`). For a multi-label model
    these are the classes that reach their thresholds, possibly none.

    Attributes:
        path: the file. For an image in memory it is empty, and `image` holds the image.
        notes: what you should know about the pixels, such as clipped values above 8 bits, or transparent pixels that
            were laid on `data.background`. Each note completes the sentence "1 image has ...".
        votes: what each patch adds to the logits, if the predictor was asked for it.
        rejected: a rejected image's classes and probabilities, as they would be without the limits. Empty if the image
            was not rejected.
    """

    path: Path
    classes: list[str]
    probabilities: list[float]
    error: str | None = None
    notes: tuple[str, ...] = ()
    image: Image.Image | None = field(default=None, compare=False)
    rejected: dict[str, float] = field(default_factory=dict)
    votes: PatchVotes | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        shares = (f"{name} {share:.1%}" for name, share in zip(self.classes, self.probabilities, strict=True))
        said = f"not read: {self.error}" if self.error else ", ".join(shares) or "no class"
        return f"Prediction({str(self.path)!r}: {said})" if self.path != Path() else f"Prediction({said})"

    def _repr_html_(self) -> str:
        """Show the image beside its classes, for notebooks."""
        shares: list[tuple[str, str | None]] = [
            (name, f"{share:.1%}") for name, share in zip(self.classes, self.probabilities, strict=True)
        ]
        rows = [("not read", self.error)] if self.error else shares or [("no class", "")]
        picture = html_image(self.path if self.image is None else self.image)
        name = "" if self.path == Path() else f"<div>{escape(str(self.path))}</div>"
        return f'{name}<div style="display: flex; gap: 1em">{picture}{html_table(rows)}</div>'


class Predictor:
    """Predicts classes for images with a trained model.

    predictor = Predictor("runs/photos")
    for prediction in predictor.predict(["a.jpg", "b.jpg"], topk=3):
        print(prediction.path, prediction.classes[0], prediction.probabilities[0])

    Args:
        checkpoint: a run directory or a checkpoint in it.
        device: "auto" (the GPU if there is one), "cuda" or "cpu".
        weights: "raw", "ema", "best", "last", "probe", or "auto" for the weights that the run's rule chose.
        logit_adjustment: correct the logits for the training file's class sizes, like `fastft eval
            --logit-adjustment`. Probabilities then ignore the temperature, because it was fitted without the
            correction.
        temperature: divide the logits by the temperature fitted on the run's validation images. This changes no
            ranking.
        min_probability: give no class to an image if its highest probability is below this value.
        reject_foreign: give no class to an image that looks foreign: 95 % of the run's validation images have a higher
            log-sum-exp over their logits.
        flip_average: average the logits for an image and its mirror image.
        votes: also give what each patch adds to the logits (`fastft.evaluate.votes` draws it). Everything is then computed in
            fp32.

    Raises:
        UserError: there is no such checkpoint or device, the checkpoint is damaged, or an option does not fit the model:

            - `min_probability` and `reject_foreign` need a single-label model.
            - `flip_average` needs a model that was trained with horizontal flips.
            - `votes` needs a head whose logits are a mean over patches, and excludes `flip_average`.
            - `reject_foreign` needs a run that stored the limit, and excludes options that change the logits.
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
        votes: bool = False,
        reject_foreign: bool = False,
    ) -> None:
        self.device = find_device(device)
        self.trained = load_trained(Path(checkpoint), self.device, weights)
        if logit_adjustment:
            self.trained = adjust_logits(self.trained)
        self.temperature = (self.trained.temperature if temperature else None) or 1.0
        self.classes = self.trained.outputs
        self.min_probability, self.flip_average = min_probability, flip_average
        if not 0 <= min_probability <= 1:
            raise UserError(f"min_probability is {min_probability:g}. Give a number from 0 to 1")
        if min_probability and self.trained.recipe.data.multi_label:
            raise UserError("each label in this model has its own threshold. Leave --min-probability out")
        if flip_average and not self.trained.recipe.augment.hflip:
            raise UserError("this model was trained without horizontal flips. Leave --flip-average out")
        self.foreign_below = self._foreign_limit(logit_adjustment) if reject_foreign else -math.inf
        self.votes = votes
        if votes and flip_average:
            raise UserError("votes are computed for one view only. Leave --flip-average out, or --votes")
        if votes:
            refuse_votes(self.trained)
            self.trained = replace(self.trained, recipe=self.trained.recipe.with_option("train.amp", "fp32"))

    def _foreign_limit(self, logit_adjustment: bool) -> float:
        if self.trained.recipe.data.multi_label:
            raise UserError("each label in this model has its own threshold. Leave --reject-foreign out")
        if logit_adjustment or self.flip_average:
            other = "--logit-adjustment" if logit_adjustment else "--flip-average"
            raise UserError(f"--reject-foreign compares with the validation images' logits. Leave {other} out")
        if self.trained.foreign_below is None:
            raise UserError(
                f"{self.trained.path} does not say what its validation images reach: it has none, or was written by an earlier "
                "version. Leave --reject-foreign out, or train again"
            )
        return self.trained.foreign_below

    def predict(self, images: Given | Iterable[Given], topk: int | None = None) -> Iterator[Prediction]:
        """Yield the `topk` most probable classes for every image, in order.

        Images are processed in batches, and the next batch is read while the model works.

        Args:
            images: one or several paths, Pillow images or uint8 arrays (H, W, 3) or (H, W). An image that cannot be
                read gives a `Prediction` whose `error` is the reason.
            topk: classes per image, 5 by default. For a multi-label model this is an upper limit. By default you get
                all classes that reach their thresholds.

        Raises:
            UserError: topk < 1, or an item is not an image.
        """
        multi_label, thresholds_K = self.trained.recipe.data.multi_label, torch.tensor(self.trained.thresholds)
        topk = topk if topk is not None else len(self.classes) if multi_label else TOPK
        if topk < 1:
            raise UserError(f"topk is {topk}. Give 1 or more")
        given = as_several(images)
        how: dict[str, Any] = {"method": "patch_votes"} if self.votes else {"flip_average": self.flip_average}
        for image, read, output in compute_outputs(self.trained, given, self.device, **how):
            held = image if isinstance(image, Image.Image) else None
            path = Path(getattr(held, "filename", "") if isinstance(image, Image.Image) else image)
            if isinstance(read, str):
                yield Prediction(path, [], [], read, image=held)
                continue
            votes, logits_K = None, output
            if self.votes:
                votes, logits_K = PatchVotes(output.numpy(), self.classes, self.trained.recipe), output.mean((1, 2))
            ranked = rank_classes(logits_K[None], len(self.classes))[0]
            shares_K = logits_K.sigmoid() if multi_label else (logits_K / self.temperature).softmax(0)
            if multi_label:
                ranked = ranked[shares_K[ranked] >= thresholds_K[ranked]]
            ranked = ranked[:topk]
            names, shares = [self.classes[k] for k in ranked.tolist()], shares_K[ranked].tolist()
            is_foreign = float(logits_K.double().logsumexp(0)) < self.foreign_below
            if is_foreign or (not multi_label and shares[0] < self.min_probability):
                rejected = dict(zip(names, shares, strict=True))
                yield Prediction(path, [], [], notes=read.notes, image=held, rejected=rejected, votes=votes)
            else:
                yield Prediction(path, names, shares, notes=read.notes, image=held, votes=votes)


def as_several(images: Given | Iterable[Given]) -> Iterable[Source]:
    """Return the images as a sequence, even if only one is given. Arrays become Pillow images.

    An array with four dimensions counts as several images. Raises UserError if an item is not an image.
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
    raise UserError(f"{what} is not an image. Give a path, a Pillow image, or a uint8 array (height, width, 3)")


def predict_files(
    checkpoint: Path,
    images: Sequence[Path],
    topk: int | None,
    device: str,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Iterator[Prediction]:
    """Yield the top classes for image files and for the images in folders, in order, one batch at a time.

    Args:
        say: called with the weights in words, the temperature, and a line about files in folders that are left out. At
            the end it is called once for each kind of note on the images.
        options: passed to `Predictor`.

    Raises:
        UserError: there is no such checkpoint, or, when the iteration ends, no file could be read.
    """
    find_device(device)  # raises if there is no such device
    left_out: Counter[str] = Counter()
    paths = list(image_paths(images, left_out))
    if left_out:
        say(describe_left_out(left_out))
    predictor = Predictor(checkpoint, device, **options)
    say(f"using the {predictor.trained.weights}")
    if predictor.temperature != 1:
        scores = predictor.trained.scores
        fitted = f"{predictor.temperature:.3f}, fitted on {0 if scores is None else scores.samples:,} held-out images"
        say(
            f"probabilities: the logits are divided by the temperature {fitted} (--no-temperature uses the plain softmax)"
        )
    return _checked(predictor.predict(paths, topk), say)


def describe_left_out(left_out: Counter[str]) -> str:
    """Return the warning about the files that `image_paths` left out."""
    return f"left out, as they are not images: {by_suffix(left_out)}"


def image_paths(given: Sequence[Path], left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Return the given paths, with each folder replaced by the image files in it and its subfolders.

    They are found in the same way as in class folders.

    left_out: counts the other files in the folders by suffix.
    """
    for path in given:
        if not path.is_dir():
            yield path
            continue
        from beton_tools.sources.folder import images_below  # loads Arrow, which single files do not need

        names = images_below(path, left_out)
        if not names:
            raise UserError(f"{path} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
        yield from (path / name for name in names)


def say_notes(notes: Counter[str], say: Callable[[str], None]) -> None:
    """Report each kind of note (see `Prediction`) with the number of images that it applies to."""
    for text, count in notes.items():
        say(f"{count:,} image{' has' if count == 1 else 's have'} {text}")


def _checked(predictions: Iterator[Prediction], say: Callable[[str], None]) -> Iterator[Prediction]:
    """Yield the predictions, then report the notes on images, and raise UserError if no file could be read."""
    any_read, first = False, None
    notes: Counter[str] = Counter()
    for prediction in predictions:
        any_read |= prediction.error is None
        notes.update(prediction.notes)
        first = first or prediction
        yield prediction
    say_notes(notes, say)
    if first is not None and not any_read:
        raise UserError(f"no image could be read. The first is {first.path}: {first.error}")


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a CSV file with one row per image file and rank. `predicted` is a class name. Raises UserError as `write_csv`.

    A rejected image has one row, with its highest probability and no class.
    """

    def rows() -> Iterator[Sequence[object]]:
        for p in predictions:
            if not p.classes:
                highest = max(p.rejected.values(), default=None)
                yield [p.path, "", "", "" if highest is None else f"{highest:.6f}", p.error or ""]
            for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
                yield [p.path, rank, name, f"{probability:.6f}", ""]

    write_csv(path, ["file", "rank", "predicted", "probability", "error"], rows())


# images through a model -----------------------------------------------------------------------------------------------


class ReadImage(NamedTuple):
    """An image as the model's input (3, S, S), and the notes on its pixels (see `Prediction`)."""

    tensor: Tensor
    notes: tuple[str, ...]


Read = ReadImage | str  # an image, or the reason why it cannot be read


@dataclass(frozen=True)
class FileBatch:
    """Images in order, each as it was read, and a tensor on the device with the readable ones.

    If none could be read, the tensor holds one black image.
    """

    reads: list[tuple[Source, Read]]
    images: Tensor


def compute_outputs(
    trained: Trained, images: Iterable[Source], device: torch.device, **options: Any
) -> Iterator[tuple[Source, Read, Tensor]]:
    """Yield each image, as it was read, with its row of the model's output, float32 on the CPU.

    The row is empty if the image cannot be read.

    options: `method` and `flip_average`, passed to `forward`.
    """
    batches = read_batches(images, trained.recipe, BATCH, device)
    precision = inference_precision(trained.recipe.train.amp, device)
    world = World(0, 1, 0, device)  # every process reads all files
    for batch, (outputs,) in forward([trained.model], batches, world, precision, **options):
        rows = iter(outputs.cpu())
        for source, read in batch.reads:
            yield source, read, next(rows) if isinstance(read, ReadImage) else torch.empty(0)


def read_batches(images: Iterable[Source], recipe: Recipe, size: int, device: torch.device) -> Iterator[FileBatch]:
    """Yield the images in order, in batches of at most `size`."""
    remaining = iter(images)
    ahead: deque[list[tuple[Source, Future[Read] | Read]]] = deque()
    pool = ThreadPoolExecutor(usable_cpus(), "decode")
    side = recipe.evaluated_size
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
    """Start reading a file. An image in memory is read here: it may be in the batch twice and is not thread-safe."""
    if isinstance(image, Image.Image):
        return read_image(image, recipe)
    return pool.submit(read_image, image, recipe)


def read_image(source: Source, recipe: Recipe) -> Read:
    """Return the image as the model's input, or the reason why it cannot be read."""
    try:
        opened = nullcontext(source) if isinstance(source, Image.Image) else open_image(Path(source))
        with opened as image:
            rgb, is_transparent = upright_rgb(image, orientation_of(image), recipe.data.background)
            tensor = eval_tensor(rgb, recipe.evaluated_size, build_policy(recipe))
            return ReadImage(tensor, (DEEP_IMAGES,) * bool(depth_prefix(image)) + (TRANSPARENT,) * is_transparent)
    except Exception as error:  # Pillow's plug-ins raise many different exceptions for damaged files
        return getattr(error, "strerror", None) or str(error) or type(error).__name__


def eval_tensor(image: Image.Image, size: int, policy: AugmentPolicy) -> Tensor:
    """Return the evaluation input for an image: (3, size, size), normalised, float32 on the CPU.

    The short side is resized to floor(size / crop_pct) with Pillow's filter, and the longer side is truncated, or with
    eval_resize="squash" both sides are resized to it. The central crop follows. The operations equal torchvision's
    Resize, CenterCrop, ToTensor and Normalize, without importing torchvision. They use the same fields in `policy` as
    `EvalLoader`.
    """
    cropped = resize_and_crop(image.convert("RGB"), size, policy)
    scaled_HWC = np.asarray(cropped).astype(np.float32) / np.float32(255)
    normalised_HWC = (scaled_HWC - np.asarray(policy.mean, np.float32)) / np.asarray(policy.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised_HWC.transpose(2, 0, 1)))


def resize_and_crop(image: Image.Image, size: int, policy: AugmentPolicy) -> Image.Image:
    """Return the part of an RGB image that the model sees, (size, size), before it is normalised."""
    width, height = image.size
    shortest, short_side = min(width, height), math.floor(size / policy.crop_pct)
    target = int(short_side * width / shortest), int(short_side * height / shortest)
    if policy.eval_resize == SQUASH:
        target = short_side, short_side
    how = Image.Resampling[policy.eval_interpolation.upper()]
    left, top = (round((side - size) / 2) for side in target)
    crop = left, top, left + size, top + size
    if target[0] * target[1] > MOST_PIXELS:  # resize only the crop, which differs only by rounding
        across, down = width / target[0], height / target[1]
        box = crop[0] * across, crop[1] * down, min(crop[2] * across, width), min(crop[3] * down, height)
        return image.resize((size, size), how, box)
    return (image if target == image.size else image.resize(target, how)).crop(crop)
