"""`fastft.fit`: training from Python, and what the commands do with the run directory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec.structs import replace

from beton_tools.base.compilation import announce_compilation
from beton_tools.base.console import make_console, printable
from beton_tools.base.errors import UserError
from fastft.evaluate.notebook import html_table
from fastft.evaluate.predictor import Given, Prediction, Predictor, Source, as_several, image_paths
from fastft.recipe import load_recipe
from fastft.recipe.constants import AUTO, EXPORT_FORMATS
from fastft.run.chosen_weights import describe_weights
from fastft.run.evaluations import WEIGHTS, Scores, describe_figures
from fastft.run.result import Result, read_result

if TYPE_CHECKING:
    from fastft.evaluate.file_report import FileReport
    from fastft.recipe.option_types import (
        AugmentOptions,
        DataOptions,
        EmaOptions,
        ModelOptions,
        OptimOptions,
        ScheduleOptions,
        TrainOptions,
    )

FIGURES = ("weights", "epoch", "accuracy", "loss", "images")


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run directory whose training has ended. Its methods use the weights that the run chose.

    Attributes:
        folder: the run directory, which `fastft eval`, `predict`, `export` and `report` take.
        result: the content of `result.json`: the accuracies, the chosen weights and the seconds.
        device: "auto", "cuda" or "cpu", used by `predict` and `evaluate`.
    """

    folder: Path
    result: Result
    device: str = "auto"

    def __repr__(self) -> str:
        chosen = self.result.weights
        if chosen is None:
            return f"TrainedRun({str(self.folder)!r})\nno images were held out: there is no accuracy"
        return f"TrainedRun({str(self.folder)!r}): {describe_figures(chosen.figures)}\n{describe_weights(chosen)}"

    def _repr_html_(self) -> str:
        """Show the accuracy and a table of the results in `result.json`, for notebooks."""
        first, *rest = map(escape, repr(self).splitlines())
        return f"<b>{first}</b><div>{' '.join(rest)}</div>{html_table(_figures(self.result), FIGURES)}"

    @cached_property
    def predictor(self) -> Predictor:
        """The trained model, with the weights that the run chose."""
        return Predictor(self.folder, self.device)

    @property
    def classes(self) -> list[str]:
        """Each output's class name."""
        return self.predictor.classes

    def predict(
        self,
        images: Given | Iterable[Given],
        topk: int | None = None,
        *,
        weights: str = AUTO,
        logit_adjustment: bool = False,
        temperature: bool = True,
        min_probability: float = 0.0,
        flip_average: bool = False,
        votes: bool = False,
        reject_foreign: bool = False,
    ) -> list[Prediction]:
        """Predict the `topk` most probable classes for every image.

        With any argument other than `images` and `topk`, the model is read again in each call. For many calls use
        `Predictor`.

        Args:
            images: paths, folders with image files, Pillow images, uint8 arrays (H, W, 3) or (H, W), or one of them.
            topk: classes per image, 5 by default. For a multi-label model this is an upper limit. By default you get all
                classes that reach their thresholds.
            weights: "raw", "ema", "best", "last", "probe", or "auto" for the weights that the run chose.
            logit_adjustment: correct for the training file's class sizes.
            temperature: divide the logits by the temperature that was fitted on the validation images.
            min_probability: give no class to an image if its highest probability is below this value.
            flip_average: average the prediction with the mirror image's.
            votes: also give what each patch adds to the logits, computed in fp32.
            reject_foreign: give no class to an image if it resembles the training images less than 95 % of the validation
                images do.

        Raises:
            UserError: a folder has no images, topk < 1, or `Predictor` raises it.
        """
        predictor = self.predictor
        options: dict[str, Any] = {
            "weights": weights, "logit_adjustment": logit_adjustment, "temperature": temperature, "votes": votes,
            "min_probability": min_probability, "flip_average": flip_average, "reject_foreign": reject_foreign,
        }  # fmt: skip
        usual = {"weights": AUTO, "temperature": True}
        if any(value != usual.get(name, False) for name, value in options.items()):
            predictor = Predictor(self.folder, self.device, **options)
        sources: list[Source] = []
        for image in as_several(images):
            if isinstance(image, str | Path) and Path(image).is_dir():
                sources.extend(image_paths([Path(image)]))
            else:
                sources.append(image)
        return list(predictor.predict(sources, topk))

    def evaluate(self, data: str | Path | None = None, **options: Any) -> "FileReport":
        """Compute accuracy, metrics per class and calibration, as `fastft eval --json` prints them.

        Args:
            data: a .beton, or labelled images as `fastft convert folder` takes them, which are converted to a temporary
                file. None uses the run's validation images.
            options: passed to `fastft.evaluate.evaluation.evaluate_files`, such as `csv` and `overwrite`.

        Raises:
            UserError: there are no such images, or they have other classes.
        """
        from beton_tools.sources import open_source  # each method imports what it needs: together that takes seconds
        from beton_tools.sources.base import KnownClasses
        from beton_tools.write.convert import with_classes
        from beton_tools.write.writer import WriteOptions, write_beton
        from fastft.evaluate.evaluation import evaluate_checkpoint
        from fastft.photos.paths import needs_conversion

        if options.get("csv") is not None:
            options["csv"] = Path(options["csv"])
        if data is None or not needs_conversion(str(data)):
            return evaluate_checkpoint(self.folder, None if data is None else Path(data), self.device, **options)
        with TemporaryDirectory() as folder:
            converted = Path(folder) / "images.beton"
            trained = self.predictor.trained
            known = KnownClasses.of(trained.known_classes)
            source = with_classes(open_source(data, classes=known), known, trained.classes)
            write_beton(converted, source, WriteOptions(background=trained.recipe.data.background))
            try:
                report = evaluate_checkpoint(self.folder, converted, self.device, **options)
            except UserError as error:
                raise UserError(str(error).replace(str(converted), str(data))) from None
        return replace(report, data=str(data))

    def export(
        self,
        format: str,
        path: str | Path,
        *,
        weights: str = AUTO,
        logit_adjustment: bool = False,
        temperature: bool = True,
        overwrite: bool = False,
    ) -> Path:
        """Write the model for "timm", "open_clip", "safetensors", "onnx" or "torch", as `fastft export` does.

        Args:
            format: one of the formats above.
            path: a new folder (timm, open_clip) or file.
            weights: "raw", "ema", "best", "last", "probe", or "auto" for the weights that the run chose.
            logit_adjustment: correct the head for the training file's class sizes.
            temperature: divide the head by the temperature that was fitted on the validation images.
            overwrite: replace files with the same names.

        Returns:
            The path that was written.

        Raises:
            UserError: the format is unknown or cannot hold the model, or `path` exists.
        """
        from fastft.export import export_checkpoint

        if format not in EXPORT_FORMATS:
            raise UserError(f"no export format {format!r}. Give {', '.join(EXPORT_FORMATS)}")
        done = export_checkpoint(self.folder, format, Path(path), weights, logit_adjustment, overwrite, temperature)
        return done.path

    def report(self, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the run's HTML page, by default into its directory.

        Args:
            overwrite: replace `path` if it exists.

        Returns:
            The page's path.

        Raises:
            UserError: `path` exists or cannot be written.
        """
        from fastft.report.run_report import write_run_page

        return write_run_page(self.folder, None if path is None else Path(path), overwrite=overwrite)


def _figures(result: Result) -> Iterator[tuple[str, ...]]:
    """Return the rows of FIGURES: the linear probe, the best and the last epoch, where result.json has them."""

    def row(title: str, epoch: str, scores: Scores) -> tuple[str, ...]:
        return title, epoch, describe_figures(scores.figures), f"{scores.loss:.4f}", f"{scores.samples:,}"

    if result.baseline is not None and result.baseline.raw is not None:
        yield row("linear probe", "", result.baseline.raw)
        if (larger := result.baseline.larger) is not None and larger.raw is not None:
            yield row(f"linear probe at {larger.image_size} px", "", larger.raw)
    for name, evaluation in (("best epoch", result.best), ("last epoch", result.last)):
        for kind, weights in WEIGHTS.items():
            if evaluation is not None and (scores := evaluation.of(kind)) is not None:
                yield row(f"{name}, {weights}", str(evaluation.epoch), scores)


def fit(
    recipe: str | Path = "photos",
    options: Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
    data: "str | Path | DataOptions | None" = None,
    val_data: str | Path | None = None,
    model: "str | Path | ModelOptions | None" = None,
    weights: str | Path | None = None,
    image_size: int | str | None = None,
    epochs: int | str | None = None,
    batch_size: int | str | None = None,
    lr: float | str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    device: str | None = None,
    workers: int | str | None = None,
    augment: "AugmentOptions | None" = None,
    optim: "OptimOptions | None" = None,
    schedule: "ScheduleOptions | None" = None,
    ema: "EmaOptions | None" = None,
    train: "TrainOptions | None" = None,
    **unknown: NoReturn,
) -> TrainedRun:
    """Train a recipe, or continue its run directory, as `fastft train` does.

        run = fastft.fit("photos", data="pics", model="timm/vit_small_patch14_dinov2.lvd142m", weights="timm", lr=1e-4)
        run.predict("holiday/")[0].classes

    An argument that is None keeps the recipe's value. "auto" lets it follow from the images, where the option can.

    Args:
        recipe: the name of a recipe that comes with fastft, a file, or a row in a table.
        options: options by their full names, such as {"model.drop_path": 0.1}. `fastft options` lists them.
        quiet: print nothing.
        data: labelled images (a folder with one folder per class, a table, shards, or a .beton), or a dict with options
            from the section `data`.
        val_data: validation images in the same forms. Without them, some of `data` are held out.
        model: the architecture (an open_clip name or timm/NAME), or a dict with options from the section `model`.
        weights: pretrained weights: a tag, "timm", a file, a folder, or "random".
        image_size: side length in pixels.
        epochs: passes over the training images.
        batch_size: images per step, summed over all processes.
        lr: peak learning rate.
        out: the run directory.
        seed: the seed for everything random.
        device: "auto", "cuda" or "cpu".
        workers: decoding threads.
        augment: options from this section, such as {"hflip": 0}. The next four arguments work in the same way.
        optim: such as {"weight_decay": 0.1}.
        schedule: such as {"min_lr": 1e-6}.
        ema: such as {"decay": 0.999}.
        train: such as {"stop_when": 5}.
        unknown: no other argument is accepted. The error names the nearest option.

    Raises:
        UserError: bad input.
        NonFinite: the loss is NaN or Inf.
        Preempted: a signal stopped the run after a checkpoint. The same call continues it.
        KeyboardInterrupt: Ctrl-C, after a checkpoint if the first step has begun.
    """
    given = {
        "data": data, "val_data": val_data, "model": model, "weights": weights, "image_size": image_size, "epochs": epochs,
        "batch_size": batch_size, "lr": lr, "out": out, "seed": seed, "device": device, "workers": workers,
        "augment": augment, "optim": optim, "schedule": schedule, "ema": ema, "train": train, **unknown,
    }  # fmt: skip
    from fastft.jobs.run import run_recipe

    console = make_console(quiet=quiet, lasting=True)
    if not quiet:
        announce_compilation(lambda text: console.print(printable(text)))
    try:
        loaded = load_recipe(
            recipe, {**(options or {}), **{key: value for key, value in given.items() if value is not None}}
        )
        folder, _ = run_recipe(loaded, console)
    finally:
        announce_compilation(None)  # when something else compiles, a notebook may have closed this call's output
    console.print(printable(f"{folder}: the run"))
    return load(folder, loaded.train.device)


def load(run: str | Path, device: str = "auto") -> TrainedRun:
    """Load a run directory whose training has ended, as `fit` returned it. The directory may have been moved.

        fastft.load("runs/photos").predict("holiday/")

    Raises:
        UserError: `run` is no run directory, or its training has not ended.
    """
    folder = Path(run)
    if result := read_result(folder):
        return TrainedRun(folder, result, device)
    raise UserError(f"{folder} has no result.json: give the directory of a run that has ended")
