"""The ridge head is scikit-learn's ridge regression, with a penalty and a scale chosen on held-out images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from fastft.run.prediction_metrics import calibrate
from fastft.train.distributed import World
from fastft.train.head_start import FOLDS, RidgeHead, _fit_in_one_pass, _folds, fit_ridge_head
from fastft.train.precision import Precision
from tests.written import predictions_of


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test images and labels, 64 features, in a random order."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def test_the_head_is_scaled_ridge_regression_on_one_hot_labels(digits):
    images, labels, _, _ = digits
    head = fit_ridge_head(images, labels, 10, seed=0)
    variance = images.astype(np.float64).var(0).mean()
    expected = Ridge(alpha=head.penalty * variance * len(labels)).fit(images.astype(float), np.eye(10)[labels])
    assert head.weight_KD == pytest.approx(head.scale * expected.coef_, rel=1e-3, abs=1e-4)
    assert head.bias_K == pytest.approx(head.scale * expected.intercept_, rel=1e-3, abs=1e-4)


def test_its_logits_are_accurate_and_calibrated_on_unseen_images(digits):
    images, labels, test_images, test_labels = digits
    head = fit_ridge_head(images, labels, 10, seed=0)
    logits = test_images @ head.weight_KD.T + head.bias_K
    p = predictions_of(logits, test_labels)
    assert p.right_N.mean() > 0.9
    found = calibrate(p)
    assert found.temperature == pytest.approx(1, abs=0.25)
    unscaled = calibrate(predictions_of(logits / head.scale, test_labels))
    assert found.plain.ece < unscaled.plain.ece / 4


def test_logits_of_many_classes_are_calibrated():
    """Eight images of each of 400 classes: their scores lie so close together that a scale of 54.6 was too small."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(400), 12)
    centres, noise = rng.normal(size=(400, 64)), rng.normal(size=(len(labels), 64))
    images = (centres[labels] + 1.5 * noise).astype(np.float32)
    fitted = np.arange(len(labels)) % 12 < 8
    head = fit_ridge_head(images[fitted], labels[fitted], 400, seed=0)
    p = predictions_of(images[~fitted] @ head.weight_KD.T + head.bias_K, labels[~fitted])
    assert head.scale > 100
    assert calibrate(p).temperature == pytest.approx(1, abs=0.25)


def test_the_same_images_and_seed_give_the_same_head(digits):
    images, labels, _, _ = digits
    first, second = (fit_ridge_head(images, labels, 10, seed=3) for _ in range(2))
    assert (first.weight_KD == second.weight_KD).all() and (first.bias_K == second.bias_K).all()


def test_folds_have_the_same_share_of_every_class():
    labels = np.repeat(np.arange(3), [50, 20, 7])
    folds = _folds(labels, seed=0)
    for label, count in enumerate((50, 20, 7)):
        per_fold = np.bincount(folds[labels == label], minlength=FOLDS)
        assert per_fold.max() - per_fold.min() <= 1 and per_fold.sum() == count


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_few_images_are_enough(count):
    """Also one of each class, more classes than images, and a feature that is constant."""
    features = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    features[:, 0] = 1
    head = fit_ridge_head(features, np.arange(count) % 3, 5, seed=0)
    assert np.isfinite(head.weight_KD).all() and np.isfinite(head.bias_K).all()
    assert head.weight_KD.shape == (5, 8)


class AsFeatures(torch.nn.Module):
    """A model whose images are its features."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(width, classes)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        return images


class OneOfTwo(World):
    """A process whose peer's sums and rows are known already; it records its own."""

    def __init__(self, theirs: list[torch.Tensor]) -> None:
        super().__init__(0, 1, 0, torch.device("cpu"))
        self.theirs, self.mine = list(theirs), []

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.mine.append(values.clone())
        return values.add_(self.theirs.pop(0)) if self.theirs else values

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        self.mine.append(rows)
        return torch.cat([rows, self.theirs.pop(0)]) if self.theirs else rows


def one_pass(images: np.ndarray, labels: np.ndarray, world: World, part: slice = slice(None)) -> RidgeHead:
    batches = [
        SimpleNamespace(images=torch.from_numpy(images[ids]), labels=torch.from_numpy(labels[ids]), ids=ids)
        for ids in np.array_split(np.arange(len(images))[part], 7)
    ]

    class Loader(list):
        num_samples = len(images)

    model, precision = AsFeatures(images.shape[1], 10), Precision(torch.float32, "cpu")
    return _fit_in_one_pass(model, Loader(batches), world, precision, 0, lambda: False)  # type: ignore[arg-type]


def test_one_pass_over_many_images_gives_the_dense_solution(digits):
    images, labels, test_images, test_labels = digits
    head = one_pass(images, labels, World(0, 1, 0, torch.device("cpu")))
    variance = images.astype(np.float64).var(0).mean()
    dense = Ridge(alpha=head.penalty * variance * len(labels)).fit(images.astype(float), np.eye(10)[labels])
    assert head.weight_KD == pytest.approx(head.scale * dense.coef_, rel=1e-4, abs=1e-5)
    assert head.bias_K == pytest.approx(head.scale * dense.intercept_, rel=1e-4, abs=1e-5)
    p = predictions_of(test_images @ head.weight_KD.T + head.bias_K, test_labels)
    assert p.right_N.mean() > 0.9 and calibrate(p).temperature == pytest.approx(1, abs=0.25)


def test_two_processes_solve_what_one_does(digits):
    images, labels, _, _ = digits
    whole = one_pass(images, labels, World(0, 1, 0, torch.device("cpu")))
    second = OneOfTwo([])
    one_pass(images, labels, second, slice(500, None))
    both = one_pass(images, labels, OneOfTwo(second.mine), slice(500))
    assert both.penalty == whole.penalty
    assert both.weight_KD == pytest.approx(whole.weight_KD, rel=1e-4) and both.scale == pytest.approx(
        whole.scale, rel=1e-3
    )
