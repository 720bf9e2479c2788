"""Post-hoc logit adjustment for unequal class sizes (Menon et al. 2021, 2007.07314, with tau = 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from beton_tools.beton_paths import exist_betons
from beton_tools.beton_set import BetonSet
from beton_tools.errors import UserError
from fastft.inference.trained import Trained
from fastft.train.checkpoint import Damaged


class AdjustedLogits(nn.Module):
    """A model whose logits are reduced by the logarithm of each class's share of the training images.

    The largest logit then predicts the class with the smallest balanced error, instead of the most probable class.
    """

    log_prior_K: Tensor

    def __init__(self, model: nn.Module, class_counts: Sequence[int]):
        super().__init__()
        counts_K = torch.tensor(class_counts, dtype=torch.float64)
        # outputs without training images get no advantage over the largest class
        counts_K = torch.where(counts_K > 0, counts_K, counts_K.max())
        self.model = model
        self.register_buffer("log_prior_K", (counts_K / counts_K.sum()).log().float())

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).float() - self.log_prior_K


def adjust_logits(trained: Trained) -> nn.Module:
    """The trained model with adjusted logits.

    Raises:
        UserError: the number of training images of each class is not known.
    """
    counts = trained.class_counts or _count_training_images(trained)
    if len(counts) != len(trained.classes):
        raise Damaged(trained.path, f"it has {len(trained.classes)} classes and {len(counts)} class sizes")
    padded = [*counts, *[0] * (trained.recipe.data.num_classes - len(counts))]
    return AdjustedLogits(trained.model, padded).to(next(trained.model.parameters()).device)


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
