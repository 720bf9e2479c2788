"""Exact evaluation of a checkpoint on `.beton` files, over all processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace as replace_fields
from torch import Tensor, nn

from beton_tools.base.atomic import check_output, write_csv
from beton_tools.base.errors import UserError
from beton_tools.read.beton_paths import BetonPaths
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.sample_table import classes_of
from beton_tools.sources.path_table import SEPARATOR
from fastft.augment.recipe_policy import build_policy
from fastft.data.classes import refuse_multi_label, refuse_other_classes, refuse_other_labels
from fastft.data.loader import EvalLoader
from fastft.data.order import Shard
from fastft.data.stage import Output
from fastft.data.warnings import describe_betons, overlap_warnings
from fastft.evaluate.file_report import EvaluatedFile, FileReport, report_file
from fastft.evaluate.scores import TOP5_CLASSES, evaluate
from fastft.evaluate.trained import BATCH, Trained, adjust_logits, load_trained
from fastft.machine.distributed import World, connected, find_world
from fastft.machine.precision import inference_precision
from fastft.recipe.constants import AUTO
from fastft.run.predictions import Predictions

KEPT_LOGITS = 2**26  # values (256 MiB). ImageNet's validation images have 50 million logits


class PresentClasses(nn.Module):
    """A model whose logits are -inf for classes without images: they are never predicted and have no probability.

    Published results on ImageNet-A and ImageNet-R rank 200 of 1,000 classes in this way. present: labels with images.
    """

    absent_K: Tensor

    def __init__(self, model: nn.Module, present: np.ndarray, outputs: int):
        super().__init__()
        absent_K = torch.ones(outputs, dtype=torch.bool)
        absent_K[torch.from_numpy(present)] = False
        self.model = model
        self.register_buffer("absent_K", absent_K)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).float().masked_fill(self.absent_K, float("-inf"))


def evaluate_checkpoint(checkpoint: Path, data: Path | None, device: str, **options: Any) -> FileReport:
    """Score a checkpoint on one `.beton`, by default its recipe's validation file. options: see `evaluate_files`."""
    (scores,) = evaluate_files(checkpoint, [] if data is None else [data], device, **options)
    return scores


def evaluate_file(
    checkpoint: Path, data: Path | BetonSet, device: str, weights: str = AUTO
) -> tuple[Trained, EvaluatedFile]:
    """Return a checkpoint's model, with its scores and predictions for every image in a `.beton`, in file order."""
    world = find_world(device)
    with connected(world):
        trained = load_trained(checkpoint, world.device, weights)
        return trained, evaluate_model(trained, data, world)


def evaluate_files(
    checkpoint: Path,
    files: Sequence[Path],
    device: str,
    *,
    weights: str = AUTO,
    logit_adjustment: bool = False,
    only_present_classes: bool = False,
    csv: Path | None = None,
    overwrite: bool = False,
    classes_by_position: bool = False,
) -> list[FileReport]:
    """Score a checkpoint on each `.beton` in `files`, or on its recipe's validation file if there are none.

    Args:
        weights: as in `load_trained`.
        logit_adjustment: correct the logits for the training file's class sizes.
        only_present_classes: rank only the classes that have images in the file.
        csv: write the prediction for each image to this file. `files` must then be a single file.
        overwrite: replace an existing `csv`.
        classes_by_position: equal labels mean the same classes in the files and the model, whatever they are called.

    Raises:
        UserError: there is no such checkpoint or file, it is damaged, a file has other classes, `csv` cannot be written
            or exists, or `csv` is combined with several files.
    """
    if csv is not None:
        if len(files) > 1:
            raise UserError("--csv writes the predictions for one file. Give one --data, or omit --csv")
        check_output(csv, [".csv"], overwrite)
    world = find_world(device)
    with connected(world):
        trained = load_trained(checkpoint, world.device, weights)
        by_position = classes_by_position or trained.recipe.data.classes_by_position
        opened = [BetonSet.open(path, classes_by_position=by_position) for path in files]
        opened = opened or [trained.open_validation()]
        if logit_adjustment:
            trained = adjust_logits(trained)
        scores = [
            evaluate_model(trained, betons, world, only_present_classes, classes_by_position) for betons in opened
        ]
        notes = _warn_of_training_images(trained, opened) if world.is_main else [""] * len(opened)
    if csv is not None and world.is_main:
        write_predictions_table(scores[0].predictions, trained.outputs, opened[0].read_names(), csv)
    return [
        replace_fields(
            report_file(trained, one), logit_adjustment=logit_adjustment, note=". ".join(filter(None, [one.note, note]))
        )
        for one, note in zip(scores, notes, strict=True)
    ]


