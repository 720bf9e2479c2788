"""Exact evaluation of a checkpoint on a `.beton` file, over all processes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from beton_tools.errors import UserError
from fastft.build import build_policy
from fastft.data import EvalLoader, Output, Shard
from fastft.data.classes import refuse_other_classes
from fastft.inference.class_report import MATRIX_CLASSES
from fastft.inference.evaluation_output import write_predictions_table
from fastft.inference.logit_adjustment import adjust_logits
from fastft.inference.trained import BATCH, Trained, load_trained
from fastft.metrics import Predictions, class_metrics, confusion_counts, largest_confusions, reliability
from fastft.train.chosen_weights import AUTO
from fastft.train.distributed import World, find_world, peer_lost
from fastft.train.evaluate import Scores, evaluate, keep_logits
from fastft.train.precision import inference_precision

KEPT_LOGITS = 2**26  # values: 256 MiB; the logits of ImageNet's validation images are 50 million
CONFUSIONS = 100  # pairs of classes that are listed


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path | None,
    device: str,
    *,
    weights: str = AUTO,
    logit_adjustment: bool = False,
    csv: Path | None = None,
) -> dict[str, Any]:
    """Scores of a checkpoint on a `.beton` (default: the validation file of its recipe).

    weights: as `load_trained`.
    logit_adjustment: correct the logits for the class sizes of the training file. csv: write the prediction for each image.

    Raises:
        UserError: there is no such checkpoint or file, it is damaged, or the file has other classes; `csv` cannot be written.
    """
    world = find_world(device)
    try:
        with world:
            trained, path, scores = _evaluate(checkpoint, data, world, weights, logit_adjustment)
    except RuntimeError as error:
        if not world.is_peer_loss(error):
            raise
        raise peer_lost(error, "run the same command again") from None
    assert scores.predictions is not None
    if csv is not None and world.is_main:
        write_predictions_table(scores.predictions, trained.outputs, path, csv)
    return {
        "checkpoint": str(trained.path),
        "weights": trained.weights,
        "data": str(path),
        "logit_adjustment": logit_adjustment,
        **scores.as_dict(),
        "standard_error": scores.standard_error,
        **describe_classes(scores.predictions, trained.outputs),
    }


def describe_classes(predictions: Predictions, names: list[str]) -> dict[str, Any]:
    """Metrics per class, largest confusions, bins of the reliability diagram, and with few classes the confusion matrix."""
    bins = reliability(predictions.confidence_N, predictions.right_N)
    found: dict[str, Any] = {
        "classes": [{"name": names[c.label], **asdict(c)} for c in class_metrics(predictions)],
        "confusions": [
            {"class": names[c.label], "predicted": names[c.predicted], "images": c.images}
            for c in largest_confusions(predictions, CONFUSIONS)
        ],
        "reliability": {name: values.tolist() for name, values in vars(bins).items()},
    }
    if predictions.num_classes <= MATRIX_CLASSES:
        found["confusion_matrix"] = confusion_counts(predictions).tolist()
    return found


def _evaluate(
    checkpoint: Path, data: Path | None, world: World, weights: str, logit_adjustment: bool
) -> tuple[Trained, str | Path, Scores]:
    trained = load_trained(checkpoint, world.device, weights)
    recipe, precision = trained.recipe, inference_precision(trained.recipe.train.amp, world.device)
    path = data or recipe.data.val
    if path is None:
        raise UserError("the recipe names no validation file; give one with --data FILE.beton")
    model = adjust_logits(trained) if logit_adjustment else trained.model
    with EvalLoader(
        path,
        build_policy(recipe),
        Output(recipe.model.image_size, world.device, precision.dtype),
        batch_size=BATCH,
        crop_pct=recipe.train.eval_crop_pct,
        shard=Shard(world.rank, world.size),
    ) as loader:
        refuse_other_classes(loader.class_names, trained.outputs, path)
        with_logits = keep_logits(loader.num_samples, recipe.data.num_classes, KEPT_LOGITS)
        try:
            (scores,) = evaluate([model], loader, world, precision, with_logits=with_logits)
        except UserError as error:
            raise world.publish_error(error) from error
    return trained, path, scores
