"""Training from file to updated weights: throughput and bottleneck.

On a CPU without `--recipe`, the recipe is the paper's with the smallest ViT (Ti/16) and a batch of 32. timm trains
every parameter, so the patch embedding is trained here too. Anything else that a given recipe freezes stays frozen.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from fastft.bench.child import Arm
from fastft.bench.contenders.timm import batches
from fastft.bench.dataset import RESIZED, Images, Workspace, evenly
from fastft.bench.harness import Options, Rounds
from fastft.bench.measure import TRAINING, WALL, WALL_RATE, Figure, Plan, Row, Variant, entered
from fastft.bench.step_bench import device, step_flops, timm_train_step
from fastft.bench.task import Entry, Task, Work
from fastft.bench.ways import build
from fastft.cost.bottleneck import LOADER_PARTS, diagnose
from fastft.jobs.run import run_recipe
from fastft.machine.bench_result import MFU, Setting
from fastft.machine.gpus import data_sheet_flops
from fastft.machine.precision import choose_precision
from fastft.model.arch import load_open_clip_arch
from fastft.recipe import recipe_from_dict
from fastft.recipe.constants import STEP_PARTS
from fastft.run.identity import json_value
from fastft.run.run_directory import load_run

CPU_IMAGES, GPU_STEPS, GPU_LOG_EVERY = 192, 60, 10
TINY = {"width": 192, "layers": 12, "patch_size": 16, "head_width": 64, "image_size": 224}


def training(options: Options) -> Iterator[Variant]:
    options = _for_an_epoch(options)
    beton = options.workspace.beton(RESIZED)
    sections = _sections(options, beton)
    recipe = recipe_from_dict("e2e", sections)
    model, optim = recipe.model, recipe.optim
    files = {"folder": str(options.workspace.jpegs(RESIZED))}
    task = Task(Work.TRAIN, files, model.image_size, optim.batch_size, options.threads)
    default = "ViT-B/16" if torch.cuda.is_available() else "ViT-Ti/16"
    setting: Setting = {
        "model": options.recipe.name if options.recipe else default, "size": model.image_size, "batch": optim.batch_size,
        "threads": options.threads, "images": options.images,
    }  # fmt: skip
    yield Variant(entered(options, task, build, __name__, sections=sections), {}, setting, options.threads)


def describe_bottleneck(rounds: Sequence[Rounds]) -> Iterator[str]:
    trials = rounds[0].trials["fastft"]["pass"]
    timed = [part for part in STEP_PARTS + LOADER_PARTS if part in trials[0]]
    if found := diagnose({part: median(trial[part] for trial in trials) for part in timed}):
        yield f"End to end on this machine, without evaluation and checkpoint: {found.sentence} {found.advice}."


def _for_an_epoch(options: Options) -> Options:
    """Return a workspace with the images.

    On a CPU there are at most CPU_IMAGES. On a GPU they are repeated until they make GPU_STEPS steps.
    """
    images = options.workspace.images
    if torch.cuda.is_available() and not options.quick:
        paths = images.paths * -(-GPU_STEPS * _batch(options) // options.images)
    else:
        paths = [images.paths[k] for k in evenly(options.images, CPU_IMAGES)]
    folder = options.workspace.folder / "e2e"
    folder.mkdir()
    workspace = Workspace(folder, Images(paths, images.what))
    return replace(options, workspace=workspace)


def _batch(options: Options) -> int:
    if options.recipe:
        return options.recipe.optim.batch_size
    return 256 if torch.cuda.is_available() else 32


def _sections(options: Options, beton: Path) -> dict[str, dict[str, Any]]:
    """Return the recipe to train: the given one, or the paper's defaults scaled down to this machine and the images."""
    given = options.recipe
    sections: dict[str, dict[str, Any]] = json_value(given.as_dict()) if given else {}
    on_gpu = torch.cuda.is_available()
    if given is None and not on_gpu:
        arch = options.workspace.folder / "tiny.json"
        quick = {"layers": 2, "width": 64} if options.quick else {}
        arch.write_text(json.dumps({"embed_dim": 192, "vision_cfg": TINY | quick}))
        sections["model"] = {"arch": str(arch)}
    batch = min(_batch(options), max(2, options.images // 4 * 2))  # even, for mixup
    log_every = GPU_LOG_EVERY if on_gpu else 1  # the first interval is not counted
    updates: dict[str, dict[str, Any]] = {
        "data": {"train": str(beton), "val": str(beton), "num_classes": 1000},
        "model": {"weights": "random", "freeze_conv1": False},
        "optim": {"batch_size": batch},
        "schedule": {"epochs": 1, "warmup_epochs": 0, "stop_epoch": None},
        "train": {"micro_batch": 0 if given or on_gpu else batch, "log_every": log_every},
    }
    return {k: sections.get(k, {}) | updates.get(k, {}) for k in sections.keys() | updates.keys()}


PLANS = (
    Plan("e2e.train", 240, [Figure(
        "e2e.train", "Training, file to updated weights", WALL_RATE, WALL, chapter=TRAINING,
        about="One epoch with the trainer. It is too short for an evaluation or a checkpoint, so neither is included. Each of "
        "fastft's rounds lists its seconds by part. waiting: share of the time that the step waited for data. mfu, on a GPU: "
        "share of its peak.",
        keep=("waiting", MFU, *STEP_PARTS, *LOADER_PARTS), rows=[Row("training, file to updated weights, CPU", "timm")],
    )], training, notes=describe_bottleneck),
)  # fmt: skip

# in the contender's process ------------------------------------------------------------------------------------------


def train_recipe(task: Task, sections: dict[str, dict[str, Any]]) -> dict[str, Arm]:
    """Return an arm that trains one epoch with the trainer, in a temporary run directory.

    The epoch includes evaluation and checkpoint.
    """
    asked = recipe_from_dict("e2e", sections)
    peak = data_sheet_flops(device(), choose_precision(asked.train.amp, device()).dtype)
    flops = step_flops(load_open_clip_arch(asked.model.arch).at(asked.model.image_size))

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe_from_dict("e2e", {**sections, "train": {**sections["train"], "run_dir": folder}})
            run_recipe(recipe.asked(), Console(quiet=True))
            trained = load_run(Path(folder))
        # the first steps of a run allocate memory, and on a GPU they also compile and load kernels
        skipped = trained.intervals[:-1][:1]
        intervals = trained.intervals[len(skipped) :]
        steps = trained.steps - sum(int(i.step) for i in skipped)
        seconds = {p: sum(i.split.get(p, 0.0) for i in intervals) for p in STEP_PARTS + LOADER_PARTS}
        seconds = {part: s for part, s in seconds.items() if s}
        training = sum(seconds.get(part, 0.0) for part in STEP_PARTS)
        count = steps * recipe.optim.batch_size
        figures = {"count": count, "wall": training, "waiting": seconds.get("wait", 0.0) / training}
        if peak:
            figures["mfu"] = count / training * flops / peak
        return figures | seconds

    return {"pass": run}


ENTRIES = (Entry("fastft", "fastft", train_recipe, {Work.TRAIN: ()}),)


def train_timm(task: Task, sections: dict[str, dict[str, Any]]) -> dict[str, Arm]:
    """Train the same model on the same images with timm's loader and the step from its train.py."""
    recipe = recipe_from_dict("e2e", sections)
    arch = load_open_clip_arch(recipe.model.arch).at(recipe.model.image_size)
    step = timm_train_step(arch, recipe.train.amp)
    policy, erase = recipe.augment.policy, recipe.augment.erase_prob
    loader = batches(task.files["folder"], task.size, task.batch, task.threads, policy=policy, erase=erase)

    def run() -> int:
        count = 0
        for images, labels in loader:
            images = images.to(device(), memory_format=torch.channels_last, non_blocking=True)
            step(images, labels.to(device(), non_blocking=True))
            count += len(images)
        return count

    return {"pass": run}
