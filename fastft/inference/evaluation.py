"""Exact evaluation of a checkpoint on a `.beton` file, over all processes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from beton_tools.errors import UserError
from fastft.build import build_policy
from fastft.data import EvalLoader, Output, Shard
from fastft.data.classes import refuse_other_classes
from fastft.inference.trained import BATCH, Trained, load_trained
from fastft.train.distributed import World, find_world, peer_lost
from fastft.train.evaluate import Scores, evaluate
from fastft.train.precision import inference_precision


def evaluate_checkpoint(checkpoint: Path, data: Path | None, device: str) -> dict[str, Any]:
    """Scores of a checkpoint on a `.beton` (default: the validation file of its recipe).

    Raises:
        UserError: there is no such checkpoint or file, it is damaged, or the file has other classes.
    """
    world = find_world(device)
    try:
        with world:
            trained, path, scores = _evaluate(checkpoint, data, world)
    except RuntimeError as error:
        if not world.is_peer_loss(error):
            raise
        raise peer_lost(error, "run the same command again") from None
    return {
        "checkpoint": str(trained.path),
        "data": str(path),
        **asdict(scores),
        "standard_error": scores.standard_error,
    }


def _evaluate(checkpoint: Path, data: Path | None, world: World) -> tuple[Trained, str | Path, Scores]:
    trained = load_trained(checkpoint, world.device)
    recipe, precision = trained.recipe, inference_precision(trained.recipe.train.amp, world.device)
    path = data or recipe.data.val
    if path is None:
        raise UserError("the recipe names no validation file; give one with --data FILE.beton")
    with EvalLoader(
        path,
        build_policy(recipe),
        Output(recipe.model.image_size, world.device, precision.dtype),
        batch_size=BATCH,
        crop_pct=recipe.train.eval_crop_pct,
        shard=Shard(world.rank, world.size),
    ) as loader:
        refuse_other_classes(loader.class_names, trained.outputs, path)
        try:
            (scores,) = evaluate([trained.model], loader, world, precision)
        except UserError as error:
            raise world.publish_error(error) from error
    return trained, path, scores
