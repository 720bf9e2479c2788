"""Claim: what the paper's steps did for CLIP on ImageNet, measured in its own layout on a small pretrained ViT.

Setting: a DINOv2-type ViT-S/14 (not CLIP) at 84 px on photographs of solar cells, 4 classes, 190 training and 120
validation images of each; batch 16, bf16 where the CPU has it. The steps are the paper's, in its order: baseline with lr
1e-3, mixup 0.8, cutmix 1.0, no EMA, no layer decay (Table 1) -> smaller lr (2) -> EMA (3) -> layer decay (4, 5) -> half
the length, weaker and no mixing (6). n = number of seeds; a seed changes order, augmentation and head. Every figure is the
last epoch's top-1: no epoch is chosen on the validation images. EMA is kept in every run and is read or not.

Standard errors are over seeds. The page, docs/study.md, is made of benchmarks/results/study.json.

Run: python benchmarks/study.py --seeds 3        (continues where it was stopped; a good hour on two cores)
"""

import argparse
import itertools
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.stats import t

from beton_tools.convert import convert_folder
from beton_tools.writer import WriteOptions
from fastft.config import load_recipe
from fastft.demo.assets import IMAGES, IMAGES_LICENCE, WEIGHTS, extract_cells, fetch
from fastft.demo.backbone import write_backbone
from fastft.train.loop import train

