"""Pair the predictions that two runs made for the same validation images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import classes_of
from fastft.recipe.constants import EMA, PROBE, RAW
from fastft.run.baseline import read_baseline
from fastft.run.evaluations import BALANCED_ACCURACY, PAIRED, TOP1, BestBy
from fastft.run.inputs import open_of_run
from fastft.run.paired import Comparison, compare_predictions
from fastft.run.predictions import read_validation
from fastft.run.run_directory import Run


class ImageResults(NamedTuple):
    """A run's predictions for its validation images, from its last evaluation.

    Attributes:
        names: the images' names in their source.
        contents: their content ids, uint64 (N,). None for files of earlier versions.
        truth: the labels by class name, one text per image.
        labels_N: int64.
        right: bool (N,), multi-label (N, K).
    """

    score: BestBy
    names: Sequence[str]
    contents: np.ndarray | None
    truth: Sequence[str]
    labels_N: np.ndarray
    right: np.ndarray

    def images(self, by_content: bool) -> Iterable[tuple[object, str]]:
        """Return what tells each image from others: its content id, or else its name, and its labels."""
        own = self.contents.tolist() if by_content and self.contents is not None else self.names
        return zip(own, self.truth, strict=True)


def read_image_results(run: Run, opened: Sequence[BetonSet] = ()) -> ImageResults | None:
    """Read a run's predictions, by the weights that it chose if there are any by these.

    None without predictions, or without the validation file.

    The predictions are from the last epoch, even if the run chose an earlier one. If it chose a linear probe, they are this
    probe's, and None if it was compared on other images than the validation images.
    """
    if run.recipe.data.val is None or not run.evaluations:
        return None
    arrays = read_validation(run.folder)
    chosen = EMA if run.weights is None else run.weights.kind
    kind = next((k for k in (chosen, EMA, RAW) if f"{k}_predicted" in arrays), None)
    if kind is None:
        return None
    right = arrays[f"{kind}_predicted"] == arrays["labels"]
    if run.weights is not None and chosen == PROBE:
        baseline = read_baseline(run.folder)
        probe = None if baseline is None else baseline.at(run.weights.image_size)
        if probe is None or probe.selection is not None or (stored := probe.right_of(right.shape)) is None:
            return None
        right = stored
    try:
        betons = open_of_run(run, "data.val", opened)
        names, contents = betons.read_names(), betons.read_contents()
    except UserError:
        return None
    labels = arrays["labels"]
    if names is None or len(names) != len(labels):
        return None
    truth = [";".join(betons.class_names[k] for k in classes_of(row)) for row in labels]
    return ImageResults(run.evaluations[-1].best_by, list(names), contents, truth, labels, right)


def compare_image_results(first: ImageResults, second: ImageResults) -> Comparison | None:
    """Return how far `second` is ahead of `first` on the images that both have, with the same labels. None without any.

    Balanced accuracy is compared if it compares the epochs in both runs. Images are matched by content and labels, because
    other images may have the same names, and only without content ids by name and labels.
    """
    by_content = first.contents is not None and second.contents is not None
    place = {image: i for i, image in enumerate(first.images(by_content))}
    pairs = [(place[image], i) for i, image in enumerate(second.images(by_content)) if image in place]
    if not pairs or first.right.ndim != second.right.ndim or first.right.shape[1:] != second.right.shape[1:]:
        return None
    ours, theirs = np.array(pairs).T
    score = first.score if first.score == second.score else TOP1
    labels_N = first.labels_N[ours] if score == BALANCED_ACCURACY else None
    paired = compare_predictions(second.right[theirs], first.right[ours], labels_N)
    return Comparison.of(paired, len(pairs), PAIRED[score])
