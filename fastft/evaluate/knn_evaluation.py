"""Weighted k-nearest-neighbour classification in the embedding before the head, as DINO evaluates features."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from beton_tools.base.errors import UserError
from fastft.data import Batch
from fastft.data.classes import refuse_other_classes
from fastft.evaluate.evaluation import (
    FileScores,
    describe_scores,
    evaluate_model,
    evaluating,
    score,
    validation_file,
)
from fastft.evaluate.features import (
    EXPECTED,
    SUFFIX,
    Features,
    extract_features,
    model_checksum,
    read_features,
)
from fastft.evaluate.trained import BATCH, Trained, load_trained
from fastft.model import ImageClassifier
from fastft.recipe.constants import AUTO
from fastft.train.distributed import World, find_world

TEMPERATURE = 0.07  # Wu et al. 2018 (1805.01978), and DINO's eval_knn.py
NO_VOTES = 1e-6  # the probability of a class without votes, whose logarithm would be -inf


class NeighbourVotes(nn.Module):
    """Embeddings (B, D), or images if there is a model, to logarithms of vote shares (B, K).

    A training image votes for its class with exp(cosine similarity / TEMPERATURE) if it is one of the k nearest.
    """

    bank_ND: Tensor
    labels_N: Tensor

    def __init__(self, bank: Features, k: int, num_classes: int, model: ImageClassifier | None = None):
        super().__init__()
        self.k, self.num_classes, self.model = k, num_classes, model
        self.register_buffer("bank_ND", functional.normalize(torch.from_numpy(bank.features_ND), dim=1))
        self.register_buffer("labels_N", torch.from_numpy(bank.labels_N))

    def forward(self, inputs: Tensor) -> Tensor:
        features_BD = inputs if self.model is None else self.model.pooled(inputs)
        # half precision would mix up near neighbours
        with torch.autocast(features_BD.device.type, enabled=False):
            similarity_BN = functional.normalize(features_BD.float(), dim=1) @ self.bank_ND.T
        nearest_BJ, index_BJ = similarity_BN.topk(self.k, dim=1)
        votes_BK = nearest_BJ.new_zeros(len(features_BD), self.num_classes)
        votes_BK.scatter_add_(1, self.labels_N[index_BJ], (nearest_BJ / TEMPERATURE).exp())
        return (votes_BK / votes_BK.sum(1, keepdim=True)).clamp_min(NO_VOTES).log()


def evaluate_neighbours(
    checkpoint: Path,
    files: Sequence[Path],
    device: str,
    k: int,
    *,
    train: Path | None = None,
    weights: str = AUTO,
) -> list[dict[str, Any]]:
    """Scores of the k nearest neighbours on each of `files` (none: on the validation file of the recipe).

    files, train: `.beton`, or `.npz` of `fastft predict --features` with the same weights. train: the images that vote (None:
    the training file of the recipe). weights: as `load_trained`.

    Raises:
        UserError: a file is missing or damaged, of other classes or other weights, or has fewer than k images; it is `train`.
    """
    world = find_world(device)
    with evaluating(world):
        trained = load_trained(checkpoint, world.device, weights)
        bank_path = train or (None if trained.recipe.data.train is None else Path(trained.recipe.data.train))
        if bank_path is None:
            raise UserError("the recipe names no training file; give one with --knn-train FILE")
        paths = files or [validation_file(trained)]
        if bank_path.resolve() in [path.resolve() for path in paths]:
            raise UserError(
                f"every image of {bank_path} would vote for itself; evaluate another file, or give --knn-train"
            )
        bank = _bank(trained, bank_path, world)
        if k > len(bank.labels_N):
            raise UserError(
                f"--knn {k} is more than the {len(bank.labels_N)} images of {bank_path}; give fewer"
            )
        found = [_evaluate(trained, path, bank, k, world) for path in paths]
    about = {"knn": k, "knn_train": str(bank_path), "knn_train_images": len(bank.labels_N)}
    return [describe_scores(trained, scores) | about for scores in found]


def _bank(trained: Trained, path: Path, world: World) -> Features:
    if path.suffix == SUFFIX:
        return _read_labelled(trained, path)
    found = extract_features(trained, [path], world, say=lambda text: None)
    refuse_other_classes(found.classes, trained.outputs, path)
    return _finite(found, path)


def _evaluate(trained: Trained, path: Path, bank: Features, k: int, world: World) -> FileScores:
    outputs = trained.recipe.data.num_classes
    if path.suffix != SUFFIX:
        votes = NeighbourVotes(bank, k, outputs, trained.model).to(world.device)
        return evaluate_model(trained, path, world, model=votes)
    features, votes = _read_labelled(trained, path), NeighbourVotes(bank, k, outputs).to(world.device)
    return score(trained, votes, _batches(features, world), len(features.labels_N), path, world)


def _read_labelled(trained: Trained, path: Path) -> Features:
    """Features of labelled images that these weights gave."""
    found = read_features(path)
    width = trained.model.head.in_features
    if found.model != model_checksum(trained.model) or found.features_ND.shape[1] != width:
        raise UserError(
            f"{path} holds embeddings of other weights than {trained.path}'s; write it again with them"
        )
    if not len(found.labels_N) or not found.classes or found.labels_N.min() < 0:
        raise UserError(f"{path} has images without labels; give {EXPECTED} from a .beton")
    if found.labels_N.max() >= len(found.classes):
        raise UserError(f"{path} has labels without a class; give {EXPECTED}")
    refuse_other_classes(found.classes, trained.outputs, path)
    return _finite(found, path)


def _finite(features: Features, path: Path) -> Features:
    """Raise UserError if an embedding is NaN or Inf: it would have no nearest neighbours."""
    if not np.isfinite(features.features_ND).all():
        raise UserError(f"embeddings of {path} contain NaN or Inf; use weights that give finite ones")
    return features


def _batches(features: Features, world: World) -> Iterator[Batch]:
    """This process's share of the embeddings, as batches of a loader."""
    share = np.array_split(np.arange(len(features.labels_N)), world.size)[world.rank]
    for index, first in enumerate(range(0, len(share), BATCH)):
        ids = share[first : first + BATCH]
        rows, labels = (
            torch.from_numpy(a[ids]).to(world.device) for a in (features.features_ND, features.labels_N)
        )
        yield Batch(rows, labels, ids, index, int(share[first]))
