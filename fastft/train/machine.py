"""What a run runs on, for its log."""

import os
import resource
from pathlib import Path
from typing import Any

import torch

from fastft.train.distributed import World
from fastft.train.precision import Precision


def describe(world: World, precision: Precision) -> dict[str, Any]:
    """Of this process, as one line of metrics.jsonl."""
    on_gpu = world.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(world.device) if on_gpu else cpu_name(),
        "device_type": world.device.type,
        "world_size": world.size,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "precision": str(precision.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """As Linux has it; elsewhere 'CPU'."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
