"""The hardware and software of a process, for its log."""

import os
import resource
from typing import Any

import torch

from fastft.machine.facts import cpu_name
from fastft.train.distributed import World
from fastft.train.precision import Precision


def describe_process(world: World, precision: Precision) -> dict[str, Any]:
    """Device, cores, threads and versions: the 'start' line of metrics.jsonl."""
    on_gpu = world.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(world.device) if on_gpu else cpu_name(),
        "device_type": world.device.type,
        "world_size": world.size,
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "precision": precision.name,
        "torch": torch.__version__,
    }


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
