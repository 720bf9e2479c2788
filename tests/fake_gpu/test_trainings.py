"""Whole trainings on a card that only answers: control flow, memory, and what is said where a model does not fit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastft.bench.dataset import ORIGINAL, Workspace, find_images
from tests.fake_gpu.card import COUNTS
from tests.train.runs import logged, result_of

IMAGES, BATCH = 64, 16
SMALL_TOWER = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8, "head_width": 64},
}


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return Workspace(folder, find_images(None, folder, IMAGES)).beton(ORIGINAL)


def train(
    beton: Path, folder: Path, *options: str, processes: int = 1, **card: str
) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    return subprocess.run(
        [
            sys.executable, "-m", *launcher, "tests.fake_gpu.run_training", "final_b16",
            f"--data.train={beton}", f"--data.val={beton}", "--model.weights=random", f"--optim.batch_size={BATCH}",
            "--schedule.warmup_epochs=0", "--train.log_every=1", f"--train.run_dir={folder / 'run'}", *options,
        ],
        env=os.environ | card, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def asked_of_steps(output: str) -> list[dict[str, int]]:
    lines = re.findall(r"^step (.*work=\d+)$", output, re.MULTILINE)
    return [{name: int(count) for name, count in (word.split("=") for word in line.split())} for line in lines]


def test_a_training_stops_evaluates_and_continues(beton, tmp_path):
    """Measures its candidates, trains, evaluates and writes checkpoints; the same command with more epochs resumes."""
    first = train(beton, tmp_path, "--schedule.epochs=4", "--schedule.stop_epoch=2", "--train.eval_every=1")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "measuring how to compute a step" in first.stdout
    second = train(beton, tmp_path, "--schedule.epochs=4", "--train.eval_every=1")
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    folder = tmp_path / "run"  # whose lines are not checked: a norm may be negative here
    assert [line["step"] for line in logged(folder, "train")] == list(range(1, 4 * IMAGES // BATCH + 1))
    assert len(logged(folder, "eval")) == len(result_of(folder)["evaluations"]) == 4
    start, resumed = logged(folder, "start")
    tried = {trial["attention"]: trial["reason"] for trial in start["step_trials"] if trial["mode"] == "eager"}
    assert tried["flash"] is tried["batched"] is tried["efficient"] is None and "cuDNN" in tried["cudnn"]
    others = {trial["mode"]: trial["reason"] for trial in start["step_trials"] if trial["mode"] != "eager"}
    assert others == {"graph": None, "compile": None}
    assert resumed["step_origin"] == "checkpoint" and not (folder / "step_trials.json").exists()


def test_steady_steps_of_a_training_wait_for_nothing_and_allocate_nothing(beton, tmp_path):
    """A logged step reads the loss, so only the last one is logged. Waiting for events is left to the loader's thread."""
    done = train(
        beton, tmp_path, "--schedule.epochs=4", "--train.eval_every=4", "--train.log_every=1000", "--train.step=eager",
        "--train.micro_batch=16",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    steps = [
        asked for k, asked in enumerate(asked_of_steps(done.stdout)) if (k + 4) % 4
    ]  # each epoch's last one is logged
    assert len(steps) >= 8 and set(COUNTS) < steps[0].keys()
    for asked in steps:
        assert asked["waits"] == asked["refused"] == 0, asked
        assert asked["work"] < 1150, asked
    assert sum(asked["allocations"] for asked in steps[4:]) == 0, steps


@pytest.mark.parametrize(
    ("options", "card", "line"),
    [
        (["--model.arch=ViT-L-14-quickgelu"], {"FAKE_GIB": "5"},
         r"ViT-L-14-quickgelu does not fit: weights, .* take 6\.\d GB, and this GPU has 5\.4 GB. fastft does not shard"),
        ([], {"FAKE_GIB": "8", "FAKE_TAKEN_MIB": "7700"},
         r"out of memory while the model is set up: it takes 1\.7 GB .* of 8\.6 GB are free on this GPU. End other programs"),
        (["--model.arch=ViT-L-14-quickgelu"], {"FAKE_GIB": "6"}, r"does not fit in this GPU's memory"),
        (["--train.micro_batch=16", "--model.image_size=448"], {"FAKE_GIB": "3"}, r"Set a lower --train\.micro_batch"),
    ],
    ids=["before the weights", "while set up", "not one image", "in a step"],
)  # fmt: skip
def test_out_of_memory_is_one_line(beton, tmp_path, options, card, line):
    done = train(beton, tmp_path, "--schedule.epochs=1", "--train.step=eager", *options, **card)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(line, " ".join(done.stderr.split())), done.stderr
    assert "Traceback" not in done.stderr


def test_the_micro_batch_follows_the_memory_of_the_card(beton, tmp_path):
    """A card of 16 GiB and compute capability 7.5 trains half-precision weights, with fewer images at a time."""
    options = ("--schedule.epochs=1", "--schedule.stop_epoch=1", "--train.step=eager", "--optim.batch_size=64")
    sizes = {}
    for gib in (3, 16):
        done = train(beton, tmp_path / str(gib), *options, FAKE_CC="75", FAKE_GIB=str(gib))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (parts,) = re.findall(r"batch 64(?: = \d+ micro-batches x (\d+) images)?,", " ".join(done.stdout.split()))
        sizes[gib] = int(parts or 64)
        assert logged(tmp_path / str(gib) / "run", "start")[0]["precision"] == "float16"
    assert sizes[3] < sizes[16] == 64


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_eight_cards_train_as_processes_of_one_machine(beton, tmp_path, mode):
    """With a small tower; gloo in NCCL's place."""
    (tmp_path / "arch.json").write_text(json.dumps(SMALL_TOWER))
    done = train(
        beton, tmp_path, "--schedule.epochs=2", "--train.eval_every=2", f"--train.step={mode}", "--train.micro_batch=2",
        f"--model.arch={tmp_path / 'arch.json'}", "--model.image_size=32",
        processes=8, FAKE_GPUS="8", FAKE_GIB="16", FASTFT_GLOO="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (start,) = logged(tmp_path / "run", "start")
    assert start["world_size"] == 8 and start["step_mode"] == mode
    assert len(result_of(tmp_path / "run")["evaluations"]) == 1
