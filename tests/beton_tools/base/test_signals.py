"""Signals end the commands with one line and exit code 128 + n; a conversion continues after each of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beton_tools.base.signals import (
    STOP_SIGNALS,
    StoppedBySignal,
    describe_stop,
    exit_code,
    imports_of,
    raise_on_stop_signals,
)
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton

SIGNALS = [signal.SIGINT, *STOP_SIGNALS]
EACH_SIGNAL = [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in STOP_SIGNALS)]

PAGE = 1 << 16
# `fastft convert folder`, with small pages, that prints "ready" after 21 images and then waits
CONVERT = f"""
import contextlib, dataclasses, sys, time
from fastft.cli import cmd_convert, main
options_of = cmd_convert._options_of
cmd_convert._options_of = lambda args: dataclasses.replace(options_of(args), page_size={PAGE})
def show(done, total, skipped):
    if done == 21:
        print("ready", flush=True)
        for _ in range(int(20 * wait)):  # a signal that arrives just before a sleep does not end it
            time.sleep(0.05)
@contextlib.contextmanager
def progress(title):
    yield show
cmd_convert.progress = progress
wait = float(sys.argv[1])
sys.exit(main(["convert", "folder", "--data", sys.argv[2], "--out", sys.argv[3], "--workers", "2"]))
"""
# `beton verify` that prints "ready" at the first image and then takes a second for each
VERIFY = """
import sys, time
from beton_tools import cli
from beton_tools.inspect import verify
def check(*_):
    print("ready\\n", end="", flush=True)  # one write: two threads are here at once
    time.sleep(1)
    return "", True
verify._check_jpeg, verify._CHUNK = check, 1
sys.exit(cli.main(["verify", sys.argv[1], "--workers", "2"]))
"""
Popen = subprocess.Popen


def start(*command: object, before: Callable[[], None] | None = None, **environment: str) -> "Popen[str]":
    """A process, once it has printed "ready"."""
    child = Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,
        env=os.environ | environment,
    )
    if child.stdout.readline() != "ready\n":
        raise AssertionError(child.communicate()[1])
    return child


def check_end(child: "Popen[str]", number: int, *commands: str, then: str = "") -> str:
    """The process ends with 128 + n and one line, which begins with one of the commands. Returns its output."""
    output, errors = child.communicate(timeout=60)
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    assert errors in {f"{command}: {what}{then}\n" for command in commands}
    assert child.returncode == 128 + number
    return output


@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGTERM, False), *(pytest.param(n, group, marks=pytest.mark.slow) for n, group in (
        *((n, False) for n in SIGNALS if n != signal.SIGTERM), (signal.SIGINT, True), (signal.SIGTERM, True),
    ))],
    ids=str,
)  # fmt: skip
def test_a_signal_ends_a_conversion_with_one_line_and_the_next_run_continues(photo_folder, tmp_path, number, to_group):
    out, whole = tmp_path / "photos.beton", tmp_path / "whole.beton"
    child = start("-c", CONVERT, 600, photo_folder, out)
    (os.killpg if to_group else os.kill)(child.pid, number)
    check_end(child, number, "fastft convert", then=". The same command continues the conversion")
    assert not out.exists()
    assert out.with_name("photos.beton.part.journal").exists()
    options, done = WriteOptions(workers=0, page_size=PAGE), []
    write_beton(out, open_source(photo_folder), options, lambda images, *_: done.append(images))
    assert done[0] > 0
    write_beton(whole, open_source(photo_folder), options)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("number", EACH_SIGNAL, ids=str)
def test_a_signal_ends_beton_with_one_line_without_finishing_the_queue(photo_beton, number):
    child = start("-c", VERIFY, photo_beton)
    os.kill(child.pid, number)
    assert check_end(child, number, "beton verify").count("ready") < 12  # of 24 images


# a program that is interrupted: its exit handlers run, but it is not dismantled, which takes seconds with Numba and torch
INTERRUPTED = """
import atexit, builtins, sys
class Last:
    def __del__(self):
        print("dismantled", flush=True)
builtins.last = Last()
atexit.register(print, "exit handler")
import {package}.cli as cli
def interrupt(args):
    raise KeyboardInterrupt
{patch}
sys.argv = {argv}
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("package", "patch", "argv"),
    [
        ("beton_tools", "cli._run_info = interrupt", ["beton", "info", "x.beton"]),
        ("fastft", "from fastft.cli import cmd_recipes; cmd_recipes.Recipes.run = interrupt", ["fastft", "recipes"]),
    ],
)
def test_an_interrupted_program_ends_without_being_dismantled(package, patch, argv):
    code = INTERRUPTED.format(package=package, patch=patch, argv=argv)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "exit handler\n"), ended.stderr
    assert ended.stderr == f"{' '.join(argv[:2])}: interrupted\n"


