"""Claim: which of the paper's steps, and which ways to save FLOPs, change the accuracy of a fine-tuned ViT, and by how much.

Setting: CIFAR-10 at 56 px and a DINOv2-type ViT-S/14 (not CLIP), bf16 where the CPU has it. Each row is compared with the row
that it changes, at equal everything else: (a) the paper's chain, baseline -> smaller lr -> EMA -> layer decay -> half the length
-> no mixup and CutMix; (b) ways to save: stop earlier, freeze lower blocks, drop patches, train on smaller images first. Every
row is the last epoch of its run. n = seeds; a seed changes order, augmentation and head; differences are paired by
seed and image.

Run: python benchmarks/study.py --data CIFAR10 --seeds 0 1 2     (7 hours of one core; OMP_NUM_THREADS=1)
     python benchmarks/study_report.py                           (docs/study.md and its pictures)
A finished training is a line of benchmarks/results/study_runs.jsonl and is not run again; an interrupted one is continued.
CIFAR10 is a folder with train.parquet and test.parquet (columns image, label), or train/ and test/ with a folder per class.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from beton_tools.sources import open_source
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.demo_assets import WEIGHTS, fetch
from fastft.bench.demo_backbone import write_backbone
from fastft.cost.work import recipe_work
from fastft.evaluate.evaluation import predict_file
from fastft.machine.facts import cpu_name
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, load_recipe
from fastft.run.checkpoint import list_checkpoints
from fastft.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "benchmarks" / "results" / "study_runs.jsonl"
CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS, BATCH = 10, 100, 1000, 32
EPOCHS, LONG = 20, 40  # of the schedule; LONG before the chain halves it
STOP, NEAR_END = 12, 18  # the base is scored here too: STOP is as 30 of the paper's 50 epochs
WARMUP_SHARE = 0.2  # 10 of 50 epochs
EMA_SHARE = (
    0.16  # horizon of the EMA as a share of the schedule's steps: 5,000 of 31,250 in the paper's B/16 run
)
# what every run shares, beside the paper's final recipe
FIXED = {
    "model.arch": ROOT / "rcp" / "demo_vit_s14.json", "model.image_size": 56,
    "augment.policy": "rand-m9-n1-mstd0.5-inc1", "augment.scale_min": 0.5, "augment.erase_prob": 0,  # images of 32 px
    "augment.mean": "0.485,0.456,0.406", "augment.std": "0.229,0.224,0.225",  # ImageNet's, as the weights were trained
    "optim.batch_size": BATCH, "ema.reference_batch": BATCH, "train.device": "cpu", "data.workers": 1,
    "train.log_every": 31, "train.checkpoint_steps": 0, "train.checkpoint_minutes": 10, "train.keep_checkpoints": 1,
}  # fmt: skip
# Chosen by a training with seed 0, on 50 other images per class of the training file, among (1e-4, 0.6) and (1e-3, 0.4) too. The
# scores of that choice are in study_runs.jsonl, under part "grid", with `tune_` in their names.
BASE_ROW, BASE = "lr 0.0003, decay 0.5", {"optim.lr": 3e-4, "optim.layer_decay": 0.5}
MIX = {"augment.mixup": 0.8, "augment.cutmix": 1.0}
FREEZE, STOPPED = {"model.trainable_layers": 6}, {"schedule.stop_epoch": STOP}
# ways to save, as changes of the base
LEVERS: dict[str, dict[str, Any]] = {
    "freeze 1/2": FREEZE,
    "drop 1/2 of the patches": {"model.patch_dropout": 0.5},
    "42 px, last 8 epochs 56": {"schedule.sizes": "0:42,12:56"},
    "freeze 3/4": {"model.trainable_layers": 3},
    "drop 1/2, last 4 epochs whole": {"model.patch_dropout": "0:0.5,16:0"},
    "stop, freeze 1/2": STOPPED | FREEZE,
    "freeze 1/2, drop 1/2, last 4 epochs whole": FREEZE | {"model.patch_dropout": "0:0.5,16:0"},
    "stop, 42 px, last 4 epochs 56": STOPPED | {"schedule.sizes": "0:42,8:56"},
    "stop, freeze 1/2, drop 1/2, last 4 epochs whole": STOPPED | FREEZE | {"model.patch_dropout": "0:0.5,8:0"},
    "stop, freeze 1/2, 42 px, last 4 epochs 56": STOPPED | FREEZE | {"schedule.sizes": "0:42,8:56"},
    "drop 1/4 of the patches": {"model.patch_dropout": 0.25},
    "freeze 1/4": {"model.trainable_layers": 9},
    "42 px, last 4 epochs 56": {"schedule.sizes": "0:42,16:56"},
}  # fmt: skip
# without layer decay a learning rate of 5e-5 ends at 19 %, 1e-4 at chance
BASELINE, SMALLER = "no decay, lr 3e-05", "no decay, lr 1e-05"
# row -> epochs of the schedule, options
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    BASE_ROW: (EPOCHS, BASE),
    **{name: (EPOCHS, BASE | change) for name, change in LEVERS.items()},
    "half length": (EPOCHS, BASE | MIX),
    "layer decay": (LONG, BASE | MIX),
    BASELINE: (LONG, {"optim.lr": 3e-5, "optim.layer_decay": 1} | MIX),
    SMALLER: (LONG, {"optim.lr": 1e-5, "optim.layer_decay": 1} | MIX),
    "twice the length": (LONG, BASE),  # with seed 0 only: how far the base has converged
}


def read_runs(path: Path = RUNS) -> list[dict[str, Any]]:
    """Scores of the finished trainings; the file's first line is the setting that they share."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def run_folder(row: str, seed: int, folder: Path) -> Path:
    return folder / "runs" / f"{row.replace('/', '_')} seed{seed}"


