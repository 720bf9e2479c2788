"""The training step: forward, label-smoothed loss, backward, AdamW over layer-wise groups, EMA.

The images are random and in memory. Ours is the trainer's own step (fastft.train.step). timm's does what its train.py
does with the same shape, timm's optimiser factory and ModelEmaV3. MFU is computed from `count_flops` and the GPU's peak
in its data sheet. A CPU has no MFU, and neither has a GPU whose peak is not known.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fastft.bench.child import Arm
from fastft.bench.harness import Options
from fastft.bench.measure import TRAINING, WALL, WALL_RATE, Figure, Plan, Row, Variant, enter_as, entered
from fastft.bench.task import Entry, Task, Work
from fastft.bench.ways import build
from fastft.machine.bench_result import MFU, SHARE, Setting
from fastft.machine.distributed import World
from fastft.machine.gpus import data_sheet_flops
from fastft.machine.precision import Precision, choose_precision, cpu_has_bf16
from fastft.model import Arch, build_classifier, count_flops
from fastft.model.arch import load_open_clip_arch
from fastft.model.attention import BF16_NATIVE
from fastft.model.recipe_model import can_compile
from fastft.optim import Ema, build_adamw, layer_groups, optimizer_groups, set_lr
from fastft.recipe import recipe_from_dict
from fastft.train.step import Step, StepChoice
from fastft.train.step_choice import choose_step

CLASSES, SMOOTHING, LR, LAYER_DECAY, WEIGHT_DECAY, EMA_DECAY = 1000, 0.1, 6e-4, 0.6, 0.05, 0.9998
ARCHS = {"B": "ViT-B-16-quickgelu", "L": "ViT-L-14-quickgelu"}


@dataclass(frozen=True)
class Case:
    """A tower as in `shape`, and how it is measured."""

    letter: str
    size: int
    dtype: str
    batch: int
    steps: int

    @property
    def model(self) -> str:
        return f"ViT-{self.letter}/{14 if self.letter == 'L' else 16}"


def cases(quick: bool) -> list[Case]:
    """Return B/16 in fp32 and half precision, and on a GPU also L/14, and B/16 at 384 px.

    Each takes less than 5 minutes on a V100. Older GPUs and CPUs only emulate bf16: those GPUs take fp16, and those CPUs
    fp32 alone, since a step in bf16 would take minutes.
    """
    on_gpu, full = device().type == "cuda", "fp32"
    half = "fp16" if on_gpu and choose_precision("auto", device()).dtype == torch.float16 else "bf16"
    if not on_gpu:
        letter, batch = ("T", 2) if quick else ("B", 8)
        return [Case(letter, 224, dtype, batch, 1) for dtype in ((full, half) if cpu_has_bf16() else (full,))]
    if quick:
        return [Case("T", 224, dtype, 2, 1) for dtype in (full, half)]
    return [
        Case("B", 224, full, 64, 4), Case("B", 224, half, 128, 10), Case("L", 224, half, 32, 5), Case("B", 384, half, 32, 5)
    ]  # fmt: skip


def training(options: Options) -> Iterator[Variant]:
    """Train with all parameters and with the upper half of the blocks, per case."""
    where = torch.cuda.get_device_name() if device().type == "cuda" else f"CPU, {options.threads} threads"
    for one in cases(options.quick):
        task = Task(Work.STEP, {}, one.size, one.batch, options.threads)
        given: dict[str, Any] = {"letter": one.letter, "dtype": one.dtype, "steps": one.steps}
        whole, half = (entered(options, task, build, __name__, half=frozen, **given) for frozen in (False, True))
        setting: Setting = {"model": one.model, "size": one.size, "dtype": one.dtype, "batch": one.batch}
        chosen = [*whole, *(enter_as(c, f"{c.name}{HALF}") for c in half)]
        yield Variant(chosen, setting, {"device": where}, options.threads)


HALF = ", half frozen"
ABOUT = "Forward, label-smoothed loss, backward, AdamW, EMA, on random images in memory."


def _figure(key: str, title: str, unit: str, value: str, rows: Sequence[Row] = (), **more: Any) -> Figure:
    return Figure(key, title, unit, value, ABOUT, arms={"step": {}}, chapter=TRAINING, rows=rows, **more)


PLANS = (
    Plan("step.train", 400, [
        _figure(
            "step.train", "Training step", WALL_RATE, WALL, keep=(MFU,), names={name: name for name in ("fastft", "timm")},
            rows=[
                Row("training step, B/16, fp32, CPU", "timm", {"dtype": "fp32"}),
                Row("training step, B/16, bf16, CPU", "timm", {"dtype": "bf16"}),
            ],
        ),
        _figure(
            "step.frozen", "Training step, lower half frozen", WALL_RATE, WALL, keep=(MFU,),
            names={f"{name}{HALF}": name for name in ("fastft", "timm")},
            rows=[Row("the same, lower half frozen", "timm", {"dtype": "bf16"})],
        ),
        _figure("step.mfu", "Training step, MFU", SHARE, MFU),
    ], training),
)  # fmt: skip

# in the contender's process ------------------------------------------------------------------------------------------


def shape(letter: str, size: int = 224) -> Arch:
    """Return CLIP's B/16 or L/14 at `size` pixels. T is B/16 at ViT-Ti's width."""
    base = load_open_clip_arch(ARCHS.get(letter, ARCHS["B"]))
    width = 192 if letter == "T" else base.width
    return replace(base, width=width, heads=width // 64, mlp_width=4 * width).at(size)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_batch(arch: Arch, batch: int, on: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 images and labels on `on`, by default `device()`."""
    images = torch.randn(batch, 3, arch.image_size, arch.image_size, device=on or device())
    labels = torch.randint(CLASSES, (batch,), device=images.device)
    return images.to(memory_format=torch.channels_last), labels


