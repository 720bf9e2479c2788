"""`fastft.fit`: a training from Python, and what the commands do with its run directory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from beton_tools.base.console import make_console, printable
from beton_tools.base.errors import UserError
from fastft.evaluate.prediction import Prediction, Predictor, Source, image_paths
from fastft.recipe import load_recipe
from fastft.recipe.constants import EXPORT_FORMATS
from fastft.run.chosen_weights import describe_weights
from fastft.run.evaluations import describe_figures
from fastft.run.run_directory import read_result


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run directory whose training has ended. Its methods use the weights that the run chose.

    Attributes:
        folder: the run directory, which `fastft eval`, `predict`, `export` and `report` take.
        result: the content of `result.json`: the accuracies, the chosen weights, the seconds.
        device: "auto", "cuda" or "cpu", for `predict` and `evaluate`.
    """

    folder: Path
    result: Mapping[str, Any]
    device: str = "auto"

    def __repr__(self) -> str:
        chosen = self.result.get("weights")
        if chosen is None:
            return f"TrainedRun({str(self.folder)!r})\nno images were held out: there is no accuracy"
        return f"TrainedRun({str(self.folder)!r}): {describe_figures(chosen)}\n{describe_weights(chosen)}"

    @cached_property
    def predictor(self) -> Predictor:
        """The trained model."""
        return Predictor(self.folder, self.device)

    @property
    def classes(self) -> list[str]:
        """The name of every output."""
        return self.predictor.classes

    def predict(self, images: Source | Iterable[Source], topk: int | None = None) -> list[Prediction]:
        """The `topk` most probable classes of every image, as `Predictor.predict` gives them.

        Args:
            images: paths, folders of image files, Pillow images, or one of them.

        Raises:
            UserError: a folder without images, or topk < 1.
        """
        given = [images] if isinstance(images, Source) else images
        sources: list[Source] = []
        for image in given:
            if isinstance(image, str | Path) and Path(image).is_dir():
                sources.extend(image_paths([Path(image)]))
            else:
                sources.append(image)
        return list(self.predictor.predict(sources, topk))

    def evaluate(self, data: str | Path | None = None, **options: Any) -> dict[str, Any]:
        """Accuracy, metrics per class and calibration, as `fastft eval --json` prints them.

        Args:
            data: a .beton, or labelled images as `fastft convert folder` takes them, which are converted to a temporary
                file; None: the validation images of the run.
            options: those of `fastft.evaluate.evaluation.evaluate_files`.

        Raises:
            UserError: no such images, or images of other classes.
        """
        from beton_tools.sources import open_source  # each method imports what it needs: together that takes seconds
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
            source = open_source(data, classes=trained.classes)
            write_beton(converted, source, WriteOptions(background=trained.recipe.data.background))
            try:
                scores = evaluate_checkpoint(self.folder, converted, self.device, **options)
            except UserError as error:
                raise UserError(str(error).replace(str(converted), str(data))) from None
        return scores | {"data": str(data)}

    def export(self, format: str, path: str | Path) -> Path:
        """Write the model for "timm", "open_clip", "safetensors" or "onnx", as `fastft export` does; returns its path.

        Raises:
            UserError: an unknown format, one that cannot hold the model, or `path` is in the way.
        """
        from fastft.export import export_checkpoint

        if format not in EXPORT_FORMATS:
            raise UserError(f"no export format {format!r}; give {', '.join(EXPORT_FORMATS)}")
        return export_checkpoint(self.folder, format, Path(path)).path

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML page of the run, by default into its directory; returns its path.

        Raises:
            UserError: `path` cannot be written.
        """
        from fastft.report.run_report import write_run_page

        return write_run_page(self.folder, None if path is None else Path(path))


def fit(
    recipe: str | Path = "photos", options: Mapping[str, Any] | None = None, *, quiet: bool = False, **short: Any
) -> TrainedRun:
    """Train a recipe, or continue its run directory, as `fastft train` does.

    run = fastft.fit("photos", data="pics", model="timm/vit_small_patch14_dinov2.lvd142m", weights="timm", lr=1e-4)
    run.predict("holiday/")[0].classes

    Args:
        recipe: the name of a recipe of fastft, a file, or a row of a table.
        options: options by their full names, such as {"model.drop_path": 0.1}.
        quiet: print nothing.
        short: options by their short names: data, val_data, workers, model, weights, image_size, batch_size, lr, epochs, out
            (the run directory), seed, device; or a section with a dict, such as optim={"weight_decay": 0.1}.

    Raises:
        UserError: bad input.
        NonFinite: the loss is NaN or Inf.
        Preempted: stopped by a signal after a checkpoint; the same call continues.
        KeyboardInterrupt: Ctrl-C, after a checkpoint if the first step has begun.
    """
    from fastft.jobs.train_recipe import train_recipe

    console = make_console(quiet=quiet)
    loaded = load_recipe(recipe, {**(options or {}), **short})
    folder, _ = train_recipe(loaded, console)
    console.print(printable(f"{folder}: the run"))
    return load(folder, loaded.train.device)


def load(run: str | Path, device: str = "auto") -> TrainedRun:
    """The run of a run directory whose training has ended, as `fit` returned it; the directory may have been moved.

    fastft.load("runs/photos").predict("holiday/")

    Raises:
        UserError: no run directory, or its training has not ended.
    """
    folder = Path(run)
    if result := read_result(folder):
        return TrainedRun(folder, result, device)
    raise UserError(f"{folder} has no result.json: give the run directory of a training that has ended")