def recipe_of(row: str, seed: int, folder: Path, weights: Path, stop: int | None = None) -> Recipe:
    """stop: the epoch after which training ends; default the row's own."""
    epochs, options = ROWS[row]
    images = CLASSES * TRAIN_PER_CLASS
    values = {
        **FIXED, "train.run_dir": run_folder(row, seed, folder), "train.seed": seed,
        "model.weights": weights, "data.train": folder / "train.beton", "data.train_size": images,
        "data.num_classes": CLASSES, "schedule.epochs": epochs, "schedule.warmup_epochs": WARMUP_SHARE * epochs,
        "ema.decay": 1 - 1 / (EMA_SHARE * epochs * (images // BATCH)), **options,
    } | ({} if stop is None else {"schedule.stop_epoch": stop})  # fmt: skip
    return load_recipe("final_b16", [f"--{key}={value}" for key, value in values.items()])


def train_row(row: str, seed: int, folder: Path, weights: Path) -> Iterator[dict[str, Any]]:
    """Train, or continue, and yield the scores after every epoch that is scored."""
    for stop in (STOP, NEAR_END, None) if row == BASE_ROW else (None,):
        recipe = recipe_of(row, seed, folder, weights, stop)
        seconds = train(recipe, Console())["seconds"]
        newest, began = list_checkpoints(run_folder(row, seed, folder) / "checkpoints")[-1], time.monotonic()
        hits = {
            f"test_{kind}": pack(predict_file(newest, folder / "test.beton", "cpu", kind)[1].right_N)
            for kind in ("ema", "raw")
        }
        yield {
            "epochs": stop or ROWS[row][1].get("schedule.stop_epoch", ROWS[row][0]), "train_seconds": seconds,
            "flops": recipe_work(recipe, recipe_arch(recipe)).train, **hits, "score_seconds": time.monotonic() - began,
        }  # fmt: skip


def pack(right_N: np.ndarray) -> str:
    """One bit per image, 1 if it is classified correctly, as hexadecimal text."""
    return np.packbits(right_N).tobytes().hex()


def extract_images(source: Path, out: Path, per_class: int) -> Path:
    """Write `out/<class>/*.jpg`, so many images of each class in a seeded order, and `out.beton`, unless it exists."""
    if not out.with_suffix(".beton").exists():
        images = open_source(source)
        order = np.random.default_rng(0).permutation(len(images.labels))
        for label, name in enumerate(images.classes):
            (out / name).mkdir(parents=True, exist_ok=True)
            own = [int(i) for i in order if images.labels[i] == label][:per_class]
            if len(own) < per_class:
                raise SystemExit(f"{source}: class {name} has {len(own)} images, fewer than {per_class}")
            for i in own:
                (out / name / f"{i:06}.jpg").write_bytes(images.locate(i).read())
        convert_folder(out, out.with_suffix(".beton"), WriteOptions(workers=0))
    return out.with_suffix(".beton")


def find_split(data: Path, split: str) -> Path:
    """The split's parquet file or folder."""
    for path in (data / f"{split}.parquet", data / split):
        if path.exists():
            return path
    raise SystemExit(f"{data} has neither {split}.parquet nor {split}/; give CIFAR-10's folder with --data")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10's folder")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="data and runs")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/demo"), help="weights, shared with the demo"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--out", type=Path, default=RUNS, help="file of scores that is continued")
    args = parser.parse_args()
    for split, count in (("train", TRAIN_PER_CLASS), ("test", TEST_PER_CLASS)):
        extract_images(find_split(args.data, split), args.folder / split, count)
    weights = write_backbone(fetch(WEIGHTS, args.cache), args.cache)
    for seed in args.seeds:
        for row in ROWS:
            if (row == "twice the length" and seed) or _finished(row, seed, args.out):
                continue
            points = list(train_row(row, seed, args.folder, weights))
            shutil.rmtree(run_folder(row, seed, args.folder) / "checkpoints")
            scores = {
                "row": row, "seed": seed, "options": ROWS[row][1], "images": CLASSES * TEST_PER_CLASS,
                "points": points, "cpu": cpu_name(),
            }  # fmt: skip
            _append(scores, args.out)


def _finished(row: str, seed: int, path: Path) -> bool:
    wanted: Mapping[str, Any] = {"row": row, "seed": seed, "options": ROWS[row][1]}
    return path.exists() and any(wanted.items() <= run.items() for run in read_runs(path))


def _append(scores: Mapping[str, Any], path: Path) -> None:
    if not path.exists():
        setting = {"train_per_class": TRAIN_PER_CLASS, "test_per_class": TEST_PER_CLASS, "epochs": EPOCHS}
        path.write_text(json.dumps(setting) + "\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
