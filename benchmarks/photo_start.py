"""Measure what the rise of the loss at the start of a run buys, on the sets of photo_sets.py.

python benchmarks/photo_start.py SETS --work WORK [--sets hands,flowers] [--lrs 5e-4,1e-4]

For each set and learning rate one run is made like those of photo_runs.py (seed 0). A line is appended to
results/photo_start.jsonl: the highest and the last loss in training, top-1 on the test images in percent with the linear
probe that the run starts from and after training, and two things about the features after training (raw weights): the top-1
of a new ridge head that is fitted to them, and the mean cosine between them and the features before training.
"""

import shutil
from collections.abc import Iterator

import numpy as np
from photo_runs import Bench, fit_ridge, measure_sets

from beton_tools.base.console import make_console
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.features import beton_features
from fastft.evaluate.trained import load_trained
from fastft.jobs.run import run_recipe
from fastft.machine.distributed import connected, find_world
from fastft.run.run_directory import load_run


def measure(bench: Bench, set: str, lr: str) -> Iterator[dict[str, float]]:
    folder = bench.work / "start"
    shutil.rmtree(folder, ignore_errors=True)
    options = {"optim.lr": lr, "train.log_every": "1"}
    run_recipe(bench.recipe(set, 0, options, folder), make_console(quiet=True))
    losses = [interval.loss for interval in load_run(folder).intervals]
    train, test = bench.betons(set)
    with connected(find_world("cpu")) as world:
        start, end = (load_trained(folder, world.device, weights) for weights in ("probe", "raw"))
        fitted, after, before = (
            beton_features(model, path, world) for model, path in ((end, train), (end, test), (start, test))
        )
    head = fit_ridge(fitted.features_ND, None, fitted.labels_N)
    before_ND, after_ND = (f.features_ND / np.linalg.norm(f.features_ND, axis=1)[:, None] for f in (before, after))
    probe, raw = (evaluate_file(folder, test, "cpu", weights)[1].predictions.right_N for weights in ("probe", "raw"))
    found = {
        "highest": max(losses), "last": losses[-1], "probe": 100 * probe.mean(), "trained": 100 * raw.mean(),
        "new_head": 100 * head.score(after.features_ND, after.labels_N),
        "cosine": (before_ND * after_ND).sum(1).mean(),
    }  # fmt: skip
    yield {key: round(float(value), 3) for key, value in found.items()}


if __name__ == "__main__":
    measure_sets(__doc__, "photo_start", measure, ("hands", "flowers"), lr="5e-4,1e-4")
