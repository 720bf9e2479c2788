"""On a borrowed card there are few packages: all tests run, and each call's results are written as they come."""

import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from benchmarks import gpu_day
from benchmarks.gpu_day import Call
from fastft.cli import build_parser, main
from fastft.cost.measured import Measured
from fastft.jobs.demo_files import IMAGES, WEIGHTS
from fastft.machine.bench_result import read_result
from fastft.machine.exits import EXIT_REQUEUE
from fastft.machine.precision import Precision
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import load_recipe
from fastft.train.step import StepChoice

PHOTOGRAPHS = "scikit-image"  # whose photographs are read and trained on
ON_MACHINE = ("torch", "torchvision", "numba-cuda", "timm", "pytest", "pytest-timeout")  # with what they require


def required(*packages: str) -> set[str]:
    """The packages and all that they require on this Python, by the metadata of what is installed."""
    found, waiting = set[str](), [(package, frozenset[str]()) for package in packages]
    while waiting:
        package, extras = waiting.pop()
        name = normalised(package)
        if name in found:
            continue
        found.add(name)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    return found


def normalised(package: str) -> str:
    return Requirement(package).name.lower().replace("_", "-")


def carried() -> set[str]:
    """The wheels in docs/gpu-day.md."""
    section = (
        Path("docs/gpu-day.md").read_text().partition("## A borrowed card")[2].partition("```")[2].partition("```")[0]
    )
    commands = [shlex.split(line, comments=True) for line in section.replace("\\\n", " ").splitlines()]
    words = [word for command in commands if command[:1] == ["pip"] for word in command[2:]]
    flags = ("--python-version", "--implementation", "--platform", "-d", "--wheel-dir")
    return {
        normalised(word) for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in flags
    }  # fmt: skip


def test_the_wheels_that_are_carried_are_what_the_machine_lacks():
    lacking = required("fastft", PHOTOGRAPHS) - required(*ON_MACHINE) - {"fastft"}
    demo = {normalised(package.requirement) for package in (IMAGES, WEIGHTS)}  # which are read, not installed
    assert demo <= carried()
    assert (
        lacking <= carried() - demo <= required("fastft", PHOTOGRAPHS)
    )  # NumPy is there, but numba-cuda needs one below 2.5