def _warn_of_training_images(trained: Trained, files: Sequence[BetonSet]) -> list[str]:
    """Say for each file how many of its images the model was trained on: "" if it is none.

    All are "" if the training images are not there any more, or cannot be compared.
    """
    try:
        train = trained.open_training()
        warnings = [overlap_warnings(*describe_betons(train, betons)) for betons in files]
    except UserError:
        return [""] * len(files)
    return [
        ". ".join(f"{betons.title}: {said}" for said in found) for betons, found in zip(files, warnings, strict=True)
    ]


def eval_loader(
    trained: Trained, data: BetonPaths | BetonSet, world: World, classes_by_position: bool = False
) -> EvalLoader:
    """Load this process's part of a file, transformed as in the model's evaluation.

    Raises UserError if the file is missing or damaged.
    """
    recipe = trained.recipe
    dtype = inference_precision(recipe.train.amp, world.device).dtype
    if not isinstance(data, BetonSet):
        data = BetonSet.open(data, classes_by_position=classes_by_position or recipe.data.classes_by_position)
    return EvalLoader(
        data,
        build_policy(recipe.with_option("augment.policy", "none")),  # the policy may be unknown to this version
        Output(recipe.evaluated_size, world.device, dtype),
        batch_size=BATCH,
        shard=Shard(world.rank, world.size),
    )


def evaluate_model(
    trained: Trained,
    data: Path | BetonSet,
    world: World,
    only_present_classes: bool = False,
    classes_by_position: bool = False,
) -> EvaluatedFile:
    """Score a model on one file. Raises UserError as `evaluate_files`, published to the other processes."""
    outputs = trained.recipe.data.num_classes
    if only_present_classes:
        refuse_multi_label(trained.recipe, "--only-present-classes")
    model: nn.Module = trained.model
    precision = inference_precision(trained.recipe.train.amp, world.device)
    with eval_loader(trained, data, world, classes_by_position) as loader:
        path = Path(loader.betons.title)
        note = refuse_other_classes(
            loader.known_classes, trained.known_classes, path,
            by_position=classes_by_position or trained.recipe.data.classes_by_position, outputs=outputs,
        )  # fmt: skip
        refuse_other_labels(loader.betons, trained.recipe)
        ranked = outputs
        if only_present_classes:
            present = np.flatnonzero(loader.class_counts)
            model, ranked = PresentClasses(model, present, outputs).to(world.device), len(present)
        with_logits = loader.num_samples * outputs <= KEPT_LOGITS
        try:
            (found,) = evaluate(
                [model], loader, world, precision, with_logits=with_logits, thresholds=trained.thresholds
            )
        except UserError as error:
            raise world.publish_error(error) from error
    scores = found.scores if ranked >= TOP5_CLASSES else replace_fields(found.scores, top5=None)
    return EvaluatedFile(path, scores, found.predictions, ranked, note)


def write_predictions_table(
    predictions: Predictions, names: Sequence[str], images: Sequence[str] | None, path: Path
) -> None:
    """Write a CSV file with one row per image, in the order of the predicted file. images: their names, if it has them.

    image: index in the file. file: name in the source, if the manifest has it. label, predicted: names of the true and of
    the predicted class. probability, label_probability: softmax probability for the predicted and for the true class.
    With multi-label data, labels and predicted are lists such as "cat;dog", and each label has a column with its
    probability.
    """
    p = predictions
    files = images or [""] * len(p.labels_N)
    if p.thresholds_K is not None:
        sets = ([SEPARATOR.join(names[k] for k in classes_of(row)) for row in r] for r in (p.labels_N, p.predicted_N))
        given = enumerate(zip(files, *sets, p.confidence_N.tolist(), strict=True))
        lines = ([image, *texts, *(f"{value:.6f}" for value in row)] for image, (*texts, row) in given)
        return write_csv(path, ["image", "file", "labels", "predicted", *names], lines)
    columns = (values.tolist() for values in (p.labels_N, p.predicted_N, p.confidence_N, p.truth_N))
    rows = (
        [image, file, names[label], names[predicted], f"{confidence:.6f}", f"{truth:.6f}"]
        for image, (file, label, predicted, confidence, truth) in enumerate(zip(files, *columns, strict=True))
    )
    write_csv(path, ["image", "file", "label", "predicted", "probability", "label_probability"], rows)
