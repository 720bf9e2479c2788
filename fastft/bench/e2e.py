"""Training from file to updated weights: how fast, where a step's time goes, what limits, what other GPUs would ask for.

On a CPU without `--recipe`, the recipe is the paper's with the smallest ViT (Ti/16) and a batch of 32. timm trains
everything, so the patch embedding trains here too; what else a given recipe freezes stays frozen.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastft.bench.child import Arm
from fastft.bench.data import Images, Workspace
from fastft.bench.harness import Contender, Rounds, Turn, alternate, measure, per_cpu_second, summary
from fastft.bench.options import Found, Options
from fastft.config import Recipe, load_recipe, recipe_from_dict
from fastft.report.bottleneck import GPU_COUNTS, LOOP_PARTS, NAMES, diagnose, loader_needs
from fastft.report.overheads import CORES_PER_GPU

ALONE = "fastft, loader alone"
STEP_PARTS = ("start", "wait", "forward", "backward", "optimizer", "ema")
WORK_PARTS = ("read", "decode", "augment")  # of the loader, apart: arms of `loader_work`
CPU_IMAGES = 192
TINY = {"width": 192, "layers": 12, "patch_size": 16, "head_width": 64, "image_size": 224}
HERE = "fastft.bench.e2e"


def run(options: Options) -> Found:
    options = _fewer(options)
    beton = options.workspace.beton(options.workspace.sets[0])
    sections = _sections(options, beton)
    recipe = recipe_from_dict("e2e", sections)
    size, batch = recipe.model.image_size, recipe.optim.batch_size
    rounds = alternate(_contenders(options, sections, size, batch), options.rounds, options.threads)
    alone = Contender("fastft", f"{HERE}:loader_work", {"path": str(beton), "size": size})
    work = alternate([alone], options.rounds, threads=1)
    setting = {"model": _model_name(options), "size": size, "batch": batch, "threads": options.threads}
    setting["images"] = options.images
    modelled, words = _other_gpus(options, work)
    diagnosis = diagnose(_loop_seconds(rounds) | _work_seconds(work, rounds))
    if diagnosis:
        head = "End to end on this machine, evaluation and checkpoint left out"
        words = [f"{head}: {diagnosis.sentence} {diagnosis.advice}.", *words]
    trained = _rate_measure("End to end", rounds, setting, ["fastft", "timm"])
    loader = _rate_measure("End to end, the loader alone", rounds, setting, [ALONE])
    split, parts = (
        _split_measure(rounds, setting),
        _work_measure(work, {"size": size, "images": options.images}),
    )
    return Found([trained, loader, split, parts, *modelled], tuple(words))


def _contenders(options: Options, sections: dict[str, Any], size: int, batch: int) -> list[Contender]:
    """The trainer, its loader alone, and timm's loader with timm's step."""
    name, threads = options.workspace.sets[0], options.threads
    loader = {"path": str(options.workspace.beton(name)), "size": size, "batch": batch, "threads": threads}
    theirs = {"sections": sections, "folder": str(options.workspace.jpegs(name)), "threads": threads}
    return options.wanted({
        "fastft": [
            Contender("fastft", f"{HERE}:train_recipe", {"sections": sections}),
            Contender(ALONE, "fastft.bench.loaders:warm", {"maker": "ours", "repeat": 1, **loader}),
        ],
        "timm": [Contender("timm", f"{HERE}:train_timm", theirs)],
    })  # fmt: skip


def _fewer(options: Options) -> Options:
    """On a CPU at most CPU_IMAGES of the images, in a workspace of their own: an epoch is to last seconds."""
    if torch.cuda.is_available() or options.images <= CPU_IMAGES:
        return options
    images = options.workspace.images
    few = Images(images.paths[:: options.images // CPU_IMAGES][:CPU_IMAGES], images.what)
    folder = options.workspace.folder / "e2e"
    folder.mkdir()
    return replace(options, workspace=Workspace(folder, few, options.workspace.given))


def _sections(options: Options, beton: Path) -> dict[str, dict[str, Any]]:
    """The recipe to train: that given, or the paper's defaults, at a size that this machine and these images allow."""
    given: Recipe | None = load_recipe(options.recipe) if options.recipe else None
    sections: dict[str, dict[str, Any]] = json.loads(json.dumps(given.as_dict())) if given else {}
    on_gpu = torch.cuda.is_available()
    if given is None and not on_gpu:
        arch = options.workspace.folder / "tiny.json"
        quick = {"layers": 2, "width": 64} if options.quick else {}
        arch.write_text(json.dumps({"embed_dim": 192, "vision_cfg": TINY | quick}))
        sections["model"] = {"arch": str(arch)}
    batch = given.optim.batch_size if given else 256 if on_gpu else 32
    batch = min(batch, max(1, options.images // 2))
    updates: dict[str, dict[str, Any]] = {
        "data": {"train": str(beton), "val": str(beton), "num_classes": 1000},
        "model": {"weights": "random", "freeze_conv1": False},
        "optim": {"batch_size": batch},
        "schedule": {"epochs": 1, "warmup_epochs": 0, "stop_epoch": None},
        "train": {"micro_batch": 0 if given or on_gpu else batch, "log_every": 1_000_000},
    }
    return {k: sections.get(k, {}) | updates.get(k, {}) for k in sections.keys() | updates.keys()}


def _model_name(options: Options) -> str:
    if options.recipe:
        return options.recipe.stem
    return "ViT-B/16" if torch.cuda.is_available() else "ViT-Ti/16"


# measures


def _rate(turn: Turn) -> float:
    """Images/s of training steps; of the trainer without its evaluation and checkpoint."""
    return turn["count"] / turn.get("training", turn["wall"])


def _rate_measure(name: str, rounds: Rounds, setting: dict[str, Any], only: list[str]) -> dict[str, Any]:
    return measure(name, rounds, "pass", _rate, "images/s", setting, only=only, rename={ALONE: "fastft"})


def _split_measure(rounds: Rounds, setting: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of each part; evaluation and checkpoint, which come once an epoch, are spread over its steps."""
    turns = rounds.turns["fastft"]["pass"]
    parts = [
        summary(NAMES.get(part, part), [1e3 * turn[part] / turn["steps"] for turn in turns])
        for part in LOOP_PARTS
        if any(part in turn for turn in turns)
    ]
    name = "Where a step's time goes"
    return {"name": name, "unit": "ms per step", "better": "lower", "setting": setting, "contenders": parts}


def _work_measure(work: Rounds, setting: dict[str, Any]) -> dict[str, Any]:
    parts = [
        summary(part, [1e3 * turn["cpu"] / turn["count"] for turn in work.turns["fastft"][part]])
        for part in WORK_PARTS
    ]
    name = "What the loader's time goes to"
    return {
        "name": name,
        "unit": "ms of CPU per image",
        "better": "lower",
        "setting": setting,
        "contenders": parts,
    }


def _loop_seconds(rounds: Rounds) -> dict[str, float]:
    """Of a round of training, by part of a step: an epoch is too short here for evaluation to count."""
    turns = rounds.turns["fastft"]["pass"]
    return {part: median(turn[part] for turn in turns) for part in STEP_PARTS if part in turns[0]}


def _work_seconds(work: Rounds, rounds: Rounds) -> dict[str, float]:
    """CPU seconds that the loader's parts take for the images of a round of training."""
    images = rounds.turns["fastft"]["pass"][0]["count"]
    return {
        part: images * median(turn["cpu"] / turn["count"] for turn in work.turns["fastft"][part])
        for part in WORK_PARTS
    }


def _other_gpus(options: Options, work: Rounds) -> tuple[list[dict[str, Any]], list[str]]:
    """Modelled: cores that keep 1, 4 and 8 GPUs busy with `--recipe` or the paper's B/16; and in words."""
    recipe = load_recipe(options.recipe) if options.recipe else recipe_from_dict("the paper's B/16", {})
    arms = work.turns["fastft"]
    rates = {
        "the GPU augments": median(map(per_cpu_second, arms["decode"])),
        "the CPU augments": median(map(per_cpu_second, arms["both"])),
    }
    measures = []
    for where, per_core in rates.items():
        rows = loader_needs(recipe, per_core)
        for k, count in enumerate(GPU_COUNTS):
            cores = [
                summary(r["gpu"], [r["cores"][k]], note=f"{r['images_per_second'][k]:,.0f} images/s")
                for r in rows
            ]
            measures.append({
                "name": f"Cores that feed the GPUs, {where}", "unit": "cores", "better": "lower", "modelled": True,
                "setting": {"GPUs": count, "recipe": recipe.name, "images/s per core": round(per_core)},
                "contenders": cores,
            })  # fmt: skip
    rows = loader_needs(recipe, rates["the GPU augments"])
    return measures, [_verdict(row, recipe) for row in rows]


def _verdict(row: Mapping[str, Any], recipe: Recipe) -> str:
    gpu, rate, cores = row["gpu"], row["images_per_second"][-1], row["cores"][-1]
    there = GPU_COUNTS[-1] * CORES_PER_GPU[gpu]
    head = (
        f"Modelled: {GPU_COUNTS[-1]} {gpu} at the best published MFU take {rate:,.0f} images/s of {recipe.name}, "
        f"for which {cores:.0f} cores like this one's decode; the usual machine has {there:.0f}: "
    )
    if cores <= there:
        return head + "the GPUs limit."
    return head + "the loader limits. Take more cores, or convert with a smaller --max-resolution."


# in the contender's process


def train_recipe(sections: dict[str, dict[str, Any]]) -> dict[str, Arm]:
    """An epoch by the trainer itself, with its own evaluation and checkpoint, in a run directory of its own."""
    from rich.console import Console

    from fastft.report.runs import load_run
    from fastft.train.loop import train

    def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            recipe = recipe_from_dict("e2e", {**sections, "train": {**sections["train"], "run_dir": folder}})
            train(recipe, Console(quiet=True))
            found = load_run(Path(folder))
        steps = found.steps
        seconds = {p: sum(s["seconds"].get(p, 0.0) for s in found.splits) for p in LOOP_PARTS}
        seconds = {part: s for part, s in seconds.items() if s}
        training = sum(seconds.get(part, 0.0) for part in STEP_PARTS)
        return {"count": steps * recipe.optim.batch_size, "steps": steps, "training": training, **seconds}

    return {"pass": run}


def train_timm(sections: dict[str, dict[str, Any]], folder: str, threads: int) -> dict[str, Arm]:
    """The same model and images by timm: its loader and what its train.py does in a step."""
    from fastft.bench.loaders import timm_batches
    from fastft.bench.step import device, timm_train_step
    from fastft.build import recipe_arch
    from fastft.train.precision import choose_precision

    recipe = recipe_from_dict("e2e", sections)
    precision = choose_precision(recipe.train.amp, device())
    dtype = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[precision.dtype]
    step = timm_train_step(recipe_arch(recipe), dtype)
    batches = timm_batches(folder, recipe.model.image_size, recipe.optim.batch_size, threads)

    def run() -> int:
        count = 0
        for images, labels in batches:
            images = images.to(device(), memory_format=torch.channels_last, non_blocking=True)
            step(images, labels.to(device(), non_blocking=True))
            count += len(images)
        return count

    return {"pass": run}


def loader_work(path: str, size: int) -> dict[str, Arm]:
    """The loader's parts one by one on one core, and decoding and augmenting in one go, as it does on a CPU."""
    import numpy as np

    from fastft.augment import parse_policy
    from fastft.augment.cpu import CpuAugment
    from fastft.bench.augment import AUGMENT, our_recipe
    from fastft.bench.data import JpegSet
    from fastft.bench.decode import crops

    jpegs, policy = JpegSet(Path(path)), parse_policy(AUGMENT)
    everything = our_recipe(path, size)["recipe"]
    copy = np.empty_like(jpegs.data)

    def read() -> int:
        copy[:] = jpegs.data
        return len(jpegs)

    augment = CpuAugment(policy, size)
    packed, offsets, plan = packed_images(jpegs, policy, size)

    def augmented() -> int:
        augment(packed, offsets, plan)
        return len(jpegs)

    return {"read": read, "decode": crops(path)["decode"], "augment": augmented, "both": everything}


def packed_images(jpegs: Any, policy: Any, size: int) -> tuple[Any, Any, Any]:
    """The regions of a plan, decoded into one buffer, with their offsets and the plan."""
    import numpy as np

    from beton_tools.jpeg import open_decoders, scratch_bytes
    from fastft.augment import draw_plan, source_regions
    from fastft.bench.kernels import decode_all

    heights, widths = jpegs.shapes
    plan = draw_plan(
        policy, seed=0, epoch=0, sample_ids=np.arange(len(jpegs)), heights=heights, widths=widths, size=size
    )
    regions = source_regions(plan, size).astype(np.int64)
    offsets = np.cumsum([0, *(3 * regions[:, 2] * regions[:, 3])])
    packed = np.empty(int(offsets[-1]), np.uint8)
    largest = int(np.diff(jpegs.ends).max())
    scratch = np.empty(scratch_bytes(heights.max(), widths.max(), largest), np.uint8)
    decode_all(jpegs.data, jpegs.ends, regions, offsets, packed, scratch, open_decoders(1)[0])
    return packed, offsets, plan
