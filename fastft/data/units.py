"""Units: images that must stay on one side when some are held out, because they are the same or belong together."""

import hashlib
from collections.abc import Sequence

import numpy as np

from beton_tools.base.content import content_id
from beton_tools.read.beton_set import READ_WHOLE, BetonSet


def join_units(*keys: np.ndarray) -> np.ndarray:
    """Return a unit number per image, int64 (N,).

    Images that agree in any key, directly or through others, share it.
    """
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped]  # takes half a second, which most commands save
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    if len(keys) == 1:
        ordered = np.sort(keys[0])
        if (ordered[1:] != ordered[:-1]).all():
            return np.arange(len(ordered))
        return np.searchsorted(ordered, keys[0])
    count = len(keys[0])
    rows = np.arange(count)
    edges = [np.unique(key, return_index=True, return_inverse=True)[1:] for key in keys]
    left = np.concatenate([rows for _ in edges])
    right = np.concatenate([first[inverse] for first, inverse in edges])
    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def units_of(contents: np.ndarray | None, groups: np.ndarray | None, count: int) -> np.ndarray:
    """Return a unit per image, int64 (N,). Images with the same content, or in the same group, form a unit.

    This is the only rule for `data.selection_share`, for hold-outs, and for splits that are continued.

    Args:
        contents: Numbers (N,), equal for the same images. None: nothing is known.
        groups: int64 (N,), negative for no group. None: there are no groups.
    """
    keys = [] if contents is None else [contents]
    if groups is not None:
        keys.append(np.where(groups < 0, -1 - np.arange(count), groups))
    return join_units(*keys) if keys else np.arange(count)


def number_groups(groups: Sequence[str] | None) -> np.ndarray | None:
    """Number the cells of a group column, int64 (N,). An empty cell, -1, is no group."""
    if groups is None:
        return None
    numbers: dict[str, int] = {"": -1}
    return np.array([numbers.setdefault(group, len(numbers) - 1) for group in groups], np.int64)


def read_contents(*sets: BetonSet) -> list[np.ndarray | None]:
    """Return, for each set, numbers that are equal for the same images in all sets, uint64 (N,).

    The numbers are content ids from the manifests. Files without them are compared by the stored bytes, if all files
    together are small enough to be read. Otherwise the numbers are None.
    """
    stored = [betons.read_contents() for betons in sets]
    if all(ids is not None for ids in stored):
        return list(stored)
    if sum(betons.file_size for betons in sets) > READ_WHOLE:
        return [None for _ in sets]
    shapes = [np.column_stack([betons.sizes, betons.heights, betons.widths]) for betons in sets]
    _, inverse, counts = np.unique(np.concatenate(shapes), axis=0, return_inverse=True, return_counts=True)
    numbers = np.arange(len(inverse), dtype=np.uint64)
    every = [(betons, i) for betons in sets for i in range(len(betons))]
    for k in np.flatnonzero(counts[inverse.reshape(-1)] > 1).tolist():
        betons, i = every[k]
        numbers[k] = content_id(betons.read_bytes(i))
    return list(np.split(numbers, np.cumsum([len(betons) for betons in sets])[:-1]))


def read_units(betons: BetonSet) -> np.ndarray:
    """Return a unit per sample, int64 (N,). See `units_of`."""
    (contents,) = read_contents(betons)
    return units_of(contents, number_groups(betons.read_groups()), len(betons))


def identify_units(units_N: np.ndarray) -> str:
    """Hash which images share a unit, however the units are numbered. "" if no two images do."""
    _, first, unit_N = np.unique(units_N, return_index=True, return_inverse=True)
    if len(first) == len(units_N):
        return ""
    return hashlib.blake2b(first[unit_N].astype("<i8").tobytes(), digest_size=8).hexdigest()


def choose_share(strata_N: np.ndarray, units_N: np.ndarray, share: float) -> np.ndarray:
    """Choose a share of the images by whole units, with the class shares of the whole: bool (N,).

    The choice is the same in every run. A class keeps training images if it has any in two units.

    Args:
        strata_N: int64, each image's label. See `beton_tools.read.sample_table.strata`.
        units_N: int64, as `units_of` gives them.
    """
    count = len(strata_N)
    unit_N = units_N if units_N.max() < count else np.unique(units_N, return_inverse=True)[1]
    sizes, numbers = np.bincount(unit_N), np.arange(count)
    first = np.zeros(len(sizes), np.int64)
    first[unit_N[::-1]] = numbers[::-1]  # the earliest is written last
    labels, units = strata_N, unit_N
    is_plain = (sizes <= 1).all()
    if not is_plain:
        keys = np.sort(strata_N * len(first) + unit_N)
        labels, units = np.divmod(keys[np.diff(keys, prepend=-1) > 0], len(first))  # pairs that occur
    only = units[np.bincount(labels)[labels] == 1]  # the only unit of a class
    can_leave = np.ones(len(first), bool)
    can_leave[only] = False
    order_N = np.lexsort((np.random.default_rng(0).permutation(count), strata_N))
    is_first = first[unit_N] == numbers
    ordered = unit_N[order_N[is_first[order_N]]]
    ordered = ordered[can_leave[ordered]]
    held = np.zeros(len(first), bool)
    if is_plain:
        held[ordered] = np.diff(np.ceil(np.arange(len(ordered) + 1) * share)) > 0
    else:
        passed, taken = 0, 0
        for unit, size in zip(ordered.tolist(), sizes[ordered].tolist(), strict=True):
            passed += size
            if taken + (size - 1) / 2 < passed * share:
                held[unit] = True
                taken += size
    kept = np.bincount(labels, ~held[units])
    for label in np.intersect1d(np.flatnonzero(kept == 0), labels).tolist():  # units of several classes took all of one
        held[units[labels == label][0]] = False
    return held[unit_N]
