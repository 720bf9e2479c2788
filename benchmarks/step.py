"""Claim: our training step takes no longer than timm's in fp32, gives 1.1 times its images in bf16, and 1.4 times with
the lower half of the blocks frozen.

Setting: forward, label-smoothed loss, backward, AdamW over layer-wise groups, EMA of all trained weights, on random
images in memory. Ours is the trainer's own step (fastft.train.step). timm is what its train.py does with
`vit_base_patch16_clip_quickgelu_224`'s architecture at the same shape, with its optimiser factory and ModelEmaV3.
open_clip is its own image tower under the same head, with PyTorch's AdamW and ModelEmaV3, for it has neither. The patch
embedding is frozen in ours only where the recipe freezes it (`--freeze-conv1`), else everybody trains everything.

Every round times `--steps` steps of each contender in turn; the device is waited for only round a turn. n is the number
of rounds; ratios are taken round by round, and medians shown with the range. MFU is from `count_flops` over the
device's peak: of a GPU its data sheet, of a CPU the best of a few square matrix products.

Run: python benchmarks/step.py [--model B|L|S] [--batch 16] [--dtypes fp32,bf16] [--rounds 9] [--out step.json]
On a GPU the same command; --compile on, off or auto is for ours and, where it is on, for timm too.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import open_clip
import timm.loss
import timm.optim
import torch
from timm.models import VisionTransformer
from timm.utils import ModelEmaV3
from torch import nn

from fastft.build import compile_model
from fastft.model import Arch, Flops, build_classifier, count_flops, load_arch
from fastft.optim import Ema, build_adamw, layer_groups, optimizer_groups, set_lr
from fastft.report.hardware import peak_flops
from fastft.train.distributed import World
from fastft.train.machine import describe
from fastft.train.precision import Precision, choose_precision
from fastft.train.step import Step

CLASSES, SMOOTHING, LR, LAYER_DECAY, WEIGHT_DECAY, EMA_DECAY = 1000, 0.1, 6e-4, 0.6, 0.05, 0.9998
TARGETS = {"fp32": 1.0, "bf16": 1.1, "fp16": 1.1, "half": 1.4}


@dataclass(frozen=True)
class Setting:
    arch: Arch
    batch: int
    precision: Precision
    world: World
    compile: str
    freeze_conv1: bool


@dataclass(frozen=True)
class Contender:
    """`run` makes one step and waits for nothing; `flops` per image."""

    name: str
    run: Callable[[], None]
    flops: Flops


def shape(letter: str) -> Arch:
    """B/16 and L/14 of CLIP; S is B/16 at the width of ViT-S."""
    base = load_arch("ViT-L-14-quickgelu" if letter == "L" else "ViT-B-16-quickgelu")
    return replace(base, width=384, heads=6, mlp_width=1536) if letter == "S" else base


def ours(s: Setting, images: torch.Tensor, labels: torch.Tensor, trainable: int | None) -> Contender:
    torch.manual_seed(0)
    model = build_classifier(s.arch, CLASSES, trainable_layers=trainable, freeze_conv1=s.freeze_conv1)
    model = model.to(s.world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = layer_groups(model, s.arch.layers, LAYER_DECAY, WEIGHT_DECAY)
    optimizer = build_adamw(optimizer_groups(model, groups), betas=(0.9, 0.999), eps=1e-8)
    step = Step(model, optimizer, Ema(model, EMA_DECAY), s.world, s.precision, label_smoothing=SMOOTHING)
    step.connect(s.compile)
    images = images.to(s.precision.dtype)  # as the loader delivers them

    def run() -> None:
        step.split.begin()
        set_lr(optimizer, LR)
        step.micro_batch(images, labels, step=0, last=True)
        step.update()

    frozen = model.visual.frozen_blocks
    name = "fastft" if trainable is None else f"fastft, {frozen} of {s.arch.layers} blocks frozen"
    return Contender(name, run, count_flops(s.arch, CLASSES, frozen_blocks=frozen))


def peer_step(
    model: nn.Module, s: Setting, images: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """timm's train.py: autocast round model and loss, backward, (scaled) step, zero_grad, EMA."""
    ema, loss_fn, scaler = (
        ModelEmaV3(model, decay=EMA_DECAY),
        timm.loss.LabelSmoothingCrossEntropy(SMOOTHING),
        s.precision.scaler(),
    )
    forward = compile_model(model, s.compile, s.world.device)

    def run() -> None:
        with s.precision.autocast():
            loss = loss_fn(forward(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)

    return run


def timm_peer(s: Setting, images: torch.Tensor, labels: torch.Tensor) -> Contender:
    torch.manual_seed(0)
    a = s.arch
    model = VisionTransformer(
        img_size=a.image_size, patch_size=a.patch_size, embed_dim=a.width, depth=a.layers, num_heads=a.heads,
        mlp_ratio=a.mlp_width / a.width, pre_norm=True, norm_layer=nn.LayerNorm, act_layer="quick_gelu",
        num_classes=CLASSES, global_pool="avg", final_norm=True, fc_norm=False,
    )  # fmt: skip
    model = model.to(s.world.device, memory_format=torch.channels_last)
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY
    )
    return Contender("timm", peer_step(model, s, images, labels, optimizer), count_flops(a, CLASSES))


