"""Post-hoc logit adjustment for unequal class sizes (Menon et al. 2021, 2007.07314, with tau = 1)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from beton_tools.base.errors import UserError
from beton_tools.read.beton_paths import exist_betons
from beton_tools.read.beton_set import BetonSet
from fastft.evaluate.trained import Trained
from fastft.run.checkpoint import Damaged


@torch.no_grad()
def adjust_logits(trained: Trained) -> Trained:
    """The trained model, with the logarithm of each class's share of the training images subtracted from its head's bias.

    The largest logit then predicts the class with the smallest balanced error, instead of the most probable class. The model
    is changed in place.

    Raises:
        UserError: the number of training images of each class is not known.
    """
    counts = trained.class_counts or _count_training_images(trained)
    if len(counts) != len(trained.classes):
        raise Damaged(trained.path, f"it has {len(trained.classes)} classes and {len(counts)} class sizes")
    bias_K = trained.model.head.bias
    shares_K = log_shares([*counts, *[0] * (len(bias_K) - len(counts))])
    bias_K.sub_(shares_K.to(bias_K.device))
    words = f"{trained.weights}; logits adjusted for the class sizes"
    return replace(trained, weights=words, is_adjusted=True)


def log_shares(class_counts: Sequence[int]) -> Tensor:
    """float64 (K,): logarithm of each class's share; classes without images get no advantage over the largest one."""
    counts_K = torch.tensor(class_counts, dtype=torch.float64)
    counts_K = torch.where(counts_K > 0, counts_K, counts_K.max())
    return (counts_K / counts_K.sum()).log()


def _count_training_images(trained: Trained) -> list[int]:
    """From the training file, for checkpoints of versions that did not store the counts."""
    path = trained.recipe.data.train
    if path is None or not exist_betons(path):
        raise UserError(
            f"--logit-adjustment needs the number of training images of each class, which {trained.path} does not hold; "
            f"put the training file back to {path}"
        )
    counts = BetonSet.open(path).class_counts
    return counts + [0] * (len(trained.classes) - len(counts))
