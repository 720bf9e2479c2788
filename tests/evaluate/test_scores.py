"""Evaluation counts every sample once and leaves models as they were."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastft.data.loader import Batch
from fastft.evaluate.scores import Scores, evaluate
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.train.progress import Progress
from tests.written import predictions_of

WORLD = World(0, 1, 0, torch.device("cpu"))


def batches(logits: torch.Tensor, labels: torch.Tensor, size: int) -> list[Batch]:
    """Batches whose images are the logits themselves."""
    return [
        Batch(logits[i : i + size], labels[i : i + size], np.arange(i, min(i + size, len(labels))), i // size, i)
        for i in range(0, len(labels), size)
    ]


@pytest.mark.parametrize("classes", [4, 80, 1000])
def test_of_equal_logits_the_lower_class_counts_everywhere(classes):
    """Logits in half precision are often equal."""
    logits = torch.randint(3, (200, classes), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.randint(classes, (200,), generator=torch.Generator().manual_seed(1))
    (scores,) = evaluate(
        [nn.Identity()], batches(logits, labels, 64), WORLD, Precision(torch.float32, "cpu"), with_logits=True
    )
    want = predictions_of(logits.numpy(), labels.numpy())
    np.testing.assert_array_equal(scores.predictions.predicted_N, want.predicted_N)
    assert scores.top1 == pytest.approx(100 * want.right_N.mean())


def test_every_model_is_scored_in_one_pass_and_its_mode_restored():
    logits, labels = torch.eye(4), torch.arange(4)
    right, wrong = nn.Identity(), nn.Linear(4, 4)
    nn.init.zeros_(wrong.weight)
    wrong.train()
    scores = evaluate([right, wrong], iter(batches(logits, labels, 2)), WORLD, Precision(torch.float32, "cpu"))
    assert [s.top1 for s in scores] == [100, pytest.approx(25, abs=25)]
    assert wrong.training and scores[1].samples == 4


def test_metrics_do_not_depend_on_the_batch_size_and_need_no_logits():
    torch.manual_seed(0)
    logits, labels = torch.randn(101, 20), torch.randint(20, (101,))
    precision = Precision(torch.float32, "cpu")
    (small,) = evaluate([nn.Identity()], batches(logits, labels, 7), WORLD, precision, with_logits=True)
    (whole,) = evaluate([nn.Identity()], batches(logits, labels, 101), WORLD, precision)
    expected = predictions_of(logits.numpy(), labels.numpy())
    top5 = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    for scores in (small, whole):
        found = scores.predictions
        assert (found.predicted_N == expected.predicted_N).all()
        assert found.confidence_N == pytest.approx(expected.confidence_N, rel=1e-5)
        assert found.truth_N == pytest.approx(expected.truth_N, rel=1e-5)
        assert scores.top1 == pytest.approx(100 * found.right_N.mean())
        assert scores.samples == 101
        assert scores.top5 == pytest.approx(100 * top5.float().mean().item())
        assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert small.balanced_accuracy == whole.balanced_accuracy
    assert small.ece == pytest.approx(whole.ece, abs=1e-4)
    assert small.temperature is not None and "temperature" not in whole.as_dict()


def test_top5_is_given_only_beyond_five_classes():
    for classes in (5, 6):
        logits = torch.eye(classes)
        (scores,) = evaluate(
            [nn.Identity()], batches(logits, torch.arange(classes), 2), WORLD, Precision(torch.float32, "cpu")
        )
        assert ("top5" in scores.as_dict()) == (classes > 5)


def test_the_best_epoch_is_chosen_by_the_score_that_its_entries_name():
    first = Scores(90.0, None, 1.0, 100, balanced_accuracy=50.0)
    second = Scores(80.0, None, 1.0, 100, balanced_accuracy=70.0)
    for best_by, epoch in (("top1", 0), ("balanced_accuracy", 1)):
        progress = Progress()
        for number, scores in enumerate((first, second)):
            progress.add(number, {"raw": scores}, best_by)
        best = progress.best()
        assert best is not None and best["epoch"] == epoch