RECIPE = "rcp/final_b16.yaml"
LRS = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
DECAYS, DECAY_LRS = (0.3, 0.45), (1e-3, 3e-3)
MIXES = ((0.8, 1.0), (0.2, 0.25), (0.0, 0.0))
PAPER = {  # top-1 after each step: Tables 1, 2, 3, 5 and 6
    "baseline": 82.3, "small lr": 84.3, "+ EMA": 84.6, "+ layer decay": 85.3, "half length": 85.3, "- mixup, cutmix": 85.7,
}  # fmt: skip
CAVEAT = (
    "It shows directions, not values: lr, decay and length are scaled to a run of some hundred steps, and the ViT is not "
    "CLIP. The best cells of Tables 2, 4 and 5 are what later steps go on from; they are chosen on the same images, so "
    "their own figures are a little too good, the differences within Tables 3 and 6 are not. Differences are taken seed by "
    "seed, and count from the 95 % point of Student's t."
)
# what every run shares, beside the paper's final recipe
FIXED = {
    "data.num_classes": 4, "data.train_size": 760, "model.image_size": 84, "optim.batch_size": 16,
    "augment.scale_min": 0.35,  # defects are small: a crop of 8 % of the cell often shows none
    "augment.mean": "0.485,0.456,0.406", "augment.std": "0.229,0.224,0.225",  # ImageNet's, as the weights were trained
    "ema.decay": 0.95, "ema.reference_batch": 16,  # a horizon of 20 steps
    "train.log_every": 47, "train.checkpoint_minutes": 5, "train.checkpoint_steps": 0, "train.keep_checkpoints": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One training but for its seed."""

    lr: float
    decay: float = 1.0
    mix: tuple[float, float] = MIXES[0]
    short: bool = False

    @property
    def name(self) -> str:
        length = "short" if self.short else "long"
        return f"lr{self.lr:g}_decay{self.decay:g}_mix{self.mix[0]:g}-{self.mix[1]:g}_{length}"


@dataclass(frozen=True)
class Figure:
    """Top-1 in percent over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def error(self) -> float:
        return (
            statistics.stdev(self.values) / len(self.values) ** 0.5 if len(self.values) > 1 else float("nan")
        )

    def minus(self, other: "Figure") -> "Figure":
        return Figure(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.error:.1f}"


class Study:
    """Trains what is asked for, once, and remembers it in its run directory."""

    def __init__(self, folder: Path, cache: Path, epochs: int, seeds: int, per_class: dict[str, int]):
        self.folder, self.epochs, self.seeds = folder, epochs, seeds
        self.console = Console()
        arch, weights = write_backbone(fetch(WEIGHTS, cache), cache)
        images = folder / "images"
        if not images.exists():
            extract_cells(fetch(IMAGES, cache), images, per_class)
        self.common = [f"--model.arch={arch}", f"--model.weights={weights}"]
        for split in per_class:
            file = folder / f"{split}.beton"
            if not file.exists():
                convert_folder(images / split, file, WriteOptions())
            self.common.append(f"--data.{split}={file}")

    def figures(self, row: Row) -> dict[str, Figure]:
        """`raw` and `ema`, over seeds."""
        ends = [self._result(row, seed)["last"] for seed in range(self.seeds)]
        return {kind: Figure(tuple(end[kind]["top1"] for end in ends)) for kind in ("raw", "ema")}

    def _result(self, row: Row, seed: int) -> dict[str, Any]:
        run = self.folder / "runs" / f"{row.name}_seed{seed}"
        done = run / "result.json"
        if not done.exists():
            self.console.rule(run.name)
            train(load_recipe(RECIPE, self._overrides(row, seed, run)), self.console)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # 0.4 GB each, and no longer needed
        return json.loads(done.read_text(encoding="utf-8"))

    def _overrides(self, row: Row, seed: int, run: Path) -> list[str]:
        epochs = max(1, self.epochs // 2) if row.short else self.epochs
        values = FIXED | {
            "train.run_dir": run, "train.seed": seed, "train.eval_every": epochs, "schedule.epochs": epochs,
            "schedule.warmup_epochs": epochs / 5,  # as 20 of 100 and 10 of 50
            "optim.lr": row.lr, "optim.layer_decay": row.decay, "augment.mixup": row.mix[0], "augment.cutmix": row.mix[1],
        }  # fmt: skip
        return [*self.common, *(f"--{key}={value}" for key, value in values.items())]


def run_study(study: Study) -> dict[str, Any]:
    """All tables, in the paper's order."""
    by_lr = {lr: study.figures(Row(lr)) for lr in LRS}
    small = max(LRS[1:], key=lambda lr: by_lr[lr]["raw"].mean)
    grid = {(lr, decay): study.figures(Row(lr, decay))["ema"] for lr in DECAY_LRS for decay in DECAYS}
    lr, decay = max(grid, key=lambda cell: grid[cell].mean)
    by_mix = {mix: study.figures(Row(lr, decay, mix, short=True))["ema"] for mix in MIXES}
    steps = {
        "baseline": by_lr[LRS[0]]["raw"],
        "small lr": by_lr[small]["raw"],
        "+ EMA": by_lr[small]["ema"],
        "+ layer decay": grid[lr, decay],
        "half length": by_mix[MIXES[0]],
        "- mixup, cutmix": by_mix[MIXES[-1]],
    }
    return {
        "by_lr": by_lr,
        "grid": grid,
        "by_mix": by_mix,
        "steps": steps,
        "chosen": {"small_lr": small, "lr": lr, "decay": decay},
    }


def verdicts(steps: dict[str, Figure]) -> list[dict[str, Any]]:
    """Every step's gain beside the paper's, and whether the seeds tell them apart."""
    names = list(steps)
    lines = []
    for before, after in itertools.pairwise(names):
        gain, paper = steps[after].minus(steps[before]), PAPER[after] - PAPER[before]
        lines.append(
            {
                "step": after,
                "gain": gain.mean,
                "error": gain.error,
                "paper": paper,
                "verdict": verdict(gain, paper),
            }
        )
    return lines


def verdict(gain: Figure, paper: float) -> str:
    freedom = len(gain.values) - 1
    if freedom < 1 or not abs(gain.mean) > t.ppf(0.975, freedom) * gain.error:
        return "not told apart from no change"
    if abs(paper) < 0.05:  # a tenth of a point is the paper's resolution
        return "the paper saw no change"
    return "agrees" if gain.mean * paper > 0 else "disagrees"


def markdown(found: dict[str, Any], setting: str) -> str:
    """The page: what was done, the paper's tables in its layout, and each step beside the paper's."""
    by_lr, grid, by_mix, steps = found["by_lr"], found["grid"], found["by_mix"], found["steps"]
    chosen = found["chosen"]
    lrs, (cell_lrs, decays) = list(by_lr), (list(dict.fromkeys(k)) for k in zip(*grid, strict=True))
    best = f"lr {chosen['lr']:g}, decay {chosen['decay']:g}"
    lines = [["baseline", str(steps["baseline"]), "", "", ""]]
    for v in verdicts(steps):
        gain = f"{v['gain']:+.1f} ± {v['error']:.1f}"
        lines.append([v["step"], str(steps[v["step"]]), gain, f"{v['paper']:+.1f}", v["verdict"]])
    raw_and_ema = [
        [name, *(str(by_lr[lr][kind]) for lr in lrs)] for kind, name in (("raw", "w/o EMA"), ("ema", "w EMA"))
    ]
    with_decay = [[f"lr {lr:g}", *(str(grid[lr, d]) for d in decays)] for lr in cell_lrs]
    parts = [
        f"# The paper's steps on a small ViT\n\n{setting}",
        CAVEAT,
        "## Step by step\n\n" + table(["step", "top-1 %", "gain", "paper's gain", ""], lines),
        f"## Table 1: baseline\n\nlr {lrs[0]:g}, mixup 0.8, cutmix 1.0, no EMA, no layer decay: "
        f"**{steps['baseline']}** (paper: {PAPER['baseline']}).",
        "## Tables 2 and 3: learning rate, EMA\n\n" + table(["", *(f"lr {lr:g}" for lr in lrs)], raw_and_ema),
        "## Tables 4 and 5: layer-wise decay, with EMA\n\n"
        + table(["decay", *(f"{d:g}" for d in decays)], with_decay),
        f"## Table 6: mixing, half the length, {best}, with EMA\n\n"
        + table(["mixup/cutmix", *(f"{m}/{c}" for m, c in by_mix)], [["", *map(str, by_mix.values())]]),
    ]
    return "\n\n".join(parts) + "\n"


def plain(found: dict[str, Any], setting: str) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "setting": setting, "chosen": found["chosen"], "verdicts": verdicts(found["steps"]), "paper": PAPER,
        "steps": {name: asdict(figure) for name, figure in found["steps"].items()},
        "by_lr": {f"{lr:g}": {k: asdict(f) for k, f in kinds.items()} for lr, kinds in found["by_lr"].items()},
        "by_lr_and_decay": {f"{lr:g}/{d:g}": asdict(f) for (lr, d), f in found["grid"].items()},
        "by_mix": {f"{m}/{c}": asdict(f) for (m, c), f in found["by_mix"].items()},
    }  # fmt: skip


def restored(values: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `plain`."""

    def pair(text: str) -> tuple[float, float]:
        a, b = text.split("/")
        return float(a), float(b)

    def figure(entry: dict[str, Any]) -> Figure:
        return Figure(tuple(entry["values"]))

    return {
        "by_lr": {
            float(lr): {k: figure(f) for k, f in kinds.items()} for lr, kinds in values["by_lr"].items()
        },
        "grid": {pair(k): figure(f) for k, f in values["by_lr_and_decay"].items()},
        "by_mix": {pair(k): figure(f) for k, f in values["by_mix"].items()},
        "steps": {name: figure(f) for name, f in values["steps"].items()},
        "chosen": values["chosen"],
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of the long runs; Table 6 trains half as many")
    parser.add_argument("--train-per-class", type=int, default=190)
    parser.add_argument("--val-per-class", type=int, default=120)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/study"), help="images and runs (default runs/study)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/demo"), help="downloads, shared with the demo"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="study.json goes here")
    parser.add_argument("--page", type=Path, default=Path("docs/study.md"), help="default docs/study.md")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: there is no standard error of one run")
    per_class = {"val": args.val_per_class, "train": args.train_per_class}
    study = Study(args.folder, args.cache, args.epochs, args.seeds, per_class)
    found = run_study(study)
    setting = (
        f"DINOv2-type ViT-S/14 at 84 px, 4 classes of solar cells, {args.train_per_class} training and "
        f"{args.val_per_class} validation images per class, {args.epochs} epochs, n = {args.seeds} seeds, mean ± standard "
        f"error over seeds, last epoch. {IMAGES_LICENCE}. Written by `benchmarks/study.py`."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(found, setting), indent=1) + "\n"
    (args.out / "study.json").write_text(text, encoding="utf-8")
    args.page.write_text(markdown(found, setting), encoding="utf-8")
    print(f"written: {args.out / 'study.json'}, {args.page}")


if __name__ == "__main__":
    main()
