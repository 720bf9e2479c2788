"""Stage 5: loss curves of the precisions agree, and the automatic micro-batch fits into smaller memories."""

from typing import Any
from unittest import mock

import torch

from fastft.bench.step_bench import CLASSES, our_step, random_batch, shape
from fastft.model import build_classifier
from fastft.train.micro_batch import choose_micro_batch
from fastft.train.precision import choose_precision
from fastft.train.step import StepChoice

CURVES = {
    "fp32": ("fp32", "off"),
    "bf16": ("bf16", "off"),
    "fp16": ("fp16", "off"),
    "fp16, half residual": ("fp16", "on"),
}
CAPS_GIB = (16, 32)
LARGEST_GAP = 0.1  # relative difference of the mean loss over the last tenth, from fp32
BATCH, GLOBAL_BATCH = 64, 2048


def run(tiny: bool) -> dict[str, Any]:
    """200 steps on the same random batches in every precision; then micro-batches under memory caps.

    Raises:
        AssertionError: a curve ends more than 10 % from that of fp32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = 3 if tiny else 200
    names = ("fp32", "bf16") if device.type == "cpu" else tuple(CURVES)
    curves = {name: _curve(*CURVES[name], steps, device, tiny) for name in names}
    ends = {name: sum(c["loss"][-max(1, steps // 10) :]) / max(1, steps // 10) for name, c in curves.items()}
    for name, end in ends.items():
        assert abs(end / ends["fp32"] - 1) < LARGEST_GAP, (
            f"{name} ends at {end:.4f}, fp32 at {ends['fp32']:.4f}"
        )
    caps = {} if device.type == "cpu" else {f"{cap} GiB": _under_cap(cap, device) for cap in CAPS_GIB}
    return {"device": device.type, "steps": steps, "curves": curves, "last_tenth": ends, "micro_batch": caps}


def _curve(amp: str, half_residual: str, steps: int, device: torch.device, tiny: bool) -> dict[str, Any]:
    arch = shape("T" if tiny else "S")
    step, precision = our_step(arch, amp, None, half_residual=half_residual, choice=StepChoice())
    torch.manual_seed(1)
    batches = [random_batch(arch, 2 if tiny else BATCH) for _ in range(4)]
    losses: list[float] = []
    for k in range(steps):
        images, labels = batches[k % len(batches)]
        step(images.to(precision.dtype), labels)
        losses.append(step.pop_loss())
    return {"loss": losses, "loss_scale": step.scaler.get_scale()}


def _under_cap(gib: int, device: torch.device) -> dict[str, int]:
    """The micro-batch chosen for B/16 if the GPU had `gib` GiB, and the peak memory that a step with it takes.

    Raises:
        AssertionError: the step takes more than the cap.
    """
    arch, cap = shape("B"), gib << 30
    precision = choose_precision("auto", device)
    model = build_classifier(arch, CLASSES).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with mock.patch.object(torch.cuda, "mem_get_info", lambda *_: (cap - torch.cuda.memory_reserved(), cap)):
        chosen = choose_micro_batch(0, GLOBAL_BATCH, model, arch.image_size, precision)
    del model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step, precision = our_step(arch, "auto", None, choice=StepChoice())
    images, labels = random_batch(arch, chosen)
    step(images.to(precision.dtype), labels)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_reserved()
    assert peak <= cap, f"micro-batch {chosen} takes {peak / 2**30:.1f} GiB of {gib}"
    return {"micro_batch": chosen, "peak_bytes": peak}
