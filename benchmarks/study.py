"""Claim: which of the paper's steps, and which ways to save FLOPs, change the accuracy of a fine-tuned ViT, and by how much.

Setting: CIFAR-10 at 56 px and a DINOv2-type ViT-S/14 (not CLIP), bf16 where the CPU has it. Two questions, each row against
the row that it changes, at equal everything else:
(a) the paper's chain: baseline -> smaller lr -> EMA -> layer decay -> half the length -> no mixup and CutMix;
(b) ways to save: stop earlier, freeze lower blocks, drop patches, train on smaller images first, and combinations.
Every row is the last epoch of its run. Learning rates and layer decay are chosen on images of the training file that no run
trains on; the test images are only read for the figures. n = seeds; a seed changes order, augmentation and head, and a
difference is taken seed by seed and image by image.

Run: python benchmarks/study.py run --data CIFAR10 --seeds 0 1 2   (first all rows of one seed)
     python benchmarks/study.py report                             (study.json, docs/study.md and the plots)
A finished training is a line of study_runs.jsonl and is not run again; an interrupted one is continued. One process uses
one core well (OMP_NUM_THREADS=1); another with other --seeds can run beside it.

CIFAR10 is a folder with train.parquet and test.parquet (columns image, label), or train/ and test/ with a folder per class;
default: the environment variable FASTFT_CIFAR10.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scored_runs import ScoredRuns, most_correct, pack
from study_report import write_report

from beton_tools.base.atomic import write_text
from beton_tools.read.format import Beton
from beton_tools.sources import open_source
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.demo_assets import WEIGHTS, fetch
from fastft.bench.demo_backbone import write_backbone
from fastft.cost.work import recipe_work
from fastft.evaluate.evaluation import predict_file
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe, load_recipe
from fastft.run.checkpoint import list_checkpoints
from fastft.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
EPOCHS, LONG = 20, 40  # of the schedule; LONG before the chain halves it
STOP = 12  # as 30 of the paper's 50 epochs
NEAR_END = 18  # the base is converged if its last two epochs change little
WHOLE = 4  # the last epochs, of whole images, of a run that drops patches or begins with small images
# what every run shares, beside the paper's final recipe
FIXED = {
    "model.arch": ROOT / "rcp" / "demo_vit_s14.json", "model.image_size": 56,
    "augment.policy": "rand-m9-n1-mstd0.5-inc1", "augment.scale_min": 0.5, "augment.erase_prob": 0,  # images of 32 px
    "augment.mean": "0.485,0.456,0.406", "augment.std": "0.229,0.224,0.225",  # ImageNet's, as the weights were trained
    "optim.batch_size": BATCH, "ema.reference_batch": BATCH, "train.device": "cpu",
    "train.log_every": 31, "train.checkpoint_steps": 0, "train.checkpoint_minutes": 10, "train.keep_checkpoints": 1,
}  # fmt: skip
# horizon of the EMA as a share of the schedule's steps: 5,000 of 31,250 in the paper's B/16 run
EMA_SHARE = 0.16
WARMUP_SHARE = 0.2  # 10 of 50 epochs
GRID = ((1e-4, 0.6), (3e-4, 0.5), (1e-3, 0.4))  # lr, layer decay
# without layer decay: the baseline, and a smaller one. With 5e-5 a run ends at 19 %, with 1e-4 at chance.
PLAIN_LRS = (3e-5, 1e-5)
MIX = {"augment.mixup": 0.8, "augment.cutmix": 1.0}


@dataclass(frozen=True)
class Row:
    """A training but for its seed. `options` differ from the final recipe; `also_at`: epochs after which it is scored too."""

    name: str
    part: str  # grid, lever, chain or length
    options: Mapping[str, Any]
    epochs: int = EPOCHS
    also_at: tuple[int, ...] = field(default=())
    raw: bool = False  # score the raw weights too


def grid_rows() -> list[Row]:
    return [
        Row(
            f"lr {lr:g}, decay {decay:g}",
            "grid",
            {"optim.lr": lr, "optim.layer_decay": decay},
            also_at=(STOP, NEAR_END),
        )
        for lr, decay in GRID
    ]


def lever_rows(base: Mapping[str, Any]) -> list[Row]:
    """Ways to save FLOPs, against the base: the best row of the grid. Stopping earlier is scored within the base's run."""
    half, last = {"model.trainable_layers": 6}, EPOCHS - WHOLE
    sparse, sizes = {"model.patch_dropout": f"0:0.5,{last}:0"}, {"schedule.sizes": f"0:42,{STOP}:56"}
    stop = {"schedule.stop_epoch": STOP}
    stopped_sparse = {"model.patch_dropout": f"0:0.5,{STOP - WHOLE}:0"}
    stopped_sizes = {"schedule.sizes": f"0:42,{STOP - WHOLE}:56"}
    changes: dict[str, dict[str, Any]] = {
        "freeze 1/2": half,
        "drop 1/2 of the patches": {"model.patch_dropout": 0.5},
        f"42 px, last {EPOCHS - STOP} epochs 56": sizes,
        "freeze 3/4": {"model.trainable_layers": 3},
        f"drop 1/2, last {WHOLE} epochs whole": sparse,
        "stop, freeze 1/2": stop | half,
        f"freeze 1/2, drop 1/2, last {WHOLE} epochs whole": half | sparse,
        f"stop, 42 px, last {WHOLE} epochs 56": stop | stopped_sizes,
        f"stop, freeze 1/2, drop 1/2, last {WHOLE} epochs whole": stop | half | stopped_sparse,
        f"stop, freeze 1/2, 42 px, last {WHOLE} epochs 56": stop | half | stopped_sizes,
        "drop 1/4 of the patches": {"model.patch_dropout": 0.25},
        "freeze 1/4": {"model.trainable_layers": 9},
        f"42 px, last {WHOLE} epochs 56": {"schedule.sizes": f"0:42,{last}:56"},
    }
    return [Row(name, "lever", {**base, **change}) for name, change in changes.items()]


