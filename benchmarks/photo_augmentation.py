"""Measure what augmentation leaves of a linear probe's knowledge on the sets of photo_sets.py.

python benchmarks/photo_augmentation.py SETS --work WORK [--sets hands,rooms]

This is the figure by which fastft decides whether to augment (fastft.choose.augmentation). A line for each set is appended
to results/photo_augmentation.jsonl: the losses in nats, and what is left. Everything is computed in fp32 at 42 px, with seed
0. photo_runs.py trains with and without augmentation: see AUGMENTED in photos.py.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from photo_runs import ROOT, Bench
from photo_sets import SETS

from beton_tools.read.beton_set import BetonSet
from fastft.choose.augmentation import choose_flips, compare_losses, recognise_mirrored
from fastft.choose.automatic import resolve
from fastft.evaluate.linear_probe import FrozenTower, fit_probe
from fastft.machine.distributed import connected, find_world
from fastft.recipe.training_images import Images

RESULTS = ROOT / "benchmarks" / "results" / "photo_augmentation.jsonl"


def measure(bench: Bench, name: str) -> dict[str, float]:
    """Return the losses of the set's linear probe, and the part of its knowledge that augmentation leaves."""
    files = BetonSet.open(str(bench.betons(name)[0]))
    recipe = resolve(bench.recipe(name, 0, {}, bench.work / "none"), Images.of_betons(files, None))
    with connected(find_world("cpu")) as world:
        tower = FrozenTower.build(recipe, world, lambda: False)
        probe = fit_probe(tower, files, lambda line: None)
        mirrored = recognise_mirrored(tower, files, probe)
        assert mirrored is not None, "the sets are small enough for features to be kept"
        losses = compare_losses(replace(tower, recipe=choose_flips(recipe, mirrored)), files, probe)
    return {key: round(value, 4) for key, value in (asdict(losses) | {"kept": losses.kept}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SETS")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.folder, options.work)
    for name in options.sets.split(","):
        row = {"set": name, **measure(bench, name)}
        with options.out.open("a") as file:
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
