"""Measurements on one borrowed GPU, in seven calls that take less than 10 minutes each (docs/gpu-day.md).

    python benchmarks/gpu_day.py CALL --out DIR

    kernels    versions, fastft doctor, augmentation kernel tests
    data       three minutes of `fastft train`: images/s, fraction spent waiting; then loader and augmentation alone
    steps      every way to compute B/16's step with 256 images in the card's precisions, and timm's: ms, MFU, peak memory
    training   step, loader and trainer tests
    accuracy   `fastft demo`, which fine-tunes real weights on real images: top-1 beside a CPU's
    shapes     steps for 64 and 16 images, L/14 and 384 px, where other ways may win: also as a CUDA graph
    sanitizer  compute-sanitizer over the augmentation kernels

The order is that of what you want to know first. A call writes DIR/CALL.json (card, date, command, rows, and what was cut for
want of time) after each result, and its commands' output to DIR/CALL.log. So if it is stopped, only what was running is
lost. Every step is measured in a process of its own, with a time limit. --dry-run uses tiny shapes, and also works on a CPU.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import torch

from beton_tools.base.atomic import atomic_path
from beton_tools.base.errors import first_line
from fastft.bench.dataset import ORIGINAL, Workspace, find_images
from fastft.bench.step_bench import arm, our_step, random_batch, shape, step_flops, timm_train_step
from fastft.machine.gpus import peak_flops
from fastft.machine.precision import AMPERE, Precision
from fastft.model.attention import attention_candidates
from fastft.train.step import StepChoice

Row = dict[str, Any]
Case = tuple[
    str, int, int, Precision, StepChoice | None
]  # model, image size, images, precision, choice (None: timm's step)
AMP = {torch.bfloat16: "bf16", torch.float16: "fp16"}
RESULTS = Path(__file__).parent / "results"
CASE_SECONDS = 150  # limit for one step: autotuning would take a whole call
CUT = ("no time left", "stopped after")  # how the errors of rows begin that time cut
COMMAND_SECONDS = 540  # limit for a call's commands, and for the time in which measurements begin
# includes tests that need no card: those in tests/gpu have tiny shapes on a CPU
PYTEST = ("pytest", "-v", "-rs", "--durations=0", "-p", "no:cacheprovider", "--timeout=500", "-m", "gpu or not gpu")
COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "kernels": [
        ("pip", "list"), ("fastft.cli", "doctor", "--json"),
        (*PYTEST, "tests/gpu/test_kernels.py", "-k", "not compute_sanitizer"),
    ],
    "training": [(*PYTEST, "tests/gpu/test_step.py", "tests/gpu/test_training.py")],
    "sanitizer": [(*PYTEST, "tests/gpu/test_kernels.py", "-k", "compute_sanitizer")],
}  # fmt: skip


class Call:
    """Writes rows as they come, and runs commands within the time that is left."""

    def __init__(self, name: str, out: Path, dry_run: bool) -> None:
        self.name, self.out, self.dry_run, self.began = name, out, dry_run, time.monotonic()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head = {
            "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": sys.argv, "torch": torch.__version__,
        }  # fmt: skip
        self.rows: list[Row] = []
        self.has_bf16 = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= AMPERE

    @property
    def seconds_left(self) -> float:
        return COMMAND_SECONDS - (time.monotonic() - self.began)

    def write(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)
        with atomic_path(self.out / f"{self.name}.json") as path:
            path.write_text(json.dumps({**self.head, "rows": self.rows, "cut": cut(self.rows)}, indent=1) + "\n")

    def run(self, *module: str) -> None:
        began, code = time.monotonic(), None
        with (self.out / f"{self.name}.log").open("ab") as log, suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [sys.executable, "-m", *module], stdout=log, stderr=log, timeout=max(1.0, self.seconds_left), check=False,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            code = done.returncode
        self.write({"ran": module, "code": code, "seconds": round(time.monotonic() - began, 1)})


def cut(rows: list[Row]) -> list[Row]:
    """Return the rows that time cut: commands that were stopped, and steps that were stopped or not begun."""
    return [row for row in rows if str(row.get("error", "")).startswith(CUT) or ("ran" in row and row["code"] is None)]


def data(call: Call) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        images = find_images(None, Path(scratch), 32 if call.dry_run else 2560)
        beton, run = Workspace(Path(scratch), images).beton(ORIGINAL), Path(scratch, "run")
        small = ("--optim.batch_size=16", "--model.image_size=32") if call.dry_run else ("--optim.batch_size=256",)
        call.run(
            "fastft.cli", "train", "final_b16", f"--data.train={beton}", f"--data.val={beton}",
            "--model.weights=random", "--schedule.epochs=1000", "--train.eval_every=1000", f"--train.run_dir={run}",
            f"--train.stop_after={'20s' if call.dry_run else '3m'}", *small,
        )  # fmt: skip
        with suppress(FileNotFoundError):
            shutil.copy(run / "metrics.jsonl", call.out / "train.jsonl")
    for name in ("loader", "augment"):
        call.run("fastft.cli", "bench", name, "--out", str(call.out / "bench"), *["--quick"] * call.dry_run)


def accuracy(call: Call) -> None:
    """Measure the demo's top-1 on this device, beside the CPU's in benchmarks/results."""
    out = call.out / "demo"
    call.run("fastft.cli", "demo", "--out", str(out))
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.rglob("result.json"))}
    call.write({"demo": found, "cpu": json.loads((RESULTS / "demo.json").read_text())})


def ways(call: Call) -> Iterator[Case]:
    """Yield B/16 with 256 images. Cases that compile come late because they take longest. Autotuned ones come last."""
    plain, half = precisions(call, False), precisions(call, True)
    whole = ("T", 32, 2) if call.dry_run else ("B", 224, 256)
    kernels = [StepChoice("eager", kernel) for kernel in attention_candidates(call.device)]
    yield from ((*whole, precision, choice) for precision, choice in product([*plain, *half], kernels))
    yield from ((*whole, precision, None) for precision in plain)
    for mode, which in (("compile", plain), ("compile", half), ("autotune", plain)):
        yield from ((*whole, precision, StepChoice(mode)) for precision in which)


def other_shapes(call: Call) -> Iterator[Case]:
    """Yield a few images, for which the host may be slower than the GPU, then a larger model, then a larger image."""
    shapes = [("B", 224, 64), ("B", 224, 16), ("L", 224, 128), ("B", 384, 64)]
    bf16, half = precisions(call, False)[0], precisions(call, True)[0]
    modes = ("eager", "graph", "compile")
    for case in [("T", 32, 2)] if call.dry_run else shapes:
        yield from ((*case, bf16, StepChoice(mode)) for mode in modes)
        yield from ((*case, half, StepChoice(mode)) for mode in modes)
        yield *case, bf16, None


def precisions(call: Call, half: bool) -> list[Precision]:
    """Return the precisions that the card computes, its own first. Below compute capability 8.0 bf16 is emulated."""
    dtypes = (torch.bfloat16, torch.float16) if call.has_bf16 else (torch.float16,)
    return [Precision(dtype, call.device.type, half) for dtype in dtypes]


def steps(call: Call, cases: Iterator[Case]) -> None:
    for letter, size, batch, precision, choice in cases:
        about = {
            "model": letter, "size": size, "images": batch, "precision": precision.name,
            "half_residual": str(precision.half_residual), "step": "timm" if choice is None else str(choice),
        }  # fmt: skip
        try:
            is_late = call.seconds_left < 30
            row = {"error": "no time left"} if is_late else in_process(call, (letter, size, batch, precision, choice))
        except Exception as error:
            row = {"error": first_line(error)}
        call.write(about | row)


def in_process(call: Call, case: Case) -> Row:
    """Measure one case in a process of its own: its memory is its own, and what it compiles ends with its time."""
    letter, size, batch, precision, choice = case
    way = None if choice is None else [choice.mode, choice.attention]
    words = json.dumps([letter, size, batch, precision.name, precision.half_residual, way])
    limit = min(CASE_SECONDS, call.seconds_left)
    process = subprocess.Popen(
        [sys.executable, __file__, "case", "--case", words, *["--dry-run"] * call.dry_run],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit:.0f} s"}
    finally:
        with suppress(ProcessLookupError):  # also the compiler's workers
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        return {"error": (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:160]}
    row: Row = json.loads(out.splitlines()[-1])
    return row


def print_case(call: Call, words: str) -> None:
    """Measure the case that `in_process` asks for, and print its row."""
    letter, size, batch, dtype, half, way = json.loads(words)
    precision = Precision(getattr(torch, dtype), call.device.type, half)
    choice = None if way is None else StepChoice(*way)
    try:
        row = step_row(call, shape(letter, size), batch, precision, choice)
    except Exception as error:  # from a kernel, a compiler, or memory
        row = {"error": first_line(error)}
    print(json.dumps(row), flush=True)


def step_row(call: Call, arch: Any, batch: int, precision: Precision, choice: StepChoice | None) -> Row:
    """Measure one step. choice: None for timm's step."""
    dtype = precision.dtype
    step = timm_train_step(arch, AMP[dtype]) if choice is None else our_step(arch, precision, choice=choice)
    images, labels = random_batch(arch, batch, call.device)
    images = images.to(dtype)
    for count in (2, 2 if call.dry_run else 10):  # the first compiles
        seconds = arm(lambda: step(images, labels), batch, count, step_flops(arch), dtype)()["wall"] / count
    peak = peak_flops(call.device, dtype)
    memory = torch.cuda.max_memory_allocated() / 1e9 if call.device.type == "cuda" else None
    mfu = batch * step_flops(arch) / seconds / peak if peak else None
    return {"ms": 1e3 * seconds, "mfu": mfu, "peak_gb": memory}


MEASURED: dict[str, Callable[[Call], None]] = {
    "data": data,
    "steps": lambda call: steps(call, ways(call)),
    "accuracy": accuracy,
    "shapes": lambda call: steps(call, other_shapes(call)),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=[*COMMANDS, *MEASURED, "case"])
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one step of a call, as JSON
    parser.add_argument("--out", type=Path, default=Path("gpu-day"))
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    made = Call(args.call, args.out, args.dry_run)
    if args.call == "case":
        print_case(made, args.case)
        sys.exit()
    args.out.mkdir(parents=True, exist_ok=True)
    for module in COMMANDS.get(args.call, []):
        made.run(*module)
    if args.call in MEASURED:
        MEASURED[args.call](made)
