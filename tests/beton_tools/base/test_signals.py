"""Signals end the commands with one line and exit code 128 + n; a conversion continues after each of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beton_tools.base.signals import (
    StoppedBySignal,
    describe_stop,
    exit_code,
    imports_of,
    raise_on_stop_signals,
)
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]

PAGE = 1 << 16
# `fastft convert folder`, with small pages, that prints "ready" after 21 images and then waits
CONVERT = f"""
import contextlib, dataclasses, sys, time
import beton_tools.base.progress_bar
from fastft.cli import conversion, main
options_of = conversion.options_of
conversion.options_of = lambda args: dataclasses.replace(options_of(args), page_size={PAGE})
def show(done, total, skipped):
    if done == 21:
        print("ready", flush=True)
        time.sleep(wait)
@contextlib.contextmanager
def progress(title):
    yield show
beton_tools.base.progress_bar.progress = progress
wait = float(sys.argv[1])
sys.exit(main(["convert", "folder", "--data", sys.argv[2], "--out", sys.argv[3], "--workers", "2"]))
"""
# `beton verify` that prints "ready" at the first image and then takes a second for each
VERIFY = """
import sys, time
from beton_tools import cli, verify
def check(*_):
    print("ready\\n", end="", flush=True)  # one write: two threads are here at once
    time.sleep(1)
    return "", True
verify._check_jpeg, verify._CHUNK = check, 1
sys.exit(cli.main(["verify", sys.argv[1], "--workers", "2"]))
"""
# calls the handler of SIGINT once at each event of a trace of the main thread in the pool's and the locks' code
AT_EACH_EVENT = """
import signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from beton_tools import signals
signals._RETRY_SECONDS = 0.002
traced = ("concurrent.futures.thread", "concurrent.futures._base", "queue", "threading")
def interrupt_at(number):
    def trace(frame, event, _):
        nonlocal number
        if frame.f_globals.get("__name__") not in traced:
            return None
        number -= 1
        if number == 0:
            sys.settrace(None)
            each = frame
            while each is not None:
                each.f_trace, each = None, each.f_back
            for one in (signal.SIGINT, signal.SIGTERM):  # at once
                signal.getsignal(one)(one, frame)
        return trace
    with signals.raise_on_stop_signals():
        with ThreadPoolExecutor(2) as pool:
            sys.settrace(trace)
            list(pool.map(lambda _: time.sleep(0.001), range(4)))
            sys.settrace(None)
            if number > 0:
                return False
            for _ in range(1000):
                time.sleep(0.001)
    raise AssertionError(f"the signal at event {number} was lost")
number = 0
try:
    while True:
        number += 1
        try:
            if not interrupt_at(number):
                break
        except signals.StoppedBySignal:
            pass
finally:
    print(number)
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
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        raise AssertionError(child.communicate()[1])
    return child


