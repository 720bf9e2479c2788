"""A stratified hold-out: images of every class for validation, related images on one side."""

import numpy as np
from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from beton_tools.write.write_order import seeded_order

VERSION = 1  # of the rules that split and order the images

# AutoGluon's share of the rows that it holds out
SMALL_SET = 5000


def holdout_share(images: int) -> float:
    """Share of `images` that is held out: a fifth of the smallest sets, a hundredth of the largest."""
    if images < SMALL_SET:
        return max(0.1, min(0.2, 500 / images))
    return max(0.01, min(0.1, 2500 / images))


def hold_out(labels: np.ndarray, units: np.ndarray, seed: int = 0) -> np.ndarray:
    """bool (N,): the images that are held out, by class and by whole units.

    labels: int64 (N,). units: int64 (N,), equal for images that must stay on one side. A class with images of at least two
    units keeps one on each side, as far as a fifth of all images allows one of every class.
    """
    members = _members(units)
    pairs = np.unique(np.column_stack([labels, units]), axis=0)
    quotas = _quotas(np.bincount(labels), np.bincount(pairs[:, 0]))
    order = [members[k] for k in seeded_order(len(members), seed).tolist()]
    held = np.zeros(len(labels), bool)
    taken, counts = np.zeros_like(quotas), np.bincount(labels)
    # first units that fit, then, smallest first, one for each class that has none
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
    """Images to hold out of each class: the share of the set, at least one of each class if a fifth of the set allows it.

    counts, units: images and units of each class. A class of one unit gives none: it would have no training images.
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
    """The images of each unit, by first appearance."""
    _, first, inverse = np.unique(units, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[inverse]
    order = np.argsort(rank, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(rank[order])) + 1)


def join_units(*keys: np.ndarray) -> np.ndarray:
    """int64 (N,): a unit number per image; images that agree in any of the keys, directly or through others, share it."""
    count = len(keys[0])
    rows = np.arange(count)
    edges = [np.unique(key, return_index=True, return_inverse=True)[1:] for key in keys]
    left = np.concatenate([rows for _ in edges])
    right = np.concatenate([first[inverse] for first, inverse in edges])
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