@pytest.mark.slow
def test_ctrl_c_ends_a_conversion_and_all_its_processes_in_two_seconds(photo_folder, tmp_path):
    """They took up to 11 s, in which they also kept the terminal's output open."""
    many = tmp_path / "many"
    for copy in range(300):
        shutil.copytree(photo_folder, many / str(copy))
    command = [sys.executable, "-m", "fastft.cli", "convert", "folder", "--data", many, "--out", tmp_path / "o.beton"]
    child = Popen([*command, "--workers", "2", "--reencode"], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "o.beton.part").exists() or (tmp_path / "o.beton.part").stat().st_size < 1 << 20:
        assert child.poll() is None
        time.sleep(0.05)
    began = time.monotonic()
    os.killpg(child.pid, signal.SIGINT)
    check_end(child, signal.SIGINT, "fastft convert", then=". The same command continues the conversion")
    assert time.monotonic() - began < 2


# a module that is imported by both programs, in place of the real one
SLOW_MODULE = "import time\nprint('ready', flush=True)\nfor _ in range(12_000):\n    time.sleep(0.05)\n"


@pytest.mark.parametrize("number", EACH_SIGNAL, ids=str)
@pytest.mark.parametrize(
    "program", ["beton --help", "fastft options", pytest.param("-m fastft.cli options", marks=pytest.mark.slow)]
)
def test_a_signal_during_the_imports_is_one_line(tmp_path, program, number):
    (tmp_path / ("numpy.py" if program.startswith("beton") else "yaml.py")).write_text(SLOW_MODULE)
    *command, argument = program.split()
    shown = "beton" if command == ["beton"] else "fastft"
    if command in (["beton"], ["fastft"]):  # as pip's console scripts
        package = {"beton": "beton_tools", "fastft": "fastft"}[command[0]]
        (tmp_path / command[0]).write_text(f"import sys\nfrom {package}.cli import main\nsys.exit(main())\n")
        command = [str(tmp_path / command[0])]
    root = Path(__file__).parents[3]
    child = start(*command, argument, PYTHONPATH=f"{tmp_path}:{root}")
    os.kill(child.pid, number)
    check_end(child, number, shown, f"{shown} options")


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_worker_that_runs_the_program_again_ends_silently(tmp_path, is_worker):
    """multiprocessing runs the main script in its workers, which the parent may end meanwhile."""
    script = tmp_path / "beton"
    script.write_text(
        "import signal\nfrom beton_tools.base.signals import imports_of\nwith imports_of('beton'):\n"
        "    print(callable(signal.getsignal(signal.SIGTERM)))\n"
    )
    worker = "multiprocessing.current_process()._inheriting = True;" if is_worker else ""
    start = (
        f"import multiprocessing, runpy, sys; sys.argv[:] = [{str(script)!r}];"
        f"{worker}runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert run.stdout.strip() == str(not is_worker), run.stderr


def test_handlers_are_restored_and_those_of_others_kept():
    def other(*_: object) -> None: ...

    before = [signal.getsignal(number) for number in SIGNALS]
    previous = signal.signal(signal.SIGUSR1, other)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
    try:
        with pytest.raises(StoppedBySignal) as caught, raise_on_stop_signals("beton verify"):
            assert signal.getsignal(signal.SIGUSR1) is other
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert describe_stop(caught.value) == "stopped by SIGTERM"
        assert exit_code(caught.value) == 143
        assert exit_code(KeyboardInterrupt()) == 130
    finally:
        signal.signal(signal.SIGUSR1, previous)
        signal.signal(signal.SIGHUP, hangup)
    with imports_of("beton"):  # not started as this program
        assert [signal.getsignal(number) for number in SIGNALS] == before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_stop_that_python_had_to_ignore_ends_the_process():
    code = """
import os, signal, time
from beton_tools.base.signals import raise_on_stop_signals
class InDestructor:
    def __del__(self): signal.raise_signal(signal.SIGTERM)
with raise_on_stop_signals("beton verify"):
    lost = InDestructor()
    del lost
    time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "beton verify: stopped by SIGTERM\n")


def test_an_error_that_a_library_makes_of_a_stop_counts_as_the_stop():
    with pytest.raises(StoppedBySignal), raise_on_stop_signals("beton verify"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("no compiled object yet") from None
    with pytest.raises(RuntimeError), raise_on_stop_signals("beton verify"):
        raise RuntimeError("without a signal")
