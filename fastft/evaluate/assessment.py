"""A run's weights on its validation file, for its report: metrics per class, and the mistakes with their images."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from fastft.evaluate.class_report import ClassReport, report_classes
from fastft.evaluate.logits import compute_logits
from fastft.evaluate.mistakes import Mistakes, find_mistakes, thumbnail
from fastft.recipe.constants import AUTO
from fastft.run.chosen_weights import find_weights
from fastft.run.metrics import Predictions
from fastft.run.run_directory import Run

FEW_IMAGES = 3000  # a CPU evaluates as many in a minute or two


@dataclass(frozen=True)
class Assessment:
    """weights: which ones it is of, in words."""

    weights: str
    mistakes: Mistakes
    classes: ClassReport


def assess_run(run: Run, insist: bool, weights: str = AUTO) -> tuple[Assessment | None, str]:
    """The assessment of a run's weights, of those that it chose by default, or None and the reason why there is none.

    Without `insist`, only if there is a GPU or there are few validation images.

    Raises:
        UserError: `insist`, and the validation file or the checkpoint cannot be read.
    """
    if run.recipe.data.val is None:
        return None, "The run has no validation data."
    try:
        betons = BetonSet.open(run.recipe.data.val)
        chosen = find_weights(run.folder, weights)
        if not insist and len(betons) > FEW_IMAGES and not torch.cuda.is_available():
            images = f"{len(betons):,} images take long without a GPU"
            return None, f"Left out: {images} (--mistakes=always evaluates them)."
        found = compute_logits(run.folder, betons, "auto", weights)
    except UserError as error:
        if insist:
            raise
        return None, f"Left out: {error}."
    names = _display_names(betons.files[0].path, found.classes)
    mistakes = find_mistakes(found.logits_NK, found.labels_N, names)
    files = betons.read_names()
    shown = [
        replace(m, image=thumbnail(betons, m.sample), file=printable(files[m.sample]) if files else "")
        for m in mistakes.most_confident
    ]
    classes = report_classes(Predictions.from_logits(found.logits_NK, found.labels_N), names)
    return Assessment(chosen.description, replace(mistakes, most_confident=shown), classes), ""


def _display_names(data: Path, classes: list[str]) -> list[str]:
    """The readable class names of the file's manifest if it has them, otherwise `classes`."""
    manifest = Manifest.of_beton(data)
    return classes if manifest is None or manifest.class_names is None else manifest.class_names
