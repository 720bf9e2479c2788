"""Exact evaluation: every sample once at any world size, sums added over processes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from fastft.data import Batch
from fastft.train.distributed import World
from fastft.train.precision import Precision


class EvaluationStopped(Exception):
    """An evaluation that ended before its last batch because `stop` returned true."""


@dataclass(frozen=True)
class Scores:
    """top1 and top5 in percent, mean cross-entropy without label smoothing, and the number of samples."""

    top1: float
    top5: float
    loss: float
    samples: int

    @property
    def standard_error(self) -> float:
        """Binomial standard error of top1, in percentage points."""
        p = self.top1 / 100
        return 100 * (p * (1 - p) / max(1, self.samples)) ** 0.5


@torch.inference_mode()
def evaluate(
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    world: World,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
) -> list[Scores]:
    """Scores of every model over all processes' `batches`, which are read once for all models.

    Nothing waits for the device before the last batch. stop: called before each batch.

    Raises:
        EvaluationStopped: in every process, if `stop` returned true in one of them.
    """
    training = [model.training for model in models]
    for model in models:
        model.eval()
    sums = torch.zeros(len(models), 4, dtype=torch.float64, device=world.device)
    stopped = False
    for batch in batches:
        if stopped := stop():
            break
        for row, model in zip(sums, models, strict=True):
            with precision.autocast():
                logits_BK = model(batch.images)
            row += batch_sums(logits_BK.float(), batch.labels)
    for model, mode in zip(models, training, strict=True):
        model.train(mode)
    if world.any(stopped):
        raise EvaluationStopped
    return [
        Scores(100 * top1 / samples, 100 * top5 / samples, loss / samples, int(samples))
        for top1, top5, loss, samples in world.sum(sums).tolist()
    ]


def batch_sums(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """(top-1 hits, top-5 hits, summed cross-entropy, samples) as float64, on the device."""
    ranked = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
    hits = ranked == labels_B[:, None]
    loss = F.cross_entropy(logits_BK, labels_B, reduction="sum")
    # full, not new_tensor, which copies from pageable memory and waits for the device
    samples = torch.full((), len(labels_B), dtype=torch.float64, device=logits_BK.device)
    return torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double(), samples])
