"""What a first V100 or H100 may meet, on a card that fails where it is told to: one line, and code 2, or 75 for hardware."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastft.bench.dataset import ORIGINAL, Workspace, find_images
from fastft.machine.exits import EXIT_REQUEUE
from tests.fake_gpu.test_trainings import train

ECC, ILLEGAL, UNSPECIFIED, OLD_DRIVER = "214", "700", "719", "35"
EAGER = ("--schedule.epochs=1", "--train.step=eager", "--train.micro_batch=16")


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return Workspace(folder, find_images(None, folder, 64)).beton(ORIGINAL)


def one_line(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """Return its errors as one line, after checking that they are one message and no traceback."""
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert said.count("error:") <= 1, said
    return said


@pytest.mark.parametrize("command", ["train", "bench", "doctor"])
def test_a_torch_without_code_for_the_card_is_refused_with_the_repair(beton, tmp_path, command):
    card = {"FAKE_CC": "60"}
    if command == "train":
        done = train(beton, tmp_path, *EAGER, **card)
        assert not (tmp_path / "run").exists()
    else:
        words = ["bench", "step", "--quick"] if command == "bench" else ["doctor"]
        done = subprocess.run(
            [sys.executable, "-m", "fastft.cli", *words], env=os.environ | card, capture_output=True, text=True,
            cwd=tmp_path, timeout=500,
        )  # fmt: skip
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == (1 if command == "doctor" else 2), said
    assert re.search(r"was not built for sm_60", said) and "pip install" in said and "Traceback" not in said


def test_a_driver_that_is_too_old_does_not_end_in_a_run_on_the_cpu(beton, tmp_path):
    """A torch whose count of devices fails looks like one on a machine without GPUs."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Tesla V100-SXM2-16GB, 470.57.02'\n")
    smi.chmod(0o755)
    done = train(
        beton, tmp_path, *EAGER, FAKE_COUNT_ERROR=OLD_DRIVER, FASTFT_DEVICES=str(tmp_path / "dev"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )  # fmt: skip
    said = one_line(done, 2)
    assert "Tesla V100-SXM2-16GB with driver 470.57.02, which is too old for torch" in said
    assert not (tmp_path / "run").exists()


def test_more_processes_than_cards_say_how_many_there_are(beton, tmp_path):
    done = train(beton, tmp_path, *EAGER, processes=2, FAKE_GPUS="1", FASTFT_GLOO="1")
    said = " ".join(done.stderr.split())
    assert "process 1 of this node has no GPU (found 1). Lower --nproc-per-node to 1" in said


@pytest.mark.parametrize(
    ("code", "what"), [(ECC, "uncorrectable ECC error"), (UNSPECIFIED, "unspecified launch failure")]
)
def test_a_card_that_fails_in_a_step_is_named_and_exits_with_75(beton, tmp_path, code, what):
    steps = "--schedule.epochs=5"  # 20 steps of about 800 launches
    done = train(beton, tmp_path, *EAGER, steps, FAKE_FAIL_AFTER="6000", FAKE_FAIL_CODE=code)
    said = one_line(done, EXIT_REQUEUE)
    assert "the GPU of process 0 failed: NVIDIA H100" in said and what in said
    assert "The same command continues the run" in said


def test_a_kernel_that_breaks_the_card_while_it_is_measured_is_skipped_by_the_same_command(beton, tmp_path):
    options = ("--schedule.epochs=1", "--train.micro_batch=16")
    done = train(beton, tmp_path, *options, FAKE_FAIL_AFTER="9000", FAKE_FAIL_CODE=ILLEGAL)
    said = one_line(done, EXIT_REQUEUE)
    assert re.search(r"made the GPU unusable .*illegal memory access.*The same command skips it", said), said
    again = train(beton, tmp_path, *options)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
