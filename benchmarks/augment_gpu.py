"""To be shown: augmenting 256 images at 224 takes at most twice the time that their bytes need on the card.

Not yet measured: it was written where there was no GPU.

Setting: one NVIDIA GPU; the paper's recipe (random resized crop, flip, RandAugment m9 n2 mstd0.5, erase 0.25),
crops of images of 500 x 375 decoded beforehand and packed on the device; float16 output. CUDA events round
`repeats` batches, alternating with a copy of the same number of bytes by torch; the median of 9 rounds, with
minimum and maximum. The bytes are those that must cross the memory bus once: the packed regions, the resized
images written and read, and the output written.

Run: python benchmarks/augment_gpu.py [--batch 256] [--size 224] [--json benchmarks/results/augment_gpu.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastft.augment import AugmentPolicy, draw_plan, parse_policy, source_regions
from fastft.augment.cuda import CudaAugment

HEIGHT, WIDTH = 375, 500  # the median ImageNet image
ROUNDS, REPEATS = 9, 20


def milliseconds(run: Callable[[], Any]) -> float:
    """Time of one call on the device, from events round REPEATS of them."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(REPEATS):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / REPEATS


def prepare(policy: AugmentPolicy, batch: int, size: int) -> tuple[list[torch.Tensor], int]:
    """(packed, offsets, plan) on the device, and the bytes that a batch must move."""
    sides = np.full(batch, HEIGHT), np.full(batch, WIDTH)
    plan = draw_plan(
        policy, seed=0, epoch=0, sample_ids=np.arange(batch), heights=sides[0], widths=sides[1], size=size
    )
    lengths = source_regions(plan, size)[:, 2:].astype(np.int64).prod(1) * 3
    offsets = np.cumsum([0, *lengths])
    packed = torch.randint(0, 256, (int(offsets[-1]),), dtype=torch.uint8, device="cuda")
    tables = [torch.from_numpy(a).cuda() for a in (offsets, plan.view(np.uint8))]
    image_bytes = batch * size * size * 3
    return [packed, *tables], len(packed) + 2 * image_bytes + 2 * image_bytes


def measure(augment: str, batch: int, size: int) -> dict[str, Any]:
    """Times in milliseconds of the augmentation and of a copy of its bytes, and their ratio."""
    policy = parse_policy(augment)
    arguments, moved = prepare(policy, batch, size)
    run = CudaAugment(policy, size, torch.float16, torch.device("cuda"))
    source = torch.empty(moved // 2, dtype=torch.uint8, device="cuda")  # a copy reads and writes
    target = torch.empty_like(source)
    arms = {"augment": lambda: run(*arguments), "copy": lambda: target.copy_(source)}
    for arm in arms.values():
        arm()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            times[name].append(milliseconds(arm))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "gpu": torch.cuda.get_device_name(),
        "augment": augment,
        "batch": batch,
        "size": size,
        "rounds": ROUNDS,
        "bytes": moved,
        "milliseconds": {name: [min(v), medians[name], max(v)] for name, v in times.items()},
        "ratio": medians["augment"] / medians["copy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU here: run this where there is one")
    policies = ("none", "rand-m9-mstd0.5-inc1", "3aug", "augmix")
    rows = [measure(policy, arguments.batch, arguments.size) for policy in policies]
    for row in rows:
        least, median, most = row["milliseconds"]["augment"]
        times = f"{median:.3f} ms ({least:.3f} to {most:.3f})"
        print(f"{row['augment']:<24} {times}, {row['ratio']:.2f} x a copy of its {row['bytes'] / 1e6:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