class OpenClipClassifier(nn.Module):
    """open_clip's image tower up to its last block, under our head."""

    def __init__(self, a: Arch):
        super().__init__()
        self.visual = open_clip.transformer.VisionTransformer(
            image_size=a.image_size, patch_size=a.patch_size, width=a.width, layers=a.layers, heads=a.heads,
            mlp_ratio=a.mlp_width / a.width, output_dim=a.embed_dim, act_layer=open_clip.transformer.QuickGELU,
        )  # fmt: skip
        del self.visual.ln_post, self.visual.proj
        self.fc_norm, self.head = nn.LayerNorm(a.width), nn.Linear(a.width, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens_BND = self.visual.transformer(self.visual._embeds(images))
        return self.head(self.fc_norm(tokens_BND[:, 1:]).mean(1))


def open_clip_peer(s: Setting, images: torch.Tensor, labels: torch.Tensor) -> Contender:
    torch.manual_seed(0)
    model = OpenClipClassifier(s.arch).to(s.world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    run = peer_step(model, s, images, labels, optimizer)
    return Contender("open_clip tower", run, count_flops(s.arch, CLASSES))


def measure(
    contenders: list[Contender], device: torch.device, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds per step of every round, by contender; the first, untimed round compiles and warms up."""
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for number in range(rounds + 1):
        for c in contenders:
            wait(device)
            start = time.perf_counter()
            for _ in range(steps):
                c.run()
            wait(device)
            if number > 0:
                seconds[c.name].append((time.perf_counter() - start) / steps)
    return seconds


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(s: Setting, rounds: int, steps: int) -> dict[str, Any]:
    """One measure in the form of docs/bench-schema.md."""
    a = s.arch
    images = torch.randn(s.batch, 3, a.image_size, a.image_size, device=s.world.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (s.batch,), device=s.world.device)
    contenders = [
        ours(s, images, labels, None),
        ours(s, images, labels, a.layers // 2),
        timm_peer(s, images, labels),
        open_clip_peer(s, images, labels),
    ]
    seconds = measure(contenders, s.world.device, rounds, steps)
    peak = peak_flops(s.world.device, s.precision.dtype)
    dtype = str(s.precision.dtype).removeprefix("torch.")
    entries = [entry(c, seconds, s.batch, peak) for c in contenders]
    return {
        "name": "Training step", "unit": "images/s", "better": "higher", "contenders": entries,
        "setting": {
            "width": a.width, "layers": a.layers, "patch": a.patch_size, "image_size": a.image_size, "batch": s.batch,
            "dtype": dtype, "compile": s.compile, "freeze_conv1": s.freeze_conv1, "steps_per_round": steps,
        },
    }  # fmt: skip


def entry(c: Contender, seconds: dict[str, list[float]], batch: int, peak: float | None) -> dict[str, Any]:
    rates = [batch / t for t in seconds[c.name]]
    over_timm = sorted(t / own for t, own in zip(seconds["timm"], seconds[c.name], strict=True))
    median = statistics.median(rates)
    mfu = None if peak is None else median * c.flops.train / peak
    return {
        "name": c.name, "rounds": rates, "median": median, "min": min(rates), "max": max(rates), "mfu": mfu,
        "over_timm": {"median": statistics.median(over_timm), "min": over_timm[0], "max": over_timm[-1]},
        "note": "" if mfu is None else f"MFU {mfu:.1%}",
    }  # fmt: skip


def show(measure: dict[str, Any]) -> None:
    s = measure["setting"]
    print(
        f"\nwidth {s['width']}, {s['layers']} blocks, batch {s['batch']}, {s['dtype']}, compile {s['compile']}"
    )
    print(f"{'contender':<34} {'img/s':>8} {'of peak':>8} {'over timm (range)':>22}")
    for c in measure["contenders"]:
        over, mfu = c["over_timm"], "-" if c["mfu"] is None else f"{c['mfu']:.1%}"
        spread = f"{over['median']:.2f} ({over['min']:.2f}-{over['max']:.2f})"
        print(f"{c['name']:<34} {c['median']:>8.1f} {mfu:>8} {spread:>22}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("S", "B", "L"), default="B")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtypes", default="fp32,bf16", help="of fp32, bf16, fp16 (GPU)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1, help="per turn; take 20 on a GPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--freeze-conv1", action="store_true", help="of ours, as the 224 px recipes do")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--out", type=Path, help="write JSON (docs/bench-schema.md)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    use_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    world = World(0, 1, 0, torch.device("cuda", 0) if use_gpu else torch.device("cpu"))
    measures = []
    for dtype in args.dtypes.split(","):
        precision = choose_precision(dtype, world.device)
        setting = Setting(shape(args.model), args.batch, precision, world, args.compile, args.freeze_conv1)
        measures.append(compare(setting, args.rounds, args.steps))
        show(measures[-1])
    if args.out:
        machine = describe(world, precision) | {
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        }
        report = {
            "machine": machine, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": "python benchmarks/step.py", "notes": [f"targets over timm: {TARGETS}"], "measures": measures,
        }  # fmt: skip
        args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
