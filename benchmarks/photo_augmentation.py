"""Measure what augmentation leaves of a linear probe's knowledge on the sets of photo_sets.py.

python benchmarks/photo_augmentation.py SETS --work WORK [--sets hands,rooms]

This is the figure by which fastft decides whether to augment (fastft.choose.augmentation). A line for each set is appended
to results/photo_augmentation.jsonl: the losses in nats, and what is left. Everything is computed in fp32 at 42 px, with seed
0. photo_runs.py trains with and without augmentation: see AUGMENTED in photos.py.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace

from photo_runs import Bench, measure_sets

from beton_tools.read.beton_set import BetonSet
from fastft.choose.augmentation import choose_flips, compare_losses, recognise_mirrored
from fastft.choose.automatic import resolve
from fastft.data.units import read_units
from fastft.evaluate.linear_probe import FrozenTower, fit_probe
from fastft.machine.distributed import connected, find_world
from fastft.recipe.training_images import Images


def measure(bench: Bench, set: str) -> Iterator[dict[str, float]]:
    """Yield the losses of the set's linear probe, and the part of its knowledge that augmentation leaves."""
    files = BetonSet.open(str(bench.betons(set)[0]))
    recipe = resolve(bench.recipe(set, 0, {}, bench.work / "none"), Images.of_betons(files, None))
    with connected(find_world("cpu")) as world:
        tower = FrozenTower.build(recipe, world, lambda: False)
        probe = fit_probe(tower, files, read_units(files), lambda line: None)
        mirrored = recognise_mirrored(tower, files, probe)
        assert mirrored is not None, "the sets are small enough for features to be kept"
        losses = compare_losses(replace(tower, recipe=choose_flips(recipe, mirrored)), files, probe)
    yield {key: round(value, 4) for key, value in (asdict(losses) | {"kept": losses.kept}).items()}


if __name__ == "__main__":
    measure_sets(__doc__, "photo_augmentation", measure)
