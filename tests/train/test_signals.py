"""Signals: training saves and exits with 75, after Ctrl-C with 130, other commands end with 128 + n; one line each."""

import itertools
import os
import pkgutil
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from beton_tools.base.signals import STOP_SIGNALS
from fastft.cli import main
from fastft.jobs.run import run_recipe
from fastft.machine.exits import EXIT_REQUEUE, Preempted
from fastft.machine.preempt import SignalGuard
from fastft.recipe import load_recipe
from fastft.run.checkpoint import list_checkpoints
from tests.train.runs import differing, end, flags, logged, losses, result_of, run, wait_for

LIKE_WHOLE = {"model__drop_path": "0.3"}
LONG = LIKE_WHOLE | {"schedule__epochs": "20", "train__checkpoint_steps": "0"}


def fastft(*arguments: str, **options) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-m", "fastft.cli", *arguments], **options)


def send(monkeypatch: pytest.MonkeyPatch, number: int, target: str, call: int = 1) -> None:
    """The signal arrives at this call of the function."""
    module, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(module)
    whole, calls = getattr(owner, name), itertools.count(1)

    def signalled(*args, **kwargs):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalled)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in STOP_SIGNALS if n != signal.SIGTERM)],
    ids=str,
)
def test_training_saves_and_exits_with_75(tiny, whole, tmp_path, number, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        send(patch, number, "fastft.train.step.Step.update", 7)
        assert main(["train", "rcp/final_b16.yaml", *flags(tiny, tmp_path, **LIKE_WHOLE)]) == EXIT_REQUEUE
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "stopped on a signal after step 7" in error
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name == "step-00000007"
    run(tiny, tmp_path, **LIKE_WHOLE)
    assert losses(tmp_path) == losses(whole) and differing(end(tmp_path), end(whole)) == []


@pytest.mark.slow
def test_training_in_a_terminal_that_is_closed_is_saved(tiny, tmp_path):
    """The terminal's process group gets SIGHUP, and writing to the terminal fails from then on."""
    command = [sys.executable, "-m", "fastft.cli", "train", "rcp/final_b16.yaml", *flags(tiny, tmp_path, **LONG)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command)
    try:
        deadline = time.monotonic() + 120
        while len(losses(tmp_path)) < 3:
            assert time.monotonic() < deadline
            os.read(terminal, 1 << 16)
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == EXIT_REQUEUE
    assert list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.slow
def test_training_goes_on_when_the_reader_of_its_output_ends(tiny, tmp_path):
    """fastft train ... | head -1"""
    process = fastft("train", "rcp/final_b16.yaml", *flags(tiny, tmp_path), stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=120) == 0, process.stderr and process.stderr.read()
    assert losses(tmp_path)[-1][0] == 18


def test_ctrl_c_in_an_evaluation_saves_and_says_how_to_continue(tiny, whole, tmp_path, monkeypatch, capfd):
    command = ["train", "rcp/final_b16.yaml", *flags(tiny, tmp_path, **LIKE_WHOLE)]
    with monkeypatch.context() as patch:
        send(patch, signal.SIGINT, "fastft.evaluate.scores._image_rows")
        assert main(command) == 130
    assert not logged(tmp_path, "eval")  # the next start evaluates
    announced, said = capfd.readouterr().err.strip().splitlines()
    said, _, again = said.partition("continues the run: ")
    assert said == "fastft train: interrupted. A checkpoint of step 6 is written. The same command "
    assert "Ctrl-C again ends at once" in announced and shlex.split(again) == ["fastft", *command]
    result = run(tiny, tmp_path, **LIKE_WHOLE)
    assert result["evaluations"] == result_of(whole)["evaluations"]
    assert differing(end(tmp_path), end(whole)) == []


@pytest.mark.parametrize(
    ("place", "number", "error"),
    [("train.setup.build_model", signal.SIGINT, KeyboardInterrupt), ("evaluate.scores.forward", signal.SIGINT, KeyboardInterrupt),
     ("evaluate.scores.forward", signal.SIGTERM, Preempted)],
)  # fmt: skip
def test_a_signal_before_the_first_step_ends_without_a_checkpoint(tiny, tmp_path, monkeypatch, place, number, error):
    send(monkeypatch, number, f"fastft.{place}")
    with pytest.raises(error) as stop:
        run(tiny, tmp_path, model__head_init="probe")
    assert (error is Preempted or stop.value.args == ()) and not list_checkpoints(tmp_path / "checkpoints")


def test_a_run_that_starts_anew_over_an_older_log_says_so(tiny, tmp_path, capsys):
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path, schedule__epochs="1", schedule__warmup_epochs="0"))
    for expected in (False, True):
        run_recipe(recipe)
        assert ("has no checkpoint, so the run starts anew" in capsys.readouterr().out) == expected
        shutil.rmtree(tmp_path / "checkpoints")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_wait_for_data(tiny, tmp_path):
    """The loader stands still, as when a network disk does not answer."""
    stuck = (
        "import sys, threading, fastft.data.stage as stage\n"
        "stage.CpuStage.run = lambda *arguments: (print('stuck', flush=True), threading.Event().wait(20))\n"
        "from fastft.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", stuck, "train", "rcp/final_b16.yaml", *flags(tiny, tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stdout.readline().strip() != "stuck":
        assert process.poll() is None
    for _ in range(2):  # the first waits for the step, the second ends
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.splitlines()[-1]) == (130, "fastft train: interrupted")


def test_the_first_interrupt_is_deferred_and_the_second_raises():
    with SignalGuard() as guard:
        guard.defer_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.requested and guard.interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not guard.requested


COMMANDS = {  # a function that is called in the middle of the command, and its arguments
    "eval": ("data.stage.CpuStage.run", ["RUN", "--device=cpu"]),
    "report": ("data.stage.CpuStage.run", ["RUN", "--mistakes=always", "--out=OUT.html"]),
    "export": ("export.command.model_card", ["RUN", "--format=safetensors", "--out=OUT.safetensors"]),
}


@pytest.mark.parametrize("number", [signal.SIGINT, *STOP_SIGNALS], ids=str)
@pytest.mark.parametrize("command", COMMANDS)
def test_other_commands_end_with_one_line_and_leave_nothing_half_written(
    whole, tmp_path, monkeypatch, capfd, command, number
):
    function, arguments = COMMANDS[command]
    places = [a.replace("RUN", str(whole)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    send(monkeypatch, number, f"fastft.{function}")
    assert main([command, *places]) == 128 + number
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    assert capfd.readouterr().err == f"fastft {command}: {what}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_that_trains_exits_with_75_and_continues(tiny, tmp_path):
    options = [f for f in flags(tiny, tmp_path, **LONG) if not f.startswith("--train.run_dir")]
    command = ["sweep", "rcp/tables/02_lr.yaml", "--out", str(tmp_path), *options]
    process = fastft(*command)
    logs = lambda: [losses(folder) for folder in (tmp_path / "runs").glob("*")]  # noqa: E731
    wait_for(lambda: any(len(log) >= 3 for log in logs()), process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    said = [line for line in error.splitlines() if "compiling the code" not in line]  # the first process on a machine
    assert process.returncode == EXIT_REQUEUE and len(said) == 1, error
    (saved,) = [path for run in (tmp_path / "runs").glob("*") for path in list_checkpoints(run / "checkpoints")]
    process = fastft(*command)
    wait_for(lambda: any(len(log) > int(saved.name[-8:]) for log in logs()), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "fastft sweep: interrupted. A checkpoint of step" in error
