"""Evaluation counts every sample once and leaves models as they were."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastft.data.loader import Batch
from fastft.evaluate.scores import Evaluated, evaluate
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.run.evaluations import Scores
from fastft.run.predictions import Predictions
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
    (found,) = evaluate(
        [nn.Identity()], batches(logits, labels, 64), WORLD, Precision(torch.float32, "cpu"), with_logits=True
    )
    want = predictions_of(logits.numpy(), labels.numpy())
    np.testing.assert_array_equal(found.predictions.predicted_N, want.predicted_N)
    assert found.scores.top1 == pytest.approx(100 * want.right_N.mean())


def test_every_model_is_scored_in_one_pass_and_its_mode_restored():
    logits, labels = torch.eye(4), torch.arange(4)
    right, wrong = nn.Identity(), nn.Linear(4, 4)
    nn.init.zeros_(wrong.weight)
    wrong.train()
    found = evaluate([right, wrong], iter(batches(logits, labels, 2)), WORLD, Precision(torch.float32, "cpu"))
    assert [f.scores.top1 for f in found] == [100, pytest.approx(25, abs=25)]
    assert wrong.training and found[1].scores.samples == 4


def test_metrics_do_not_depend_on_the_batch_size_and_need_no_logits():
    torch.manual_seed(0)
    logits, labels = torch.randn(101, 20), torch.randint(20, (101,))
    precision = Precision(torch.float32, "cpu")
    (small,) = evaluate([nn.Identity()], batches(logits, labels, 7), WORLD, precision, with_logits=True)
    (whole,) = evaluate([nn.Identity()], batches(logits, labels, 101), WORLD, precision)
    expected = predictions_of(logits.numpy(), labels.numpy())
    top5 = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    for evaluated in (small, whole):
        found, scores = evaluated.predictions, evaluated.scores
        assert (found.predicted_N == expected.predicted_N).all()
        assert found.confidence_N == pytest.approx(expected.confidence_N, rel=1e-5)
        assert found.truth_N == pytest.approx(expected.truth_N, rel=1e-5)
        assert scores.top1 == pytest.approx(100 * found.right_N.mean())
        assert scores.samples == 101
        assert scores.top5 == pytest.approx(100 * top5.float().mean().item())
        assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    small_scores, whole_scores = small.scores, whole.scores
    assert small_scores.balanced_accuracy == whole_scores.balanced_accuracy
    assert small_scores.ece == pytest.approx(whole_scores.ece, abs=1e-4)
    assert small_scores.temperature is not None and whole_scores.temperature is None


def test_top5_is_given_only_beyond_five_classes():
    for classes in (5, 6):
        logits = torch.eye(classes)
        (found,) = evaluate(
            [nn.Identity()], batches(logits, torch.arange(classes), 2), WORLD, Precision(torch.float32, "cpu")
        )
        assert (found.scores.top5 is not None) == (classes > 5)


def test_the_best_epoch_is_chosen_by_the_score_that_its_entries_name():
    predictions = Predictions(*4 * [np.zeros(0, int)], 2)
    first = Evaluated(Scores(top1=90.0, loss=1.0, samples=100, balanced_accuracy=50.0), predictions)
    second = Evaluated(Scores(top1=80.0, loss=1.0, samples=100, balanced_accuracy=70.0), predictions)
    for best_by, epoch in (("top1", 0), ("balanced_accuracy", 1)):
        progress = Progress()
        for number, evaluated in enumerate((first, second)):
            progress.add(number, {"raw": evaluated}, best_by)
        best = progress.best()
        assert best is not None and best.epoch == epoch
