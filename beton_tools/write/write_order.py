"""Choose the samples that are written, and their order. Both depend only on labels and seed."""

from __future__ import annotations

import numpy as np

from beton_tools.read.sample_table import strata


def seeded_order(n: int, seed: int) -> np.ndarray:
    """Return a permutation of range(n), int64, by sorting SplitMix64(seed, i).

    NumPy's Generator.permutation is not used, because its stream may change between NumPy versions. The same seed must
    always give the same file.
    """
    # SplitMix64's constants: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=np.uint64) + _scramble(np.array([seed], np.uint64))) * np.uint64(
            0x9E3779B97F4A7C15
        )
        return np.argsort(_scramble(z), kind="stable")


def _scramble(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def choose(labels: np.ndarray, subset_per_class: int | None, shuffle_seed: int | None) -> np.ndarray:
    """Return int64 indices into the source, in writing order.

    Args:
        subset_per_class: Choose this many images from every class, by the seed (0 without shuffling). If an image has
            several labels, the rarest counts.
        shuffle_seed: None keeps the source's order.
    """
    order = seeded_order(len(labels), shuffle_seed or 0)
    if subset_per_class is not None:
        order = order[_rank_in_class(strata(labels)[order]) < subset_per_class]
    return np.sort(order) if shuffle_seed is None else order


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Count, for each position, the earlier positions with the same label."""
    by_class = np.argsort(labels, kind="stable")
    sorted_labels = labels[by_class]
    first = np.searchsorted(sorted_labels, sorted_labels)
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - first
    return rank
