"""Class predictions for image files."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beton_tools.base.atomic import write_csv
from beton_tools.base.console import by_suffix
from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import DEEP_IMAGES, IMAGE_SUFFIXES
from beton_tools.base.user_files import check_user_file
from fastft.evaluate.image_files import Source, compute_outputs
from fastft.evaluate.trained import adjust_logits, load_trained
from fastft.model.classifier import rank_classes
from fastft.recipe.constants import AUTO
from fastft.train.distributed import find_world


@dataclass(frozen=True)
class Prediction:
    """The top classes of one file with their softmax probabilities, or the reason why it cannot be read (`error`).

    path: of the file; empty for an image in memory. loses_values: it has 16 or 32 bits per value: those above 255 were read as
    white, fractions of 1 as black.
    """

    path: Path
    classes: list[str]
    probabilities: list[float]
    error: str | None = None
    loses_values: bool = False


class Predictor:
    """A trained model that names the class of images.

    predictor = Predictor("runs/photos")
    for prediction in predictor.predict(["a.jpg", "b.jpg"], topk=3):
        print(prediction.path, prediction.classes[0], prediction.probabilities[0])

    Args:
        checkpoint: a run directory or a checkpoint in it.
        device: "auto" (the GPU if there is one), "cuda" or "cpu".
        weights: "raw", "ema", "best", "last", or "auto": those that the run's rule chose.
        logit_adjustment: correct the logits for the class sizes of the training file, as `fastft eval --logit-adjustment`.

    Raises:
        UserError: there is no such checkpoint or device, or the checkpoint is damaged.
    """

    def __init__(
        self, checkpoint: str | Path, device: str = "auto", weights: str = AUTO, logit_adjustment: bool = False
    ) -> None:
        self.device = find_world(device).device
        self.trained = load_trained(Path(checkpoint), self.device, weights)
        if logit_adjustment:
            self.trained = adjust_logits(self.trained)
        self.classes = self.trained.outputs

    def predict(self, images: Source | Iterable[Source], topk: int = 5) -> Iterator[Prediction]:
        """The `topk` most probable classes of every image, in order, a batch at a time; the next batch is read meanwhile.

        images: paths or Pillow images, or one. An image that cannot be read gives a `Prediction` whose `error` is the reason.

        Raises:
            UserError: topk < 1.
        """
        if topk < 1:
            raise UserError(f"topk is {topk}: give 1 or more")
        given = [images] if isinstance(images, Source) else images
        for image, read, logits_K in compute_outputs(self.trained, given, self.device):
            path = Path(image if isinstance(image, str | Path) else getattr(image, "filename", ""))
            if isinstance(read, str):
                yield Prediction(path, [], [], read)
                continue
            ranked = rank_classes(logits_K[None], topk)[0]
            names = [self.classes[k] for k in ranked.tolist()]
            yield Prediction(path, names, logits_K.softmax(0)[ranked].tolist(), loses_values=read.loses_values)


def predict_files(
    checkpoint: Path,
    images: Sequence[Path],
    topk: int,
    device: str,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Iterator[Prediction]:
    """The top classes of image files and of the images in folders, in order, one batch at a time.

    say: called with the weights in words, and with a line about files in folders that are left out and, at the end, about images
    that lose values. options: as `Predictor`.

    Raises:
        UserError: there is no such checkpoint or image; when the iteration ends, that no file could be read.
    """
    find_world(device)  # refuses a device that is not there
    left_out: Counter[str] = Counter()
    paths = list(image_paths(images, left_out))
    if left_out:
        say(describe_left_out(left_out))
    predictor = Predictor(checkpoint, device, **options)
    say(f"using the {predictor.trained.weights}")
    return _checked(predictor.predict(paths, topk), say)


def describe_left_out(left_out: Counter[str]) -> str:
    """Warning text for the files that `image_paths` left out."""
    return f"files of other kinds are left out: {by_suffix(left_out)}"


def image_paths(given: Sequence[Path], left_out: Counter[str] | None = None) -> Iterator[Path]:
    """The given files, and all image files in the given folders and their subfolders, found as in class folders.

    left_out: counts the other files in the folders, by suffix.

    Raises:
        UserError: a given path is neither a folder with images nor a regular file.
    """
    for path in given:
        if not path.is_dir():
            yield check_user_file(path, "an image file or a folder of images")
            continue
        from beton_tools.sources.folder import images_below  # loads Arrow, which single files do without

        found = images_below(path, left_out)
        if not found:
            raise UserError(f"{path} contains no image files ({', '.join(IMAGE_SUFFIXES)})")
        yield from (path / name for name in found)


def describe_deep(count: int) -> str:
    """Warning text for `count` images that lose values."""
    return f"{count:,} image{' has' if count == 1 else 's have'} {DEEP_IMAGES}"


def _checked(predictions: Iterator[Prediction], say: Callable[[str], None]) -> Iterator[Prediction]:
    """Yield the predictions; then say if images lose values, and raise UserError if none of the files could be read."""
    any_read, deep, first = False, 0, None
    for prediction in predictions:
        any_read |= prediction.error is None
        deep += prediction.loses_values
        first = first or prediction
        yield prediction
    if deep:
        say(describe_deep(deep))
    if first is not None and not any_read:
        raise UserError(f"no image could be read; the first, {first.path}: {first.error}")


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a CSV file with one row per image file and rank. Raises UserError: it cannot be written."""

    def rows() -> Iterator[Sequence[object]]:
        for p in predictions:
            if p.error is not None:
                yield [p.path, "", "", "", p.error]
            for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
                yield [p.path, rank, name, f"{probability:.6f}", ""]

    write_csv(path, ["file", "rank", "class", "probability", "error"], rows())
