"""Measurements on one borrowed GPU, in seven calls that together take 45 minutes at most (docs/gpu-day.md).

    python benchmarks/gpu_day.py CALL --out DIR

    kernels    versions, fastft doctor, augmentation kernel tests
    data       two minutes of `fastft train`: images/s beside what `fastft cost` predicts, fraction spent waiting; then loader and
               augmentation alone
    steps      every way to compute B/16's step with 256 images in the card's precisions, and timm's: ms, MFU, peak memory
    training   step, loader and trainer tests
    accuracy   `fastft demo`, which fine-tunes real weights on real images: top-1 beside a CPU's
    shapes     steps for 64 and 16 images, L/14 and 384 px, where other ways may win: also as a CUDA graph
    sanitizer  compute-sanitizer over the augmentation kernels

The calls are ordered by what you want to know first. A call writes DIR/CALL.json (card, date, command, rows, and what was cut for
want of time) after each result, and its commands' output to DIR/CALL.log. So if it is stopped, only what was running is
lost. Every step is measured in a process of its own, with a time limit. --dry-run uses tiny shapes, and also works on a CPU.
All speeds are also in DIR/gpu-day.json, a result of fastft bench: fastft report shows it, and fastft cost --measured uses it.
`python benchmarks/gpu_day.py plan` prints the calls' time limits.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from beton_tools.base.atomic import atomic_path
from beton_tools.base.errors import first_line
from fastft.bench import step_bench, suite
from fastft.bench.circumstances import Watch, commit, describe_machine
from fastft.bench.dataset import ORIGINAL, Workspace, find_images
from fastft.bench.step_bench import arm, our_step, random_batch, shape, step_flops, timm_train_step
from fastft.cost.price import CostQuery, price_recipes
from fastft.jobs.decided import load_decided
from fastft.machine import bench_result
from fastft.machine.bench_result import Case, Contender, Measure, Round, read_result, write_result
from fastft.machine.gpus import find_gpu, peak_flops
from fastft.machine.precision import AMPERE, Precision
from fastft.model.attention import attention_candidates
from fastft.recipe import load_recipe
from fastft.train.step import StepChoice

Row = dict[str, Any]
StepCase = tuple[
    str, int, int, Precision, StepChoice | None
]  # model, image size, images, precision, choice (None: timm's step)
AMP = {torch.bfloat16: "bf16", torch.float16: "fp16"}
RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
CASE_SECONDS = 150  # limit for one step: autotuning would take a whole call
CUT = ("no time left", "stopped after")  # how the errors of rows begin that time cut
SET_UP_SECONDS = 60  # of a call: wheels, imports
# limit for a call's commands, and for the time in which measurements begin. At most 10 minutes a call, with the set-up
LIMITS = {"kernels": 360, "data": 360, "steps": 540, "training": 300, "accuracy": 180, "shapes": 300, "sanitizer": 240}
DAY_SECONDS = 45 * 60
TRAINED = "final_b16"
# includes tests that need no card: those in tests/gpu have tiny shapes on a CPU
PYTEST = ("pytest", "-v", "-rs", "--durations=0", "-p", "no:cacheprovider", "--timeout=500", "-m", "gpu or not gpu")
COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "kernels": [
        ("pip", "list"), ("fastft.cli", "doctor", "--json"),
        (*PYTEST, "tests/gpu/test_kernels.py", "tests/gpu/test_fused.py", "-k", "not compute_sanitizer"),
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
        self.watch = Watch(f"python benchmarks/gpu_day.py {name}")
        self.has_bf16 = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= AMPERE

    @property
    def seconds_left(self) -> float:
        return LIMITS.get(self.name, CASE_SECONDS) - (time.monotonic() - self.began)

    def write(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)
        with atomic_path(self.out / f"{self.name}.json") as path:
            path.write_text(json.dumps({**self.head, "rows": self.rows, "cut": cut(self.rows)}, indent=1) + "\n")

    def add(self, measures: list[Measure]) -> None:
        """Add the measures' cases to the result of the day. The same cases of an earlier call are replaced."""
        result, path = suite.new_result(self.images, self.dry_run, self.watch), self.result_path
        if path.exists():
            stored, session = read_result(path), result.sessions[0]
            stored.sessions = [s for s in stored.sessions if (s.command, s.date) != (session.command, session.date)]
            result = suite.extended(stored, result)
        for measure in measures:
            before = result.measure(measure.key)
            settings = [case.setting for case in measure.cases]
            kept = [] if before is None else [case for case in before.cases if case.setting not in settings]
            # fastft cost takes the first case of a model and size: that with the most images at a time
            measure.cases = sorted([*kept, *measure.cases], key=lambda case: -int(case.setting.get("batch", 0)))
            result.measures = [m for m in result.measures if m.key != measure.key] + [measure]
        write_result(path, result)

    @cached_property
    def images(self) -> bench_result.Images:
        """Describe the images that fastft bench would take, whose measures are in the same result."""
        with tempfile.TemporaryDirectory() as scratch:
            number = suite.QUICK_IMAGES if self.dry_run else suite.IMAGES
            return find_images(None, Path(scratch), number).described()

    @property
    def result_path(self) -> Path:
        """The result of the day, or a further one where this call is on another machine, or of another version."""
        now, number = (describe_machine(), *commit(), self.dry_run), 1
        while True:
            path = self.out / f"gpu-day{'' if number == 1 else f'-{number}'}.json"
            if not path.exists():
                return path
            stored = read_result(path)
            if (stored.machine, stored.commit, stored.changed, stored.quick) == now:
                return path
            number += 1

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
            "fastft.cli", "train", TRAINED, f"--data.train={beton}", f"--data.val={beton}",
            "--model.weights=random", "--schedule.epochs=1000", "--train.eval_every=1000", f"--train.run_dir={run}",
            "--train.log_every=10", f"--train.stop_after={'20s' if call.dry_run else '2m'}", *small,
        )  # fmt: skip
        with suppress(FileNotFoundError):
            shutil.copy(run / "metrics.jsonl", call.out / "train.jsonl")
    report_training(call)
    on_gpu = call.device.type == "cuda"
    for name in ("loader.gpu", "augment.gpu", "loader.eval") if on_gpu else ("loader.eval",):
        # the peers of the loader are measured elsewhere
        quick = ["--quick"] * call.dry_run
        places = (f"--out={call.out / 'bench'}", f"--add={call.result_path}")
        call.run("fastft.cli", "bench", name, "--peers=none", "--rounds=3", *places, *quick)


