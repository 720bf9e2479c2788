"""Weighted k-nearest-neighbour classification in the embedding before the head, as DINO evaluates features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from beton_tools.base.errors import UserError
from fastft.data.classes import refuse_other_classes
from fastft.evaluate.evaluation import describe_scores, evaluate_model, validation_file
from fastft.evaluate.features import Features, beton_features
from fastft.evaluate.trained import load_trained
from fastft.model import ImageClassifier
from fastft.recipe.constants import AUTO
from fastft.train.distributed import connected, find_world

TEMPERATURE = 0.07  # Wu et al. 2018 (1805.01978), and DINO's eval_knn.py
NO_VOTES = 1e-6  # the probability of a class without votes, whose logarithm would be -inf


class NeighbourVotes(nn.Module):
    """Images to logarithms of vote shares (B, K).

    A training image votes for its class with exp(cosine similarity / TEMPERATURE) if it is one of the k nearest.
    """

    bank_ND: Tensor
    labels_N: Tensor

    def __init__(self, model: ImageClassifier, bank: Features, k: int, num_classes: int):
        super().__init__()
        self.k, self.num_classes, self.model = k, num_classes, model
        self.register_buffer("bank_ND", functional.normalize(torch.from_numpy(bank.features_ND), dim=1))
        self.register_buffer("labels_N", torch.from_numpy(bank.labels_N))

    def forward(self, images: Tensor) -> Tensor:
        features_BD = self.model.pooled(images)
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
    """Scores of the k nearest neighbours on each `.beton` of `files` (none: on the validation file of the recipe).

    train: the `.beton` of the images that vote (None: the training file of the recipe). weights: as `load_trained`.

    Raises:
        UserError: a file is missing or damaged, of other classes, or has fewer than k images; it is `train`.
    """
    world = find_world(device)
    with connected(world):
        trained = load_trained(checkpoint, world.device, weights)
        bank_path = train or (None if trained.recipe.data.train is None else Path(trained.recipe.data.train))
        if bank_path is None:
            raise UserError("the recipe names no training file; give one with --knn-train FILE")
        paths = files or [validation_file(trained)]
        if bank_path.resolve() in [path.resolve() for path in paths]:
            raise UserError(
                f"every image of {bank_path} would vote for itself; evaluate another file, or give --knn-train"
            )
        bank = beton_features(trained, bank_path, world)
        refuse_other_classes(bank.classes, trained.outputs, bank_path)
        images = len(bank.labels_N)
        if not np.isfinite(bank.features_ND).all():  # they would have no nearest neighbours
            raise UserError(
                f"embeddings of {bank_path} contain NaN or Inf; use weights that give finite ones"
            )
        if k > images:
            raise UserError(f"--knn {k} is more than the {images} images of {bank_path}; give fewer")
        votes = NeighbourVotes(trained.model, bank, k, trained.recipe.data.num_classes).to(world.device)
        found = [evaluate_model(trained, path, world, model=votes) for path in paths]
    about = {"knn": k, "knn_train": str(bank_path), "knn_train_images": images}
    return [describe_scores(trained, scores) | about for scores in found]
