"""Claim: `fastft train photos`, without another option, is better than ridge regression on the features of the same tower.

Setting: a DINOv2-type ViT-S/14 (not CLIP); photographs of solar cells (4 classes, 42 and 84 px) and CIFAR-10 with 100, 1,000
(56 px) and 9,000 (42 px) training images. `photos` holds out a share of the training images, by which it chooses between the
raw weights and the EMA. The figures are from test images on which nothing was chosen: 10,000 of CIFAR-10, and for each seed 400
other solar cells.
Rows: ridge regression (`photos` with the tower frozen and a learning rate of 0), `photos`, and, for 1,000 images,
`fastft tune photos` without a budget (nine settings of the learning rates, chosen on the images that are held out).
n = seeds; a seed changes order and augmentation. Differences are paired by seed and image.

Run: python benchmarks/small_data.py run --data CIFAR10 --seeds 0 1 2 [--only 100] [--sizes 56] [--rows ridge photos]
     python benchmarks/small_data.py report             (benchmarks/results/small_data.json)
A finished training is a line of small_data_runs.jsonl beside it and is not run again; an interrupted one is continued.
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scored_runs import ScoredRuns, pack, unpack
from study import extract_images, find_split, new_parser
from study_report import paired_gain

from beton_tools.read.format import Beton
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.demo_assets import IMAGES, WEIGHTS, extract_cells, fetch
from fastft.bench.demo_backbone import write_backbone
from fastft.bench.demo_trainings import CONTENDERS
from fastft.evaluate.evaluation import predict_file
from fastft.recipe import load_recipe
from fastft.search.tune import tune
from fastft.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
CELLS = "solar cells"
# cells of each class, at most; 313 photographs show the rarest one
FOLDS, CELLS_PER_FOLD, CELLS_BESIDE = 3, 100, 200
# (CELLS, or the number of CIFAR-10's training images; image size in pixels: the demo's 42 is the fastest)
SETS = (("100", 56), ("1000", 56), ("9000", 42), (CELLS, 42), (CELLS, 84))
CIFAR_CLASSES, TEST_PER_CLASS = 10, 1000
TOWER = (
    f"--model.arch={ROOT / 'rcp' / 'demo_vit_s14.json'}", "--augment.mean=0.485,0.456,0.406",
    "--augment.std=0.229,0.224,0.225", "--train.device=cpu", "--train.checkpoint_minutes=10",
    "--train.keep_checkpoints=1",
)  # fmt: skip
RIDGE = next(c.overrides for c in CONTENDERS if c.name == "linear")
ROWS: dict[str, tuple[str, ...]] = {"ridge": RIDGE, "photos": (), "tuned": ()}
TUNED_SETS = ("1000",)


@dataclass(frozen=True)
class Photographs:
    """A set: a folder or table of training images, the test images as a .beton, and the image size."""

    name: str
    train: Path
    test: Path
    size: int


def photographs(name: str, size: int, seed: int, folder: Path, cache: Path, data: Path | None) -> Photographs:
    """Extract one of SETS below `folder`."""
    if name == CELLS:
        train_images, test = extract_fold(folder / "solar-cell-folds", seed % FOLDS, cache)
        return Photographs(name, train_images, _converted(test), size)
    if data is None:
        raise SystemExit("give CIFAR-10's folder with --data or FASTFT_CIFAR10")
    images = folder / name / "images"
    extract_images(find_split(data, "train"), images, {"train": int(name) // CIFAR_CLASSES})
    extract_images(find_split(data, "test"), folder / "cifar-10", {"test": TEST_PER_CLASS})
    return Photographs(name, images / "train", _converted(folder / "cifar-10" / "test"), size)


def extract_fold(folder: Path, fold: int, cache: Path) -> tuple[Path, Path]:
    """Extract the solar cells. Returns a table of those to train on, and the folder of the test images: the fold."""
    parts = {f"fold{i}": CELLS_PER_FOLD for i in range(FOLDS)} | {"beside": CELLS_BESIDE}
    extract_cells(fetch(IMAGES, cache), folder, parts)
    table, test = folder / f"without-fold{fold}.csv", folder / f"fold{fold}"
    with table.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        for image in sorted(path for part in parts for path in (folder / part).glob("*/*.png")):
            if not image.is_relative_to(test):
                rows.writerow((image.relative_to(folder), image.parent.name))
    return table, test


def _converted(images: Path) -> Path:
    beton = images.with_suffix(".beton")
    if not beton.exists():
        convert_folder(images, beton, WriteOptions(workers=0))
    return beton


def options_of(photos: Photographs, row: str, seed: int, cache: Path) -> list[str]:
    weights = write_backbone(fetch(WEIGHTS, cache), cache)
    own = (
        f"--data.train={photos.train}", f"--model.image_size={photos.size}", f"--model.weights={weights}",
        f"--train.seed={seed}",
    )  # fmt: skip
    return [*TOWER, *own, *ROWS[row]]


def score(photos: Photographs, row: str, seed: int, folder: Path, cache: Path, scores: ScoredRuns) -> None:
    """Train a row, or continue it, and keep which test images it names; the checkpoints are removed."""
    if scores.find(set=photos.name, size=photos.size, row=row, seed=seed) is not None:
        return
    run = folder / "runs" / f"{photos.name.replace(' ', '-')}_{photos.size}px_{row}_seed{seed}"
    console = Console()
    console.rule(run.name)
    options = options_of(photos, row, seed, cache)
    if row == "tuned":
        tuned = tune("photos", options, run, console=console)
        chosen, own = tuned.best.run.folder, {"seconds": tuned.spent, "weights": tuned.best.weights}
    else:
        result = train(load_recipe("photos", [*options, f"--train.run_dir={run}"]), console)
        chosen, own = run, {"seconds": result["seconds"], "weights": result["weights"]["kind"]}
    _, found = predict_file(chosen, photos.test, "cpu")
    for checkpoints in run.rglob("checkpoints"):
        shutil.rmtree(checkpoints)
    scores.add({
        "set": photos.name, "row": row, "seed": seed, "hits": pack(found), "n": len(found.labels_N), "size": photos.size,
        "images": Beton.open(run / "data" / "train.beton").num_samples, **own,
    })  # fmt: skip


def report(scores: ScoredRuns) -> dict[str, Any]:
    """Accuracy of every row, and its paired gains over the rows above it, in percent with standard errors."""
    runs, sets = scores.all(), []
    for name, size in SETS:
        own = [r for r in runs if (r["set"], r["size"]) == (name, size)]
        if own:
            rows = [_row([r for r in own if r["row"] == row], own) for row in ROWS]
            shared = {key: own[0][key] for key in ("set", "n", "size")} | {"same_images": name != CELLS}
            sets.append(shared | {"rows": [row for row in rows if row is not None]})
    return {"sets": sets, "cpus": sorted({r["cpu"] for r in runs})}


def _row(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not runs:
        return None
    hits, name = _hits(runs), runs[0]["row"]
    seconds = [r["seconds"] for r in runs if r["seconds"] is not None]  # None: the training was paused
    gains = {}
    for other in list(ROWS)[: list(ROWS).index(name)]:
        gain = paired_gain(
            hits, _hits([r for r in others if r["row"] == other]), same_images=runs[0]["set"] != CELLS
        )
        if gain is not None:
            gains[other] = asdict(gain) | {"mean": gain.mean}
    return {
        "row": name, "seeds": len(hits), "top1": 100 * float(np.mean([h.mean() for h in hits.values()])), "gains": gains,
        "minutes": float(np.mean(seconds)) / 60 if seconds else None, "weights": sorted({r["weights"] for r in runs}),
    }  # fmt: skip


def _hits(runs: Sequence[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """Seed -> which test images were named correctly, bool (n,)."""
    return {r["seed"]: unpack(r["hits"], r["n"]) for r in runs}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__, "runs/small-data")
    parser.add_argument("--only", nargs="*", help="sets: 'solar cells', or numbers of CIFAR-10's images")
    parser.add_argument("--sizes", nargs="*", type=int, help="sets of these image sizes")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    args = parser.parse_args(arguments)
    scores = ScoredRuns(args.out / "small_data_runs.jsonl")
    if args.command == "report":
        text = json.dumps(report(scores), indent=1) + "\n"
        (args.out / "small_data.json").write_text(text, encoding="utf-8")
        return
    scores.begin(
        {"test_per_class": TEST_PER_CLASS, "cells_per_fold": CELLS_PER_FOLD, "cells_beside": CELLS_BESIDE}
    )
    chosen = [
        (name, size) for name, size in SETS
        if name in (args.only or (name,)) and size in (args.sizes or (size,))
    ]  # fmt: skip
    if not chosen:
        parser.error(
            f"no set has this name and size; the sets: {', '.join(f'{n} ({s} px)' for n, s in SETS)}"
        )
    for seed in args.seeds:
        for name, size in chosen:
            photos = photographs(name, size, seed, args.folder, args.cache, args.data and Path(args.data))
            for row in args.rows:
                if row == "tuned" and name not in TUNED_SETS:
                    continue
                score(photos, row, seed, args.folder, args.cache, scores)


if __name__ == "__main__":
    main()