def report_training(call: Call) -> None:
    """Write the training's images/s, beside the rate that the cost model predicts for this card."""
    path = call.out / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    steady = [line for line in lines if line["kind"] == "train"][1:]  # the first one has the start in it
    if not steady:
        call.write({"error": "the training logged too few steps. See data.log"})
        return
    recipe = load_recipe(TRAINED)
    size, batch = (32, 16) if call.dry_run else (recipe.model.image_size, 256)
    rounds = [
        Round(
            value=line["images_per_second"],
            figures={"waiting": line["wait_share"]} | ({"mfu": line["mfu"]} if line["mfu"] else {}),
        )
        for line in steady
    ]
    setting: bench_result.Setting = {"model": TRAINED, "size": size, "batch": batch}
    case = Case(setting=setting, contenders=[Contender(name="fastft", rounds=rounds)])
    call.add([Measure(
        key="e2e.train", bench="e2e", title="Training, file to updated weights", unit="images/s", cases=[case],
        about="fastft train for two minutes. A round is ten steps. waiting: share of the time that the step waited for data.",
    )])  # fmt: skip
    card = find_gpu(str(call.head["card"]))
    predicted = {}
    if card is not None and not call.dry_run:
        priced = price_recipes([load_decided(TRAINED, ())], CostQuery(card.name, 1))
        predicted = {e.basis: e.images_per_second_per_gpu for e in priced.recipes[0].estimates}
    call.write({"images_per_second": median(r.value for r in rounds), "predicted": predicted})


def accuracy(call: Call) -> None:
    """Measure the demo's top-1 on this device, beside the CPU's in benchmarks/results."""
    out, recipe = call.out / "demo", call.out / "demo.yaml"
    demo = RESULTS.parents[1] / "rcp" / "demo.yaml"
    recipe.write_text(f"extends: {demo}\ntrain: {{device: {call.device.type}}}\n")
    call.run("fastft.cli", "demo", "--recipe", str(recipe), "--out", str(out))
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.rglob("result.json"))}
    call.write({"demo": found, "cpu": json.loads((RESULTS / "demo.json").read_text())})


def ways(call: Call) -> Iterator[StepCase]:
    """Yield B/16 with 256 images. Cases that compile come late because they take longest. Autotuned ones come last."""
    plain, half = precisions(call, False), precisions(call, True)
    whole = ("T", 32, 2) if call.dry_run else ("B", 224, 256)
    kernels = [StepChoice("eager", kernel) for kernel in attention_candidates(call.device)]
    yield from ((*whole, precision, choice) for precision, choice in product([*plain, *half], kernels))
    yield from ((*whole, precision, None) for precision in plain)
    for mode, which in (("fused", half), ("compile", plain), ("compile", half), ("autotune", plain)):
        yield from ((*whole, precision, StepChoice(mode)) for precision in which)