def arm(
    step: Callable[[], object], batch: int, steps: int, flops: float, dtype: torch.dtype
) -> Callable[[], dict[str, float]]:
    """Return an arm with `steps` steps and one synchronisation at the end.

    On a GPU every round begins with a step that is not timed. The round ends without cached memory, because the other
    contenders need it.
    """
    peak = data_sheet_flops(device(), dtype) or 0.0  # 0: unknown
    on_gpu = device().type == "cuda"

    def timed(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def run() -> dict[str, float]:
        if on_gpu:
            timed(1)
        wall = timed(steps)
        if on_gpu:
            torch.cuda.empty_cache()
        figures = {"count": steps * batch, "wall": wall}
        return figures | {"mfu": steps * batch * flops / wall / peak} if peak else figures

    return run


def step_flops(arch: Arch, half: bool = False) -> float:
    """Return training FLOPs per image. half: only the upper half of the blocks is trained."""
    return count_flops(arch, CLASSES, frozen_blocks=arch.layers // 2 if half else 0).train


def ours(task: Task, letter: str, steps: int, dtype: str, half: bool = False) -> dict[str, Arm]:
    arch, batch = shape(letter, task.size), task.batch
    precision = choose_precision(dtype, device(), "auto")
    step = our_step(arch, precision, batch=batch, trainable=arch.layers // 2 if half else None)
    images, labels = random_batch(arch, batch)
    images = images.to(precision.dtype)  # as the loader delivers them
    return {"step": arm(lambda: step(images, labels), batch, steps, step_flops(arch, half), precision.dtype)}


ENTRIES = (Entry("fastft", "fastft", ours, {Work.STEP: ()}),)


class StepRunner:
    """The trainer's step on given batches. Call it with images and labels."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.step.split.mark(None)
        set_lr(self.step.optimizer, LR)
        self.step.micro_batch(images, labels, step=0, last=True)
        self.step.update()


def our_step(
    arch: Arch, precision: Precision, choice: StepChoice | None = None, batch: int = 1, trainable: int | None = None
) -> StepRunner:
    """Return the step on the precision's device.

    All parameters are trained, or the upper `trainable` blocks and the head. choice: how the step is computed. None
    chooses as a run with CLIP's tower does for a micro-batch of `batch` images.
    """
    world = World(0, 1, 0, torch.device(precision.device_type))
    torch.manual_seed(0)
    model = build_classifier(arch, CLASSES, trainable_layers=trainable, freeze_conv1=False)
    model = model.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = layer_groups(model, arch.layers, LAYER_DECAY, WEIGHT_DECAY)
    optimizer = build_adamw(optimizer_groups(model, groups), betas=(0.9, 0.999), eps=1e-8)
    step = Step(model, optimizer, Ema(model, EMA_DECAY), world, precision, label_smoothing=SMOOTHING)
    if choice is None:
        recipe = recipe_from_dict("step", {"model": {"image_size": arch.image_size}, "data": {"num_classes": CLASSES}})
        decision = choose_step(recipe, step, batch, None, reserve_bytes=0, say=lambda line: None)
        print(decision.describe(), file=sys.stderr)
        choice = decision.choice
    step.connect(choice)
    return StepRunner(step)


def peer_step(model: nn.Module, dtype: str, optimizer: torch.optim.Optimizer) -> Callable[..., torch.Tensor]:
    """Return a function that runs the step from timm's train.py and returns the loss.

    It has model and loss under autocast, backward, (scaled) step, zero_grad and EMA.
    """
    import timm.loss
    from timm.utils import ModelEmaV3

    precision = choose_precision(dtype, device())
    on_ampere = device().type == "cuda" and torch.cuda.get_device_capability() >= BF16_NATIVE  # Triton supports these
    forward = torch.compile(model, dynamic=False) if on_ampere and can_compile(device()) else model
    ema, loss_fn = ModelEmaV3(model, decay=EMA_DECAY), timm.loss.LabelSmoothingCrossEntropy(SMOOTHING)
    scaler = precision.scaler()

    def run(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with precision.autocast():
            loss = loss_fn(forward(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        ema.update(model)
        return loss.detach()

    return run


def timm_model(a: Arch) -> nn.Module:
    """Build timm's vit_base_patch16_clip_quickgelu_224 with the shape of `a`."""
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=a.image_size, patch_size=a.patch_size, embed_dim=a.width, depth=a.layers, num_heads=a.heads,
        mlp_ratio=a.mlp_width / a.width, pre_norm=True, norm_layer=nn.LayerNorm, act_layer="quick_gelu",
        num_classes=CLASSES, global_pool="avg", final_norm=True, fc_norm=False,
    )  # fmt: skip
    return model.to(device(), memory_format=torch.channels_last)


def timm_train_step(a: Arch, dtype: str, half: bool = False) -> Callable[..., torch.Tensor]:
    """half: the embeddings and the lower half of the blocks need no gradient, as when timm's users freeze layers."""
    import timm.optim

    model = timm_model(a)
    if half:
        for name, parameter in model.named_parameters():
            block = int(name.split(".")[1]) if name.startswith("blocks.") else -1
            parameter.requires_grad = block >= a.layers // 2 or name.startswith(("norm.", "fc_norm.", "head."))
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="adamw", lr=LR, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY
    )
    return peer_step(model, dtype, optimizer)


def timm_step(task: Task, letter: str, steps: int, dtype: str, half: bool = False) -> dict[str, Arm]:
    arch = shape(letter, task.size)
    step, (images, labels) = timm_train_step(arch, dtype, half), random_batch(arch, task.batch)
    precision = choose_precision(dtype, device())
    return {"step": arm(lambda: step(images, labels), task.batch, steps, step_flops(arch, half), precision.dtype)}
