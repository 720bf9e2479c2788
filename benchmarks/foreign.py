"""Measure how well a score tells a model's own test images from foreign ones: "none of these".

python benchmarks/foreign.py SETS --work WORK [--sets stamps,cifar/2] [--seeds 0]

Trains on sets that photo_sets.py built (10 epochs at 42 px, fp32, one thread) and appends a line for each pair of sets to
results/foreign.jsonl. Images of ImageNet are foreign ones too, if FASTFT_IMAGENET_SAMPLE names their folder. `NAME/2`
trains on every other class of a set, and its foreign images are those of the other classes. Two scores are compared on the
same images: the probability of the most probable class at the fitted temperature, which `fastft predict --min-probability`
uses, and the logarithm of the summed exponentials of the logits.

- `auroc`: the chance that one of the set's test images has a higher score than a foreign one, in percent.
- `kept`, `rejected`: the shares of test images kept and of foreign images rejected, in percent, with the threshold that
  keeps 95 % of the validation images.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from photo_runs import EPOCHS, SIZE, Bench, measure_sets
from photo_sets import SETS
from records import Row, facts, lines, points
from sklearn.metrics import roc_auc_score

from beton_tools.base.console import make_console, markdown_table
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.dataset import SAMPLE_VARIABLE
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.predictor import compute_outputs
from fastft.evaluate.trained import Trained, load_trained
from fastft.jobs.run import run_recipe
from fastft.run.predictions import log_sum_exp, reached_by

TRAINED = ("stamps", "clipart", "cifar", "cells", "stamps/2", "clipart/2", "cifar/2")
IMAGENET, REST = "ImageNet", "other classes"
MOST = 400  # foreign images of a set
PROBABILITY, SUM = SCORES = ("highest probability", "log-sum-exp")


def scores_of(logits_NK: np.ndarray, temperature: float) -> dict[str, np.ndarray]:
    """Return both scores, float64 (N,) each. Higher is more like the training images."""
    logits_NK = logits_NK.astype(np.float64)
    scaled_NK = (logits_NK - logits_NK.max(1, keepdims=True)) / temperature
    return {PROBABILITY: 1 / np.exp(scaled_NK).sum(1), SUM: log_sum_exp(logits_NK)}


def train(bench: Bench, name: str, seed: int) -> Path:
    """Train on a set, or on every other class of it, and return the run directory."""
    folder, classes = bench.work / "foreign-run", bench.work / "foreign-classes"
    for path in (folder, classes):
        shutil.rmtree(path, ignore_errors=True)
    kept, _ = sides(bench, name)
    for label in kept:
        shutil.copytree(bench.sets / name.removesuffix("/2") / "train" / label, classes / label)
    beton = bench.work / "foreign.beton"
    convert_folder(classes, beton, WriteOptions(workers=0), overwrite=True)
    options = {"data.train": str(beton), "data.hold_out_beton": "true"}
    run_recipe(bench.recipe(name.removesuffix("/2"), seed, options, folder), make_console(quiet=True))
    return folder


def sides(bench: Bench, name: str) -> tuple[list[str], list[str]]:
    """Return (the classes that are trained; the set's other classes)."""
    labels = sorted(path.name for path in (bench.sets / name.removesuffix("/2") / "train").iterdir())
    return (labels[::2], labels[1::2]) if name.endswith("/2") else (labels, [])


def foreign_images(bench: Bench, name: str) -> Iterator[tuple[str, list[Path]]]:
    """Yield (name, image files) for each foreign set."""
    own, (_, rest) = name.removesuffix("/2"), sides(bench, name)
    if rest:
        yield REST, _files(bench.sets / own / "test", rest)
        return
    for other in ("stamps", "clipart", "cifar", "cells"):
        if other != own:
            yield other, _files(bench.sets / other / "test", ["*"])
    if imagenet := os.environ.get(SAMPLE_VARIABLE):
        yield IMAGENET, _files(Path(imagenet), ["*"])


def _files(folder: Path, labels: Sequence[str]) -> list[Path]:
    """Return at most MOST image files in these class folders, evenly spaced."""
    found = sorted(path for label in labels for path in folder.glob(f"{label}/*") if path.is_file())
    chosen = np.unique(np.linspace(0, len(found) - 1, MOST).astype(int)) if len(found) > MOST else range(len(found))
    return [found[i] for i in chosen]


def _percent(share: float) -> float:
    return round(100 * float(share), 2)


def logits_of(trained: Trained, files: Sequence[Path]) -> np.ndarray:
    rows = compute_outputs(trained, files, torch.device("cpu"))
    return torch.stack([row for _, _, row in rows]).numpy()


def compare(bench: Bench, set: str, seed: int) -> Iterator[Row]:
    """Train on a set and yield a row for each foreign one."""
    folder = train(bench, set, seed)
    trained = load_trained(folder, torch.device("cpu"))
    validation = evaluate_file(folder, trained.open_validation(), "cpu", "auto")[1].predictions.logits_NK
    assert validation is not None
    kept, _ = sides(bench, set)
    own = _files(bench.sets / set.removesuffix("/2") / "test", kept)
    logits_NK, temperature = logits_of(trained, own), trained.temperature or 1.0
    labels_N = np.array([trained.outputs.index(path.parent.name) for path in own])
    held, known = scores_of(validation, temperature), scores_of(logits_NK, temperature)
    for other, files in foreign_images(bench, set):
        foreign, row = scores_of(logits_of(trained, files), temperature), {}
        truth = np.repeat([1, 0], [len(own), len(files)])
        for score in SCORES:
            limit = reached_by(held[score])
            row[score] = {
                "auroc": _percent(roc_auc_score(truth, np.concatenate([known[score], foreign[score]]))),
                "kept": _percent((known[score] >= limit).mean()),
                "rejected": _percent((foreign[score] < limit).mean()),
            }
        yield {
            "foreign": other, "classes": len(kept), "validation": len(validation), "test": len(own),
            "foreign_images": len(files), "top1": _percent((logits_NK.argmax(1) == labels_N).mean()),
            "image_size": SIZE, "epochs": EPOCHS, "scores": row,
        }  # fmt: skip


# table ------------------------------------------------------------------------------------------------------------------------


def table() -> str:
    """Make a row for each pair of sets: both scores' AUROC and what their thresholds reject."""
    rows, gains = [], defaultdict(list)
    for row in lines("foreign"):
        before, after = (row["scores"][score] for score in SCORES)
        gains[row["set"]].append(after["auroc"] - before["auroc"])
        cells = [f"{s['auroc']:.1f}" for s in (before, after)]
        cells += [f"{s['rejected']:.0f} ({s['kept']:.0f})" for s in (before, after)]
        other = SETS[row["foreign"]].title if row["foreign"] in SETS else row["foreign"]
        rows.append([_title(row), other, f"{row['top1']:.0f}", *cells])
    head = ["trained on", "foreign images", "top-1 %", "AUROC, probability", "AUROC, log-sum-exp"]
    head += ["% rejected (kept), probability", "% rejected (kept), log-sum-exp"]
    return f"{markdown_table(head, rows)}\n\n{_setting(gains)}"


def _title(row: Row) -> str:
    name = str(row["set"])
    title = SETS[name.removesuffix("/2")].title
    return f"{title}, half of the classes" if name.endswith("/2") else title


def _setting(gains: dict[str, list[float]]) -> str:
    """State the mean gain, with its standard error over the trained models: pairs of one model are not independent."""
    rows, of_model = lines("foreign"), [fmean(gain) for gain in gains.values()]
    processor, date, commit, seed = facts(rows, "processor", "date", "commit", "seed")
    mean = points(fmean(of_model), float(np.std(of_model, ddof=1)) / len(of_model) ** 0.5, False)
    pairs = [gain for of_set in gains.values() for gain in of_set]
    return (
        f"Log-sum-exp's AUROC minus the probability's AUROC is {mean} (mean and standard error over {len(of_model)} "
        f"models), and positive in {sum(gain > 0 for gain in pairs)} of {len(pairs)} pairs. {processor}, one thread, "
        f"fp32, {date}, commit {commit}, seed {seed}."
    )


if __name__ == "__main__":
    measure_sets(__doc__, "foreign", compare, TRAINED, seed="0")