def chain_rows(base: Mapping[str, Any]) -> list[Row]:
    """The steps of the paper's chain that lead to the base, which is its last one."""
    return [
        Row("half length", "chain", {**base, **MIX}),
        Row("layer decay", "chain", {**base, **MIX}, LONG),
    ]


def long_row(base: Mapping[str, Any]) -> Row:
    """The base at twice the length: what is gained is missing from a base that has not converged."""
    return Row("twice the length", "length", base, LONG)


def plain_rows() -> list[Row]:
    """The chain's beginning, without layer decay: the baseline, and one with a smaller learning rate."""
    return [
        Row(f"no decay, lr {lr:g}", "chain", {"optim.lr": lr, "optim.layer_decay": 1, **MIX}, LONG, raw=True)
        for lr in PLAIN_LRS
    ]


class Study:
    """The data and the trainings below one folder, and the scores of those that are finished."""

    def __init__(self, folder: Path, cache: Path, settings: Mapping[str, Any], scores: ScoredRuns) -> None:
        self.folder, self.cache, self.settings, self.scores = folder, cache, settings, scores
        self.console = Console()

    def prepare(self, data: Path) -> None:
        """Write train, tune and test files: the first images of each class in a seeded order, none in two files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "settings.json"
        if settings.exists() and json.loads(settings.read_text(encoding="utf-8")) != self.settings:
            raise SystemExit(f"{self.folder} has other settings ({settings}); use another --folder")
        counts = {split: self.settings[f"{split}_per_class"] for split in ("train", "tune", "test")}
        extract_images(
            find_split(data, "train"), self.folder / "images", {k: counts[k] for k in ("train", "tune")}
        )
        extract_images(find_split(data, "test"), self.folder / "images", {"test": counts["test"]})
        for split in counts:
            if not (self.folder / f"{split}.beton").exists():
                convert_folder(
                    self.folder / "images" / split, self.folder / f"{split}.beton", WriteOptions(workers=0)
                )
        settings.write_text(json.dumps(self.settings), encoding="utf-8")
        self.scores.begin({**self.settings, "epochs": EPOCHS, "stop": STOP, "whole": WHOLE, "batch": BATCH})

    def score(self, row: Row, seed: int) -> dict[str, Any]:
        """The scores of a row with a seed, which is trained, or its training continued, if it has none."""
        found = self.scores.find(row=row.name, seed=seed, options=_json(row.options))
        if found is not None:
            return found
        run = self.folder / "runs" / f"{plain_name(row.name)}_seed{seed}"
        self.console.rule(run.name)
        points = [self._score_after(row, seed, run, stop) for stop in sorted({*row.also_at, _epochs(row)})]
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # 0.4 GB, and no longer needed
        return self.scores.add({
            "row": row.name, "part": row.part, "seed": seed, "options": _json(row.options),
            "images": self._num_test(), "points": points,
        })  # fmt: skip

    def _num_test(self) -> int:
        return Beton.open(self.folder / "test.beton").num_samples

    def _score_after(self, row: Row, seed: int, run: Path, epochs: int) -> dict[str, Any]:
        """Train until so many epochs are done, and score the weights on the tune and test images."""
        partial = run / f"epoch{epochs}.json"
        if partial.exists():
            return json.loads(partial.read_text(encoding="utf-8"))
        recipe = self.recipe(row, seed, run, epochs)
        result = train(recipe, self.console)
        newest = list_checkpoints(run / "checkpoints")[-1]
        scored: dict[str, Any] = {"epochs": epochs, "flops": recipe_work(recipe, recipe_arch(recipe)).train}
        scored["train_seconds"], began = result["seconds"], time.monotonic()
        for weights in ("ema", "raw") if row.raw else ("ema",):
            for split in ("tune", "test"):
                scored[f"{split}_{weights}"] = self._hits(newest, split, weights)
        scored["score_seconds"] = time.monotonic() - began
        write_text(partial, json.dumps(scored))
        return scored

    def _hits(self, checkpoint: Path, split: str, weights: str) -> str:
        """`pack` of a split. weights: "raw" or "ema"."""
        return pack(predict_file(checkpoint, self.folder / f"{split}.beton", "cpu", weights)[1])

    def recipe(self, row: Row, seed: int, run: Path, stop: int) -> Recipe:
        classes = len(list((self.folder / "images" / "train").iterdir()))
        images = classes * self.settings["train_per_class"]
        steps = row.epochs * (images // BATCH)
        weights = write_backbone(fetch(WEIGHTS, self.cache), self.cache)
        values = {
            **FIXED, "train.run_dir": run, "train.seed": seed, "model.weights": weights,
            "data.train": self.folder / "train.beton", "data.train_size": images, "data.num_classes": classes,
            "data.workers": 1,
            "schedule.epochs": row.epochs, "schedule.warmup_epochs": WARMUP_SHARE * row.epochs,
            "ema.decay": 1 - 1 / max(2, EMA_SHARE * steps), **row.options, "schedule.stop_epoch": stop,
        }  # fmt: skip
        return load_recipe("final_b16", [f"--{key}={value}" for key, value in values.items()])


def plan(study: Study, seeds: Sequence[int]) -> Iterator[tuple[Row, int]]:
    """All trainings of these seeds, one seed after another.

    Seed 0 chooses the base, and shows how far it has converged; other seeds train only what was chosen.

    Raises:
        SystemExit: the choice is not finished, and seed 0 is not among the seeds.
    """
    grid = grid_rows()
    if 0 not in seeds and any(study.scores.find(row=row.name, seed=0) is None for row in grid):
        raise SystemExit("lr and layer decay are chosen by trainings with seed 0: run them first")
    yield from ((row, 0) for row in grid if 0 in seeds)
    chosen = most_correct([study.score(row, 0) for row in grid], "ema")["row"]
    base = next(row for row in grid if row.name == chosen)
    rows = [base, *lever_rows(base.options), *chain_rows(base.options), *plain_rows()]
    for seed in seeds:
        yield from ((row, seed) for row in rows)
        if seed == 0:
            yield long_row(base.options), seed


def _epochs(row: Row) -> int:
    return int(row.options.get("schedule.stop_epoch", row.epochs))


def plain_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in name)


def _json(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}


def find_split(data: Path, split: str) -> Path:
    """The split's parquet file or folder."""
    for path in (data / f"{split}.parquet", data / split):
        if path.exists():
            return path
    raise SystemExit(f"{data} has neither {split}.parquet nor {split}/; give CIFAR-10's folder with --data")


