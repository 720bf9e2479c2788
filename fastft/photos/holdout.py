"""Stratified hold-out: images from every class for validation, with related images on one side."""

import numpy as np

from beton_tools.write.write_order import seeded_order

VERSION = 1  # version of the rules that split and order the images

# AutoGluon holds out the same fractions
SMALL_SET = 5000


def holdout_share(images: int) -> float:
    """Return the fraction of `images` to hold out: a fifth for the smallest sets, a hundredth for the largest."""
    if images < SMALL_SET:
        return max(0.1, min(0.2, 500 / images))
    return max(0.01, min(0.1, 2500 / images))


def hold_out(labels: np.ndarray, units: np.ndarray, seed: int = 0) -> np.ndarray:
    """Choose the images to hold out, by class and by whole units: bool (N,).

    A class whose images form at least two units keeps one on each side, as far as a fifth of all images allows one for
    every class.

    Args:
        labels: int64 (N,).
        units: int64 (N,), equal for images that must stay on one side.
    """
    members = _members(units)
    pairs = np.unique(np.column_stack([labels, units]), axis=0)
    quotas = _quotas(np.bincount(labels), np.bincount(pairs[:, 0]))
    order = [members[k] for k in seeded_order(len(members), seed).tolist()]
    held = np.zeros(len(labels), bool)
    taken, counts = np.zeros_like(quotas), np.bincount(labels)
    # first the units that fit, then, smallest first, one for each class that has none
    for overshoot, candidates in ((False, order), (True, sorted(order, key=len))):
        for unit in candidates:
            if held[unit[0]]:
                continue
            added = np.bincount(labels[unit], minlength=len(quotas))
            fits = (taken + added <= quotas)[added > 0].all()
            missing = overshoot and ((taken == 0) & (quotas > 0) & (added > 0)).any()
            leaves_some = (taken + added < counts)[added > 0].all()
            if leaves_some and (fits or missing):
                held[unit] = True
                taken += added
    return held


def _quotas(counts: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return how many images to hold out in each class.

    This is the set's fraction, and at least one image for each class if a fifth of the set allows it. A class with one
    unit gives none, because it would have no training images.

    Args:
        counts, units: images and units in each class.
    """
    images, can_give = int(counts.sum()), units > 1
    classes = int(can_give.sum())
    total = min(max(round(holdout_share(images) * images), classes), images // 5)
    exact = np.where(can_give, total * counts / images, 0)
    least = can_give.astype(np.int64) if total >= classes else np.zeros_like(counts)
    quotas = np.maximum(np.floor(exact).astype(np.int64), least)
    remainders = np.where(can_give, exact - quotas, -1)  # negative where raised to one
    for label in np.argsort(-remainders, kind="stable")[: max(0, total - int(quotas.sum()))].tolist():
        quotas[label] += 1
    return np.where(can_give, np.minimum(quotas, counts - 1), 0)


def _members(units: np.ndarray) -> list[np.ndarray]:
    """List each unit's images. Units are ordered by first appearance."""
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[inverse]
    order = np.argsort(rank, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(rank[order])) + 1)