def test_all_is_collected_and_started_with_nothing_but_these_packages():
    """Also without FFCV and libraries for development."""
    packages = " ".join(required(*ON_MACHINE) | carried() | {"fastft"})
    paths = os.pathsep.join([str(Path(__file__).parent / "hiding"), str(Path.cwd())])
    environment = os.environ | {"PYTHONPATH": paths, "FASTFT_PACKAGES": packages, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert "No module named 'ffcv'" in run("-c", "try: import ffcv\nexcept ImportError as error: print(error)")
    options = ("--collect-only", "-rs", "-m", "gpu", "-p", "no:cacheprovider", "-p", "pytest_timeout")
    collected = run("-m", "pytest", "tests/gpu", *options)
    assert all(f"tests/gpu/test_{name}.py:" in collected for name in ("kernels", "step", "training"))
    assert "--dry-run" in run("benchmarks/gpu_day.py", "--help")


def test_every_result_is_on_disk_before_the_next_begins(tmp_path, monkeypatch):
    assert max(gpu_day.LIMITS.values()) + gpu_day.SET_UP_SECONDS <= 600 and gpu_day.CASE_SECONDS == 150, (
        "as docs/gpu-day.md says"
    )
    call, modes = Call("steps", tmp_path, dry_run=True), ("eager", "graph", "compile")

    def written() -> dict:
        return json.loads((tmp_path / "steps.json").read_text())

    def in_process(call, case):
        if case[-1].mode == "graph":
            assert written()["rows"][0]["ms"] == 1.0 and written()["torch"] == torch.__version__
            monkeypatch.setitem(gpu_day.LIMITS, "steps", 0)
            raise ZeroDivisionError("division by zero")
        return {"ms": 1.0, "seconds": [0.001], "mfu": None, "peak_gb": None}

    monkeypatch.setattr(gpu_day, "in_process", in_process)
    precision = Precision(torch.bfloat16, "cpu")
    gpu_day.steps(call, (("T", 32, 2, precision, StepChoice(mode)) for mode in modes))
    call.run("http.server", "0")
    errors = [row.get("error") for row in written()["rows"]]
    assert errors == [None, "ZeroDivisionError: division by zero", "no time left", None]
    assert written()["rows"][3]["code"] is None, "stopped"
    assert written()["cut"] == written()["rows"][2:], "what time cut"


def test_the_measured_steps_are_every_way_and_timms(tmp_path, monkeypatch):
    """On a card; the most useful first, what compiles for longest last."""
    call = Call("steps", tmp_path, dry_run=False)
    call.device = torch.device("cuda")
    ways, shapes = list(gpu_day.ways(call)), list(gpu_day.other_shapes(call))
    assert [str(choice) for *_, choice in ways[:2]] == ["eager with sdpa attention", "eager with flash attention"]
    assert {str(choice) for *_, choice in ways} >= {"None", "compile", "autotune"}
    assert {(letter, size, batch) for letter, size, batch, *_ in ways} == {("B", 224, 256)}
    compiled_half = [p for *_, p, choice in ways if choice == StepChoice("compile") and p.half_residual]
    assert [p.dtype for p in compiled_half] == [torch.bfloat16, torch.float16]
    assert {(letter, size, batch) for letter, size, batch, *_ in shapes} == {
        ("B", 224, 64), ("B", 224, 16), ("L", 224, 128), ("B", 384, 64),
    }  # fmt: skip
    assert sum(choice == StepChoice("graph") for *_, choice in shapes) == 8


def test_the_calls_of_a_day_take_45_minutes_by_their_own_limits(capsys):
    assert [*gpu_day.LIMITS] == ["kernels", "data", "steps", "training", "accuracy", "shapes", "sanitizer"]
    assert all(limit + gpu_day.SET_UP_SECONDS <= 600 for limit in gpu_day.LIMITS.values())
    total = sum(gpu_day.LIMITS.values()) + len(gpu_day.LIMITS) * gpu_day.SET_UP_SECONDS
    assert total <= gpu_day.DAY_SECONDS == 2700
    assert f"{total / 60:.1f} minutes" in gpu_day.plan()[-1]
    assert min(gpu_day.LIMITS["steps"], gpu_day.LIMITS["shapes"]) > gpu_day.CASE_SECONDS


CARD = "NVIDIA H100 80GB HBM3"


def test_the_days_speeds_are_one_result_that_report_and_cost_read(tmp_path, monkeypatch, capsys):
    """Two calls add to one file. Cost takes fastft's fastest way with the most images, and the training where it was measured."""
    machine = gpu_day.describe_machine()
    machine.gpu, machine.gpus = CARD, 1
    for module in (gpu_day, gpu_day.suite):
        monkeypatch.setattr(module, "describe_machine", lambda: machine)
    monkeypatch.setattr(gpu_day.suite, "IMAGES", 3)
    seconds = {"eager with sdpa attention": 0.2, "eager with flash attention": 0.16, "None": 0.25, "graph": 0.01}

    def in_process(call, case):
        *_, batch, precision, choice = case
        if str(choice) not in seconds:
            return {"error": "RuntimeError: not here"}
        s = seconds[str(choice)] * (1 if precision.dtype == torch.bfloat16 else 2) * batch / 256
        return {"ms": 1e3 * s, "seconds": [s, s, 1.1 * s], "mfu": 0.2, "peak_gb": 17.0}

    monkeypatch.setattr(gpu_day, "in_process", in_process)
    for name, cases in (("steps", gpu_day.ways), ("shapes", gpu_day.other_shapes)):
        call = Call(name, tmp_path, dry_run=False)
        call.device = torch.device("cuda")
        gpu_day.steps(call, cases(call))
    result = read_result(tmp_path / "gpu-day.json")
    assert [session.command.split()[-1] for session in result.sessions] == ["steps", "shapes"] and not result.quick
    step = result.find("step.train", model="ViT-B/16", size=224, dtype="bfloat16", batch=256)
    assert step is not None
    ours, timm = step.contenders
    assert ours.differences == ["its fastest of 4 ways: eager with flash attention"] and timm.name == "timm"
    assert ours.rounds[0].value == 1600
    measured = Measured.of(result, "gpu-day.json")
    assert measured.gpu is not None
    assert "1,600 images/s" in measured.mfu(load_recipe("final_b16"), measured.gpu).source
    assert main(["cost", "final_b16", "--measured", str(tmp_path / "gpu-day.json")]) == 0
    assert "measured" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "gpu-day.json"), "--out", str(tmp_path / "day.html")]) == 0
    page = (tmp_path / "day.html").read_text()
    assert (
        "every way to compute it" in page and "eager with flash attention" in page and "RuntimeError: not here" in page
    )
    rate = {"kind": "train", "images_per_second": 1234.0, "wait_share": 0.1, "mfu": 0.15}
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [rate, rate, rate])))
    call = Call("data", tmp_path, dry_run=False)
    call.head["card"] = CARD
    gpu_day.report_training(call)
    predicted = json.loads((tmp_path / "data.json").read_text())["rows"][0]["predicted"]
    assert {"fastest", "slowest", "roofline"} <= predicted.keys() and predicted["slowest"] < predicted["roofline"]
    again = Measured.of(read_result(tmp_path / "gpu-day.json"), "gpu-day.json")
    assert "1,234 images/s of fastft bench e2e" in again.mfu(load_recipe("final_b16"), again.gpu).source
    machine.cpu = "another one"
    assert call.result_path.name == "gpu-day-2.json"


def test_the_demo_of_the_day_trains_on_the_card(tmp_path, monkeypatch):
    call = Call("accuracy", tmp_path, dry_run=False)
    call.device = torch.device("cuda")
    monkeypatch.setattr(call, "run", lambda *module: None)
    gpu_day.accuracy(call)
    recipe, demo = load_recipe(tmp_path / "demo.yaml"), load_recipe("demo")
    assert recipe.train.device == "cuda" and demo.train.device == "cpu"
    assert recipe_arch(recipe) == recipe_arch(demo) and recipe.train.log_every == demo.train.log_every


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_needs_nothing_but_these_packages(tmp_path):
    packages = " ".join(required(*ON_MACHINE) | carried() | {"fastft"})
    paths = os.pathsep.join([str(Path(__file__).parent / "hiding"), str(Path.cwd())])
    environment = os.environ | {"PYTHONPATH": paths, "FASTFT_PACKAGES": packages}
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_day.py", "data", "--dry-run", "--out", str(tmp_path)],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    codes = [row["code"] for row in rows if "ran" in row]
    assert codes in ([EXIT_REQUEUE, 0], [0, 0]), (tmp_path / "data.log").read_text()[-3000:]
    assert rows[1]["images_per_second"] > 0
    result = read_result(tmp_path / "gpu-day.json")
    assert {"e2e.train", "loader.eval"} == {m.key for m in result.measures} and result.quick


def test_a_v100_measures_no_emulated_bf16(tmp_path):
    call = Call("steps", tmp_path, dry_run=False)
    call.device, call.has_bf16 = torch.device("cuda"), False
    cases = [*gpu_day.ways(call), *gpu_day.other_shapes(call)]
    assert {precision.dtype for *_, precision, _ in cases} == {torch.float16}
    halves = {case[:3] for case in cases if case[3].half_residual}
    assert halves == {("B", 224, 256), ("B", 224, 64), ("B", 224, 16), ("L", 224, 128), ("B", 384, 64)}


def test_a_step_is_measured_in_a_process_that_ends_with_its_time(tmp_path, monkeypatch):
    case = ("T", 32, 2, Precision(torch.bfloat16, "cpu"), StepChoice("eager"))
    call = Call("steps", tmp_path, dry_run=True)
    assert gpu_day.in_process(call, case)["ms"] > 0
    assert "nothing" in gpu_day.in_process(call, (*case[:4], StepChoice("eager", "nothing")))["error"]
    monkeypatch.setattr(gpu_day, "CASE_SECONDS", 0.5)
    assert gpu_day.in_process(call, case) == {"error": "stopped after 0 s"}


def test_the_commands_of_a_day_can_be_run(tmp_path, monkeypatch):
    """A day on a borrowed card is lost by an option or a file that was renamed since. Nothing is run here."""
    ran: dict[str, list[tuple[str, ...]]] = {name: list(commands) for name, commands in gpu_day.COMMANDS.items()}
    monkeypatch.setattr(gpu_day, "find_images", lambda *_: None)
    monkeypatch.setattr(gpu_day, "Workspace", lambda *_: SimpleNamespace(beton=lambda _: Path("train.beton")))
    for name in ("data", "accuracy"):
        call, ran[name] = Call(name, tmp_path, dry_run=True), []
        monkeypatch.setattr(call, "run", lambda *module, commands=ran[name]: commands.append(module))
        monkeypatch.setattr(gpu_day, "report_training", lambda call: None)
        gpu_day.MEASURED[name](call)
    said = (Path("docs/gpu-day.md").read_text().partition("for call in ")[2]).partition(";")[0]
    assert set(said.split()) == {*gpu_day.COMMANDS, *gpu_day.MEASURED}
    assert said.split() == [
        "kernels",
        "data",
        "steps",
        "training",
        "accuracy",
        "shapes",
        "sanitizer",
    ]  # what says most comes first
    for command in (command for commands in ran.values() for command in commands):
        module, *words = command
        assert find_spec(module) is not None
        assert all(Path(word).is_file() for word in words if word.startswith("tests/"))
        if module == "fastft.cli":
            args, rest = build_parser(words).parse_known_args(words)
            assert rest == [], command
            if args.command == "train":
                recipe = load_recipe(args.recipe, args.overrides)
                assert recipe.data.train == "train.beton"
