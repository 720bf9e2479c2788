"""`fastft report RUN`: one HTML page for a run directory.

`render_run` gives the template what each section of the page shows. The figures are in run_figures.py, the charts in
run_charts.py, time and cost in run_times.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beton_tools.base.atomic import check_output, write_text
from beton_tools.base.console import counted, printable
from beton_tools.base.errors import UserError, report_disk_errors
from fastft.evaluate.mistakes import Mistake, RunPredictions, predict_validation, thumbnail
from fastft.recipe import AskedRecipe, Choice, Recipe, differences, load_recipe
from fastft.recipe.constants import AUTO
from fastft.recipe.recipe_file import RECIPES
from fastft.report.charts import render_chart
from fastft.report.page import joined, render_page
from fastft.report.run_charts import accuracy_charts, reference_of, reliability_chart, speed_charts
from fastft.report.run_figures import all_scores, headline, run_warnings, score_of, speed_tiles
from fastft.report.run_times import profiled, run_cost, time_split
from fastft.run.evaluations import MAP
from fastft.run.find_weights import with_choice_so_far
from fastft.run.inputs import open_of_run, used_files
from fastft.run.run_directory import Run, load_run, read_choices
from fastft.run.training_labels import ClassCurve, TrainingLabels, read_training_labels

SUFFIXES = (".html", ".htm")
# columns in the table of evaluations, for raw and EMA: title, name in metrics.jsonl, digits
COLUMNS = (
    *(("mAP %", "map", 3), ("top-1 %", "top1", 3), ("top-5 %", "top5", 3), ("balanced %", "balanced_accuracy", 3)),
    *(("F1 %", "macro_f1", 3), ("ECE %", "ece", 2), ("loss", "loss", 4)),
)
NOT_COMPARED = {"about.top1", "about.source", "data.train", "data.val", "train.run_dir"}
LISTED_CLASSES = 200  # the classes with the lowest F1


def write_run_page(
    folder: Path,
    out: Path | None = None,
    mistakes: str = "auto",
    weights: str = AUTO,
    price: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a run's page and return its path. price: price per GPU-hour. overwrite: replace an existing file `out`."""
    if out is not None:
        check_output(out, SUFFIXES, overwrite)
    run, out = with_choice_so_far(load_run(folder)), out or folder / "report.html"
    predictions, note = None, "Left out, as asked (--mistakes=never)."
    if mistakes != "never":
        predictions, note = predict_validation(run, insist=mistakes == "always", weights=weights)
    trained = None if mistakes == "never" else training_images(run)
    page = render_run(run, predictions=predictions, note=note, price=price, trained=trained)
    with report_disk_errors(out, "Choose another --out"):
        write_text(out, page)
    return out


def render_run(
    run: Run,
    *,
    predictions: RunPredictions | None = None,
    note: str = "",
    price: float | None = None,
    trained: "TrainingImages | None" = None,
) -> str:
    """Return the page as HTML.

    note: why there are no predictions. price: price per GPU-hour. trained: what is known about the training images.
    """
    reference_name, reference = reference_of(run.recipe.model.arch, run.recipe.model.image_size)
    choices = read_choices(run.folder) or {}
    base = base_recipe(run, reference_name, bool(choices))
    if not run.on_imagenet:
        reference_name, reference = None, None
    classes = [c for c in predictions.report.classes if c.images] if predictions else []
    classes.sort(key=lambda c: (c.f1 or 0.0, c.name))
    m = run.machine  # as far as it is logged
    device, cores = f"{m.world_size} x {m.device}" if m.device else "", "" if m.cores is None else f"{m.cores} cores"
    score = score_of(run)
    multi_label = score == MAP
    evaluated = {name for _, _, scores in all_scores(run) for name in scores.numbers()}
    return render_page(
        "run.html",
        title=run.folder.resolve().name,
        run=run,
        state=_state(run),
        warnings=run_warnings(run),
        headline=headline(run),
        # classes and mistakes, or why there are none
        predictions=predictions,
        note=note,
        classes=classes[:LISTED_CLASSES],
        num_classes=len(classes),
        reliability=render_chart(reliability_chart(predictions.calibration, multi_label)) if predictions else "",
        trained=trained,
        # accuracy
        reference_name=reference_name,
        accuracy=[render_chart(c) for c in accuracy_charts(run, reference)],
        # the score that compares epochs comes first
        columns=[c for c in sorted(COLUMNS, key=lambda c: c[1] != score) if c[1] in evaluated],
        # recipe and data
        base=base,
        diff=recipe_diff(run.recipe, base, choices),
        reasons=bool(choices),
        data=[
            (role, path, part, None if manifest is None else manifest.summary())
            for role, option in (("training", "data.train"), ("validation", "data.val"))
            for path, part, manifest in used_files(run.recipe, option, run.identity, run.folder)
        ],
        # speed, time and cost
        machine=joined(device, cores, m.precision, f"torch {m.torch}" if m.torch else ""),
        speed_figures=speed_tiles(run),
        speed=[render_chart(c) for c in speed_charts(run)],
        split=time_split(run),
        profile=profiled(run),
        cost=run_cost(run, price),
    )