def extract_images(source: Path, out: Path, per_class: Mapping[str, int]) -> None:
    """Write `out/<split>/<class>/*.jpg`, so many images of each class per split, unless the folders exist.

    A folder of a split appears under its name when it is complete.
    """
    if all((out / split).exists() for split in per_class):
        return
    partial = out / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    images = open_source(source)
    order = np.random.default_rng(0).permutation(len(images.labels))
    for label, name in enumerate(images.classes):
        own, start = [int(i) for i in order if images.labels[i] == label], 0
        for split, count in per_class.items():
            folder = partial / split / name
            folder.mkdir(parents=True)
            if len(own) < start + count:
                raise SystemExit(f"{source}: class {name} has {len(own)} images, fewer than {start + count}")
            for i in sorted(own[start : start + count]):
                (folder / f"{i:06}.jpg").write_bytes(images.locate(i).read())
            start += count
    for split in per_class:
        shutil.rmtree(out / split, ignore_errors=True)
        (partial / split).rename(out / split)
    partial.rmdir()


def new_parser(description: str | None, folder: str) -> argparse.ArgumentParser:
    """The arguments of a study that runs and reports. folder: default of its data and runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    data = os.environ.get("FASTFT_CIFAR10")
    parser.add_argument("--data", type=Path, default=data, help="default $FASTFT_CIFAR10")
    parser.add_argument("--folder", type=Path, default=Path(folder), help=f"data and runs (default {folder})")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/demo"), help="weights, shared with the demo"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="JSON files, also of the finished runs",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__, "runs/study")
    parser.add_argument("--train-per-class", type=int, default=100)
    parser.add_argument("--tune-per-class", type=int, default=50)
    parser.add_argument("--test-per-class", type=int, default=1000)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="study.md and images/ go here")
    args = parser.parse_args(arguments)
    if args.command == "report":
        write_report(args.out, args.docs)
        return
    if args.data is None:
        parser.error("give CIFAR-10's folder with --data or FASTFT_CIFAR10")
    counts = {
        f"{split}_per_class": getattr(args, f"{split}_per_class") for split in ("train", "tune", "test")
    }
    study = Study(args.folder, args.cache, counts, ScoredRuns(args.out / "study_runs.jsonl"))
    study.prepare(Path(args.data))
    for row, seed in plan(study, args.seeds):
        study.score(row, seed)


if __name__ == "__main__":
    main()
