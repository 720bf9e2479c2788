"""Measure how well a score tells a model's own test images from foreign ones: "none of these".

python benchmarks/foreign.py SETS --work WORK [--imagenet FOLDER] [--sets stamps,cifar/2]

Trains on sets that photo_sets.py built (10 epochs at 42 px, fp32, one thread) and appends a line for each pair of sets to
results/foreign.jsonl. `NAME/2` trains on every other class of a set, and its foreign images are those of the other classes.
Two scores are compared on the same images: the probability of the most probable class at the fitted temperature, which
`fastft predict --min-probability` uses, and the logarithm of the summed exponentials of the logits.

- `auroc`: the chance that one of the set's test images has a higher score than a foreign one, in percent.
- `kept`, `rejected`: the shares of test images kept and of foreign images rejected, in percent, with the threshold that
  keeps 95 % of the validation images.
"""

import argparse
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from photo_runs import EPOCHS, ROOT, SIZE, Bench, provenance
from photo_sets import SETS
from sklearn.metrics import roc_auc_score
from study import points, trainings

from beton_tools.base.console import make_console, markdown_table
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.evaluate.evaluation import evaluate_file
from fastft.evaluate.predictor import compute_outputs
from fastft.evaluate.trained import Trained, load_trained
from fastft.jobs.run import run_recipe
from fastft.run.predictions import log_sum_exp, reached_by

RESULTS = ROOT / "benchmarks" / "results" / "foreign.jsonl"
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


def foreign_images(bench: Bench, name: str, imagenet: Path | None) -> Iterator[tuple[str, list[Path]]]:
    """Yield (name, image files) for each foreign set."""
    own, (_, rest) = name.removesuffix("/2"), sides(bench, name)
    if rest:
        yield REST, _files(bench.sets / own / "test", rest)
        return
    for other in ("stamps", "clipart", "cifar", "cells"):
        if other != own:
            yield other, _files(bench.sets / other / "test", ["*"])
    if imagenet is not None:
        yield IMAGENET, _files(imagenet, ["*"])


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


def compare(bench: Bench, name: str, seed: int, imagenet: Path | None) -> Iterator[dict[str, Any]]:
    """Train on a set and yield a row for each foreign one."""
    folder = train(bench, name, seed)
    trained = load_trained(folder, torch.device("cpu"))
    validation = evaluate_file(folder, trained.open_validation(), "cpu", "auto")[1].predictions.logits_NK
    assert validation is not None
    own, (kept, _) = _files(bench.sets / name.removesuffix("/2") / "test", sides(bench, name)[0]), sides(bench, name)
    logits_NK, temperature = logits_of(trained, own), trained.temperature or 1.0
    labels_N = np.array([trained.outputs.index(path.parent.name) for path in own])
    held, known = scores_of(validation, temperature), scores_of(logits_NK, temperature)
    for other, files in foreign_images(bench, name, imagenet):
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
            "set": name, "foreign": other, "seed": seed, "classes": len(kept), "validation": len(validation),
            "test": len(own), "foreign_images": len(files), "top1": _percent((logits_NK.argmax(1) == labels_N).mean()),
            "image_size": SIZE, "epochs": EPOCHS, "scores": row,
        }  # fmt: skip


# table ------------------------------------------------------------------------------------------------------------------------


def table() -> str:
    """Make a row for each pair of sets: both scores' AUROC and what their thresholds reject."""
    rows, gains = [], defaultdict(list)
    for row in trainings("foreign"):
        before, after = (row["scores"][score] for score in SCORES)
        gains[row["set"]].append(after["auroc"] - before["auroc"])
        cells = [f"{s['auroc']:.1f}" for s in (before, after)]
        cells += [f"{s['rejected']:.0f} ({s['kept']:.0f})" for s in (before, after)]
        rows.append(
            [
                _title(row),
                SETS[other].title if (other := row["foreign"]) in SETS else other,
                f"{row['top1']:.0f}",
                *cells,
            ]
        )
    head = ["trained on", "foreign images", "top-1 %", "AUROC, probability", "AUROC, log-sum-exp"]
    head += ["% rejected (kept), probability", "% rejected (kept), log-sum-exp"]
    return f"{markdown_table(head, rows)}\n\n{_setting(gains)}"


def _title(row: dict[str, Any]) -> str:
    name = str(row["set"])
    title = SETS[name.removesuffix("/2")].title
    return f"{title}, half of the classes" if name.endswith("/2") else title


def _setting(gains: dict[str, list[float]]) -> str:
    """State the mean gain, with its standard error over the trained models: pairs of one model are not independent."""
    rows, of_model = trainings("foreign"), [fmean(gain) for gain in gains.values()]
    facts = {key: ", ".join(sorted({str(row[key]) for row in rows})) for key in ("processor", "date", "commit", "seed")}
    mean = points(fmean(of_model), float(np.std(of_model, ddof=1)) / len(of_model) ** 0.5, False)
    pairs = [gain for of_set in gains.values() for gain in of_set]
    return (
        f"The AUROC of log-sum-exp minus that of the probability is {mean} (mean and standard error over {len(of_model)} "
        f"models), and positive in {sum(gain > 0 for gain in pairs)} of {len(pairs)} pairs. {facts['processor']}, one thread, "
        f"fp32, {facts['date']}, commit {facts['commit']}, seed {facts['seed']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SETS")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--sets", default=",".join(TRAINED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.folder, options.work)
    made = provenance()
    given = "python benchmarks/foreign.py SETS --work WORK --imagenet IMAGENET"
    command = f"{given} --sets={options.sets} --seed={options.seed}"
    for name in options.sets.split(","):
        for row in compare(bench, name, options.seed, options.imagenet):
            with options.out.open("a") as file:
                file.write(json.dumps(row | made | {"command": command}, separators=(",", ":")) + "\n")
            shown = ", ".join(f"{score} {row['scores'][score]['auroc']:.1f}" for score in SCORES)
            print(f"{name} against {row['foreign']}: {shown}; top-1 {row['top1']:.1f} %", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