def other_shapes(call: Call) -> Iterator[StepCase]:
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


def steps(call: Call, cases: Iterator[StepCase]) -> None:
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
        call.add(step_measures(call.rows))


def step_measures(rows: list[Row]) -> list[Measure]:
    """Return the measured steps as `fastft bench step` does: fastft's fastest way beside timm's step, and every way."""
    compared, ways = [], []
    for (letter, size, batch), group in groupby(rows, key=lambda row: (row["model"], row["size"], row["images"])):
        shapes = list(group)
        for dtype in dict.fromkeys(row["precision"] for row in shapes):
            setting: bench_result.Setting = {
                "model": step_bench.Case(letter, size, dtype, batch, 1).model, "size": size, "dtype": dtype, "batch": batch,
            }  # fmt: skip
            own = [row for row in shapes if row["precision"] == dtype]
            ways.append(Case(setting=setting, contenders=[contender(row, way_of(row)) for row in own]))
            done = [row for row in own if "seconds" in row and row["step"] != "timm"]
            best = min(done, key=lambda row: row["ms"], default=None)
            if best is not None:
                fastest = contender(best, "fastft", [f"its fastest of {len(done)} ways: {way_of(best)}"])
                timm = [contender(row, "timm") for row in own if row["step"] == "timm"]
                compared.append(Case(setting=setting, contenders=[fastest, *timm]))
    about = "Forward, label-smoothed loss, backward, AdamW, EMA, on random images in memory."
    kinds = (("step.train", "Training step", compared), ("step.ways", "Training step, every way to compute it", ways))
    return [
        Measure(key=key, bench="step", title=title, unit="images/s", about=about, cases=cases)
        for key, title, cases in kinds if cases
    ]  # fmt: skip


def way_of(row: Row) -> str:
    return str(row["step"]) + ", half-precision weights" * (row["half_residual"] == "True")


def contender(row: Row, name: str, differences: Sequence[str] = ()) -> Contender:
    """Return a row as the result of a contender."""
    if "seconds" not in row:
        return Contender(name=name, skipped=str(row["error"]))
    figures = {key: row[key] for key in ("mfu", "peak_gb") if row[key] is not None}
    rounds = [Round(value=row["images"] / s, images=row["images"], wall=s, figures=figures) for s in row["seconds"]]
    return Contender(name=name, rounds=rounds, differences=list(differences))


def in_process(call: Call, case: StepCase) -> Row:
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
    steps = 1 if call.dry_run else 4
    run = arm(lambda: step(images, labels), batch, steps, step_flops(arch), dtype)
    run()  # the first compiles
    found = [run()["wall"] / steps for _ in range(ROUNDS)]
    seconds, peak = median(found), peak_flops(call.device, dtype)
    memory = torch.cuda.max_memory_allocated() / 1e9 if call.device.type == "cuda" else None
    mfu = batch * step_flops(arch) / seconds / peak if peak else None
    return {"ms": 1e3 * seconds, "seconds": found, "mfu": mfu, "peak_gb": memory}


def plan() -> list[str]:
    """Return each call's time limit in words, and their sum."""
    lines = [f"{name:10} {(limit + SET_UP_SECONDS) / 60:4.1f} minutes at most" for name, limit in LIMITS.items()]
    total = sum(LIMITS.values()) + len(LIMITS) * SET_UP_SECONDS
    return [*lines, f"{'all':10} {total / 60:4.1f} minutes, {SET_UP_SECONDS} s of each call for the set-up"]


MEASURED: dict[str, Callable[[Call], None]] = {
    "data": data,
    "steps": lambda call: steps(call, ways(call)),
    "accuracy": accuracy,
    "shapes": lambda call: steps(call, other_shapes(call)),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=[*COMMANDS, *MEASURED, "plan", "case"])
    parser.add_argument("--case", help=argparse.SUPPRESS)  # one step of a call, as JSON
    parser.add_argument("--out", type=Path, default=Path("gpu-day"))
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.call == "plan":
        print("\n".join(plan()))
        sys.exit()
    made = Call(args.call, args.out, args.dry_run)
    if args.call == "case":
        print_case(made, args.case)
        sys.exit()
    args.out.mkdir(parents=True, exist_ok=True)
    for module in COMMANDS.get(args.call, []):
        made.run(*module)
    if args.call in MEASURED:
        MEASURED[args.call](made)
