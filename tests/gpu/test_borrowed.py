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

import torch
from packaging.requirements import Requirement

from benchmarks import gpu_day
from benchmarks.gpu_day import Call
from fastft.cli import build_parser
from fastft.machine.precision import Precision
from fastft.recipe import load_recipe
from fastft.train.step import StepChoice

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
    lacking = required("fastft") - required(*ON_MACHINE) - {"fastft"}
    assert lacking <= carried() <= required("fastft")  # NumPy is there, but numba-cuda needs one below 2.5


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
    assert gpu_day.COMMAND_SECONDS <= 600 and gpu_day.CASE_SECONDS == 150, "as docs/gpu-day.md says"
    call, modes = Call("steps", tmp_path, dry_run=True), ("eager", "graph", "compile")

    def written() -> dict:
        return json.loads((tmp_path / "steps.json").read_text())

    def in_process(call, case):
        if case[-1].mode == "graph":
            assert written()["rows"][0]["ms"] == 1.0 and written()["torch"] == torch.__version__
            monkeypatch.setattr(gpu_day, "COMMAND_SECONDS", 0)
            raise ZeroDivisionError("division by zero")
        return {"ms": 1.0}

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


def test_a_v100_measures_no_emulated_bf16(tmp_path):
    call = Call("steps", tmp_path, dry_run=False)
    call.device, call.has_bf16 = torch.device("cuda"), False
    cases = [*gpu_day.ways(call), *gpu_day.other_shapes(call)]
    assert {precision.dtype for *_, precision, _ in cases} == {torch.float16}
    halves = {case[:3] for case in cases if case[3].half_residual}
    assert halves == {("B", 224, 256), ("B", 224, 64), ("B", 224, 16), ("L", 224, 128), ("B", 384, 64)}


def test_a_step_is_measured_in_a_process_that_ends_with_its_time(tmp_path, monkeypatch):
    case = ("T", 32, 2, Precision(torch.bfloat16, "cpu"), StepChoice("eager"))
    call = Call("x", tmp_path, dry_run=True)
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