def _state(run: Run) -> str:
    if run.stopped:
        return f"finished: {run.stopped}"
    if run.finished and run.steps >= run.total_steps:
        return f"finished, {counted(run.recipe.epochs, 'epochs')}"
    step = max((int(line.step) for line in (*run.intervals, *run.log.checkpoint)), default=0)
    return f"not finished: step {step:,} of {run.total_steps:,}" if step else "nothing logged yet"


# classes and training images ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingImages:
    """The linear probe's predictions for training images, class names by label, and thumbnails of images with doubtful labels."""

    labels: TrainingLabels
    names: Sequence[str]
    doubts: list[Mistake]

    def gaining(self) -> list[ClassCurve]:
        """Return the LISTED_CLASSES that gained most from the second half of the images, the largest gain first."""
        return sorted(self.labels.classes, key=lambda c: (c.half - c.all, self.names[c.label]))[:LISTED_CLASSES]


def training_images(run: Run) -> TrainingImages | None:
    """Return the run's doubtful labels and learning curves. None if it has none, or its training file is gone."""
    found = read_training_labels(run.folder)
    if found is None:
        return None
    try:
        files = open_of_run(run, "data.train")
        if len(files) != found.images:
            return None
        names, listed = files.class_names, files.read_names()
        doubts = [
            Mistake(
                d.sample, names[d.label], d.label_probability, names[d.predicted], d.predicted_probability,
                image=thumbnail(files, d.sample), file=printable(listed[d.sample]) if listed else "",
            )
            for d in found.doubts
        ]  # fmt: skip
    except UserError:
        return None
    return TrainingImages(found, names, doubts)


# recipe and data ---------------------------------------------------------------------------------------------------------


def base_recipe(run: Run, paper_name: str | None, is_automatic: bool) -> AskedRecipe:
    """Return the recipe to compare with. On images other than ImageNet it is the run's own as shipped, or `photos`."""
    own = RECIPES / f"{run.recipe.name}.yaml"
    if run.on_imagenet or not (own.is_file() or is_automatic):
        own = RECIPES / f"{paper_name or 'final_b16'}.yaml"
    return load_recipe(own if own.is_file() else RECIPES / "photos.yaml")


def recipe_diff(
    recipe: Recipe, base: AskedRecipe, choices: Mapping[str, Choice]
) -> list[tuple[str, object, object, str]]:
    """List (option, base's value, recipe's value, reason) where they differ or were chosen automatically, in schema order."""
    differing, ours = differences(recipe, base), recipe.flat()
    return [
        (key, AUTO if key in base.automatic else theirs, ours[key], choices[key].reason if key in choices else "")
        for key, theirs in base.flat().items()
        if (key in differing or key in choices) and key not in NOT_COMPARED
    ]
