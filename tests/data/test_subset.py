"""Loaders of some samples of files, as a hold-out leaves them: each once, with the pixels that they have in the files."""

from pathlib import Path

import numpy as np
import pytest

from beton_tools.read.beton_set import BetonSet
from tests.data.test_loader import collect, eval_loader, train_loader
from tests.data.test_several_files import parts, pattern  # noqa: F401 - fixtures


def test_evaluation_sees_the_pixels_of_the_chosen_samples(indexed_beton: Path, pattern: str) -> None:  # noqa: F811
    chosen = np.array([1, 2, 9, 20, 21, 22, 43])
    with eval_loader(indexed_beton, indices=chosen) as loader:
        expected = {place: (label, image) for place, (_, label, image) in collect(loader).items()}
    for data in (indexed_beton, pattern):
        with eval_loader(BetonSet.open(data).take(chosen)) as loader:
            found = collect(loader)
        assert {place: (label, image) for place, (_, label, image) in found.items()} == expected
        assert [i for i, _, _ in found.values()] == list(range(len(chosen)))


@pytest.mark.parametrize("order", ["random", "blocks"])
def test_training_sees_each_sample_once_and_the_same_from_parts(
    order: str,
    indexed_beton: Path,
    pattern: str,  # noqa: F811
) -> None:
    """In blocks too, whose pages hold samples of both sides."""
    chosen = np.flatnonzero(np.arange(44) % 5)
    epochs = []
    for data in (indexed_beton, pattern):
        taken = BetonSet.open(data).take(chosen)
        with train_loader(taken, order=order, block_mib=1, batch_size=7, micro_batch=7) as loader:
            assert loader.num_samples == len(chosen)
            seen = collect(loader.epoch(1))
        ids = [i for i, _, _ in seen.values()]
        assert sorted(ids) == list(range(len(chosen)))
        assert [label for _, label, _ in seen.values()] == taken.labels[ids].tolist()
        epochs.append({i: (label, image) for i, label, image in seen.values()})
    assert epochs[0] == epochs[1]