@pytest.mark.parametrize(
    ("number", "to_group"),
    [*((number, False) for number in SIGNALS), (signal.SIGINT, True), (signal.SIGTERM, True)],
    ids=str,
)
def test_a_signal_ends_a_conversion_with_one_line_and_the_next_run_continues(
    photo_folder: Path, tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    out, whole = tmp_path / "photos.beton", tmp_path / "whole.beton"
    child = start("-c", CONVERT, 600, photo_folder, out)
    (os.killpg if to_group else os.kill)(child.pid, number)
    _, errors = child.communicate(timeout=60)
    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert errors == f"fastft convert: {what}; the same command continues the conversion\n"
    assert child.returncode == 128 + number
    assert not out.exists()
    assert out.with_name("photos.beton.part.journal").exists()
    options, done = WriteOptions(workers=0, page_size=PAGE), []
    write_beton(out, open_source(photo_folder), options, lambda images, *_: done.append(images))
    assert done[0] > 0
    write_beton(whole, open_source(photo_folder), options)
    assert out.read_bytes() == whole.read_bytes()


def test_a_conversion_under_nohup_survives_hangup(photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos.beton"
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    child = start("-c", CONVERT, 1, photo_folder, out, before=ignore)
    os.killpg(child.pid, signal.SIGHUP)
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert out.exists()


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_a_signal_ends_beton_with_one_line_without_finishing_the_queue(
    photo_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "photos.beton"
    write_beton(path, open_source(photo_folder), WriteOptions(workers=0))
    child = start("-c", VERIFY, path)
    os.kill(child.pid, number)
    output, errors = child.communicate(timeout=60)
    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert errors == f"beton verify: {what}\n"
    assert child.returncode == 128 + number
    assert output.count("ready") < 12  # of 24 images


# a module that is imported by both programs, in place of the real one
SLOW_MODULE = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


@pytest.mark.parametrize("number", SIGNALS, ids=str)
@pytest.mark.parametrize("program", ["beton --help", "fastft options", "-m fastft.cli options"])
def test_a_signal_during_the_imports_is_one_line(
    tmp_path: Path, program: str, number: signal.Signals
) -> None:
    (tmp_path / "yaml.py").write_text(SLOW_MODULE)
    *command, argument = program.split()
    shown = "beton" if command == ["beton"] else "fastft options"
    if command in (["beton"], ["fastft"]):  # as pip's console scripts
        package = {"beton": "beton_tools", "fastft": "fastft"}[command[0]]
        (tmp_path / command[0]).write_text(f"import sys\nfrom {package}.cli import main\nsys.exit(main())\n")
        command = [str(tmp_path / command[0])]
    root = Path(__file__).parents[3]
    child = start(*command, argument, PYTHONPATH=f"{tmp_path}:{root}")
    os.kill(child.pid, number)
    _, errors = child.communicate(timeout=60)
    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert errors == f"{shown}: {what}\n"
    assert child.returncode == 128 + number


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_worker_that_runs_the_program_again_ends_silently(tmp_path: Path, is_worker: bool) -> None:
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


def test_handlers_are_restored_and_those_of_others_kept() -> None:
    def other(*_: object) -> None: ...

    before = [signal.getsignal(number) for number in SIGNALS]
    previous = signal.signal(signal.SIGUSR1, other)
    try:
        with pytest.raises(StoppedBySignal) as caught, raise_on_stop_signals():
            assert signal.getsignal(signal.SIGUSR1) is other
            signal.raise_signal(signal.SIGTERM)
        assert describe_stop(caught.value) == "stopped by SIGTERM"
        assert exit_code(caught.value) == 143
        assert exit_code(KeyboardInterrupt()) == 130
    finally:
        signal.signal(signal.SIGUSR1, previous)
    with imports_of("beton"):  # not started as this program
        assert [signal.getsignal(number) for number in SIGNALS] == before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_while_the_main_thread_takes_a_lock_does_not_leave_it_locked() -> None:
    """Python runs handlers between `Condition.__enter__` and the block of its `with`."""
    run = subprocess.run([sys.executable, "-c", AT_EACH_EVENT], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100


@pytest.mark.parametrize("seconds", [0.05, 0.1, 60])
def test_a_signal_ends_a_wait_that_polls(seconds: float) -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(StoppedBySignal), raise_on_stop_signals():
        threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM)).start()
        while not never.wait(seconds) and time.monotonic() < began + 60:
            pass
    assert time.monotonic() < began + 5


class InDestructor:
    """Sends a signal from its destructor, whose exceptions Python ignores."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_a_stop_that_python_had_to_ignore_is_raised_again(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StoppedBySignal) as caught, raise_on_stop_signals():
        lost = InDestructor(number)
        del lost
        time.sleep(60)
    assert caught.value.number == number
    assert capsys.readouterr().err == ""


def test_an_error_after_an_ignored_stop_counts_as_the_stop() -> None:
    with pytest.raises(StoppedBySignal), raise_on_stop_signals():
        lost = InDestructor(signal.SIGTERM)
        del lost
        raise RuntimeError("no compiled object yet")
    with pytest.raises(RuntimeError), raise_on_stop_signals():
        raise RuntimeError("without a signal")


def test_other_ignored_exceptions_are_reported_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_type))
    with raise_on_stop_signals():
        broken = Broken()
        del broken
    assert reported == [ValueError]


def test_another_thread_may_run_commands() -> None:
    entered = []

    def enter() -> None:
        with raise_on_stop_signals():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered
