"""Count launches, waits and allocations for each way to compute a step.

Run: python -m tests.fake_gpu ways OUT.json     (a file of benchmarks/results: the table in docs/step.md is made from it)
"""

import gc
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fastft.bench.step_bench import StepRunner, our_step, random_batch, shape
from fastft.machine.precision import Precision
from fastft.train.step import StepChoice
from tests.fake_gpu.card import Asked, counting

BF16, FP16 = (Precision(dtype, "cuda") for dtype in (torch.bfloat16, torch.float16))
HALF_BF16, HALF_FP16 = (Precision(dtype, "cuda", half_residual=True) for dtype in (torch.bfloat16, torch.float16))
FP32 = Precision(torch.float32, "cuda")
STEPS, IMAGES, GRAPH_IMAGES = 3, 256, 64
WAYS = [
    (FP32, "eager", "auto"), (BF16, "eager", "auto"), (FP16, "eager", "auto"), (HALF_FP16, "eager", "auto"),
    (HALF_BF16, "eager", "auto"), (BF16, "eager", "flash"), (BF16, "eager", "efficient"), (BF16, "eager", "batched"),
    (BF16, "compile", "auto"), (BF16, "compile", "efficient"), (HALF_FP16, "compile", "auto"), (HALF_BF16, "compile", "auto"),
    (HALF_FP16, "fused", "auto"), (BF16, "graph", "auto"), (HALF_FP16, "graph", "auto"), (HALF_BF16, "graph", "auto"),
]  # fmt: skip


@contextmanager
def without_cudnn() -> Iterator[None]:
    """cuDNN asks the card for more than it answers. Frees everything in the end."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def warm_step(
    precision: Precision, choice: StepChoice, images: int
) -> tuple[StepRunner, tuple[torch.Tensor, torch.Tensor]]:
    """Return B/16's step after three calls, which make the optimiser's state, workspaces and graphs, and a batch."""
    arch = shape("B")
    step = our_step(arch, precision, choice=choice)
    pixels, labels = random_batch(arch, images, torch.device("cuda"))
    batch = pixels.to(precision.dtype), labels
    for _ in range(3):
        step(*batch)
    torch.cuda.reset_peak_memory_stats()
    return step, batch


def steady(step: StepRunner, batch: tuple[torch.Tensor, torch.Tensor]) -> Asked:
    """Return what STEPS steps ask for. Raises RuntimeError: one of them waits for the card."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with counting() as asked:
            for _ in range(STEPS):
                step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return asked


def row(precision: Precision, mode: str, attention: str) -> dict[str, Any]:
    images = GRAPH_IMAGES if mode == "graph" else IMAGES
    given = {
        "precision": precision.name, "half_residual": precision.half_residual, "mode": mode, "attention": attention,
        "images": images,
    }  # fmt: skip
    with without_cudnn():
        try:
            asked = steady(*warm_step(precision, StepChoice(mode, attention), images))
        except Exception as error:
            return given | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        work = asked.work / STEPS
        counts = {name: count / STEPS for name, count in asked.items() if count}
        return given | {"work": work, "counts": counts, "gb": torch.cuda.max_memory_allocated() / 1e9}


def commit() -> str:
    git = ["git", "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def main(out: Path) -> None:
    stored = json.loads(out.read_text()) if out.exists() else {"records": []}
    record: dict[str, Any] = {
        "date": date.today().isoformat(), "commit": commit(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(), "model": "ViT-B/16", "card": torch.cuda.get_device_name(), "rows": [],
    }  # fmt: skip
    for way in WAYS:
        record["rows"].append(row(*way))
        print(record["rows"][-1], flush=True)
        out.write_text(json.dumps({"records": [*stored["records"], record]}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
