"""Stage 4: variants of the training step: precision, residual, attention kernel, compilation and micro-batch."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fastft.bench.step_bench import CLASSES, our_step, random_batch, shape
from fastft.machine.gpus import peak_flops
from fastft.model import count_flops
from fastft.model.attention import attention_candidates
from fastft.train.step import StepChoice

WARM_UP, STEPS, TOP = 5, 20, 15


@dataclass(frozen=True)
class Variant:
    """One way to compute the step; mode and attention as in StepChoice."""

    amp: str
    half_residual: str = "off"
    attention: str = "auto"
    mode: str = "eager"
    micro_batch: int = 256


def run(tiny: bool) -> dict[str, Any]:
    """Images/s, MFU, peak memory and the 15 most expensive operations of every variant; a failing one keeps its error."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device.type, "rows": [_row(v, device, tiny) for v in variants(device, tiny)]}


def variants(device: torch.device, tiny: bool) -> list[Variant]:
    if tiny:
        return [Variant("fp32", micro_batch=2), Variant("bf16", attention="batched", micro_batch=2)]
    kernels = [Variant("bf16", attention=name) for name in attention_candidates(device)]
    return [
        *kernels,
        Variant("fp16"),  # the V100's code paths
        Variant("fp16", half_residual="on"),
        Variant("fp16", half_residual="on", attention="batched"),
        Variant("bf16", half_residual="on"),
        *(Variant("bf16", mode="compile", micro_batch=n) for n in (64, 128, 256)),
        *(Variant("bf16", micro_batch=n) for n in (64, 128)),
        *(Variant("bf16", mode="graph", micro_batch=n) for n in (32, 64)),
        Variant("bf16", half_residual="on", mode="compile"),
    ]


def _row(variant: Variant, device: torch.device, tiny: bool) -> dict[str, Any]:
    try:
        return asdict(variant) | _measure(variant, device, tiny)
    except Exception as error:  # a kernel that this card lacks must not end the stage
        return asdict(variant) | {"error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(variant: Variant, device: torch.device, tiny: bool) -> dict[str, Any]:
    arch = shape("T" if tiny else "B")
    step, precision = our_step(
        arch, variant.amp, None,
        half_residual=variant.half_residual, choice=StepChoice(variant.mode, variant.attention),
    )  # fmt: skip
    images, labels = random_batch(arch, variant.micro_batch)
    images = images.to(precision.dtype)
    call = lambda: step(images, labels)  # noqa: E731
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _timed(call, 1 if tiny else WARM_UP, device)
    steps = 1 if tiny else STEPS
    rate = steps * variant.micro_batch / _timed(call, steps, device)
    peak, flops = peak_flops(device, precision.dtype), count_flops(arch, CLASSES).train
    return {
        "images_per_second": rate,
        "mfu": None if peak is None else rate * flops / peak,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "top": _top_operations(call, device),
    }


def _timed(call: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds of `steps` calls, with one synchronisation at the end."""
    began = time.perf_counter()
    for _ in range(steps):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _top_operations(call: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The operations with the most time of one step: name, calls, milliseconds."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        call()
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, attribute))[:TOP]
    return [{"name": e.key[:80], "calls": e.count, "ms": getattr(e, attribute) / 1e3} for e in events]
