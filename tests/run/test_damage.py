"""Damaged checkpoints: each is found, named in one line with the reason, and an older one is used."""

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from beton_tools.base.errors import UserError
from fastft.choose.automatic import resolve
from fastft.cli import main
from fastft.jobs.run import run_recipe
from fastft.machine.distributed import World
from fastft.machine.preempt import SignalGuard
from fastft.recipe import load_recipe
from fastft.run.checkpoint import CHECKSUMS, list_checkpoints
from fastft.run.inputs import open_inputs
from fastft.train.checkpointing import Checkpointing
from fastft.train.setup import build_setup
from fastft.train.step import Step
from tests.train.runs import differing, end, flags, losses, run

Damage = Callable[[Path], None]
STEPS_PER_EPOCH = 6
CHANGES = {"model__drop_path": "0.3", "train__keep_checkpoints": "3"}


def edited(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """state.json with a change; what `change` returns, if anything, takes its place."""

    def damage(path: Path) -> None:
        state = json.loads((path / "state.json").read_text())
        changed = change(state)
        (path / "state.json").write_text(json.dumps(state if changed is None else changed))

    return damage


def without(*keys: str) -> Damage:
    """The last of `keys` removed from the object at the path of the others."""

    def change(state: dict[str, Any]) -> None:
        entry = state
        for key in keys[:-1]:
            entry = entry[key]
        del entry[keys[-1]]

    return edited(change)


def put(*keys: Any) -> Damage:
    """The last of `keys` as the value at the path of the others."""
    *path, last, value = keys

    def change(state: dict[str, Any]) -> None:
        entry = state
        for key in path:
            entry = entry[key]
        entry[last] = value

    return edited(change)


def text(content: str | bytes, name: str = "state.json") -> Damage:
    def damage(path: Path) -> None:
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(path: Path) -> None:
        found = load_file(path / name)
        found = {k: v.clone() for k, v in found.items()}
        change(found)
        save_file(found, path / name)

    return damage


def replaced(name: str, kind: str) -> Damage:
    """A FIFO, a folder, or nothing in the place of a file."""

    def damage(path: Path) -> None:
        (path / name).unlink()
        if kind == "fifo":
            os.mkfifo(path / name)
        elif kind == "folder":
            (path / name).mkdir()

    return damage


def cut(name: str, keep: int) -> Damage:
    def damage(path: Path) -> None:
        (path / name).write_bytes((path / name).read_bytes()[:keep])

    return damage


MOMENT = "head.weight/exp_avg"
NESTED = "[" * 200_000
CASES: dict[str, tuple[Damage, str]] = {
    "no recipe": (without("recipe"), "state.json: Object missing required field recipe"),
    "no progress": (without("progress"), "state.json has no 'progress'"),
    "state is a list": (edited(lambda state: [state]), "state.json: Expected object, got array"),
    "state is deep": (text(NESTED), "recursion"),
    "state has a huge number": (text('{"version": 1, "name": ' + "9" * 5000 + "}"), "limit"),
    "state is a FIFO": (replaced("state.json", "fifo"), "state.json is a FIFO"),
    "state is missing": (replaced("state.json", "nothing"), "no state.json"),
    "arch of zeros": (put("arch", "patch_size", 0), "arch is not an architecture"),
    "arch contradicts itself": (put("arch", "heads", 3), "arch is not an architecture"),
    "negative step": (put("progress", "step", -1), r"Expected int >= 0 - at \$\.progress\.step"),
    "position of another step": (put("progress", "epoch", 1), "progress is epoch 1, step 0"),
    "evaluation of nothing": (put("progress", "evaluations", [{"epoch": 0}]), "an evaluation has no 'raw'"),
    "scaler of another kind": (put("scaler", {"scale": 2.0}), r"missing required field growth_factor - at \$\.scaler"),
    "weights lack one": (tensors("model.safetensors", lambda t: t.pop("head.bias")), "no head.bias"),
    "weights have one more": (
        tensors("model.safetensors", lambda t: t.update(more=torch.zeros(1))), "unknown more"),
    "weights of another shape": (
        tensors("model.safetensors", lambda t: t.update({"head.bias": torch.zeros(3)})), r"is \(3,\)"),
    "weights of another dtype": (
        tensors("ema.safetensors", lambda t: t.update({"head.bias": torch.zeros(2).half()})), "float16"),
    "weights are truncated": (cut("model.safetensors", 1000), ""),
    "weights have a wild header": (text(b"\xff" * 64, "model.safetensors"), ""),
    "no optimiser": (replaced("optimizer.safetensors", "nothing"), "no optimizer.safetensors"),
    "moments lack a parameter": (
        tensors("optimizer.safetensors", lambda t: [t.pop(k) for k in list(t) if k.startswith("head.weight/")]),
        "no head.weight/"),
    "moments of another parameter": (
        tensors("optimizer.safetensors", lambda t: t.update({"tail/exp_avg": torch.zeros(1)})), "unknown tail/"),
    "moments of another shape": (
        tensors("optimizer.safetensors", lambda t: t.update({MOMENT: torch.zeros(2)})), f"{MOMENT} of optimizer"),
    "checksums are deep": (text(NESTED, CHECKSUMS), "recursion"),
    "checksums are a list": (text("[]", CHECKSUMS), "does not match its checksum"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> Path:
    """A finished run that kept three checkpoints: steps 14, 16 and 18."""
    folder = tmp_path_factory.mktemp("finished")
    run(tiny, folder, **CHANGES)
    return folder


def damaged_copy(finished: Path, folder: Path, damage: Damage, checksums: bool = False) -> Path:
    """The run with its newest checkpoint damaged. checksums: whether they stay; else they fit."""
    shutil.copytree(finished, folder)
    newest = list_checkpoints(folder / "checkpoints")[-1]
    damage(newest)
    if not checksums:
        files = (file for file in newest.iterdir() if file.is_file() and file.name != CHECKSUMS)
        (newest / CHECKSUMS).write_text(
            json.dumps({file.name: f"{zlib.crc32(file.read_bytes()):08x}" for file in files})
        )
    return newest


def resume(tiny: dict[str, str], folder: Path) -> str:
    """Continue the run; returns what it printed."""
    console = Console(file=StringIO(), width=500)
    run_recipe(load_recipe("rcp/final_b16.yaml", flags(tiny, folder, **CHANGES)), console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def step(tiny, finished: Path) -> Iterator[Step]:
    """The trained part of the run, into which checkpoints are loaded."""
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, finished, **CHANGES))
    recipe, inputs = open_inputs(recipe)
    recipe = resolve(recipe, inputs.images)
    with ExitStack() as opened:
        world = World(0, 1, 0, torch.device("cpu"))
        yield build_setup(recipe, inputs, finished, world, SignalGuard(), math.inf, opened).step


def restored(folder: Path, step: Step) -> tuple[int, list[str]]:
    """(steps done at the checkpoint that a resume takes, reasons why newer ones are damaged)."""
    world = World(0, 1, 0, torch.device("cpu"))
    checkpoints = Checkpointing(folder / "checkpoints", load_recipe("rcp/final_b16.yaml").train, world)
    progress, _ = checkpoints.restore(step, STEPS_PER_EPOCH, lambda state: None)
    return progress.epoch * STEPS_PER_EPOCH + progress.step, [error.reason for error in checkpoints.damaged]


@pytest.mark.parametrize("case", CASES)
def test_damage_is_noticed_and_an_older_checkpoint_is_used(finished, step, tmp_path, case):
    damage, reason = CASES[case]
    damaged_copy(finished, tmp_path / "run", damage, checksums="checksums" in case)
    position, (found,) = restored(tmp_path / "run", step)
    assert position == 16
    assert re.search(reason, found) and "\n" not in found, found


def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_if_it_were_not(tiny, finished, tmp_path):
    newest = damaged_copy(finished, tmp_path / "run", cut("model.safetensors", 0))
    printed = resume(tiny, tmp_path / "run")
    (line,) = [line for line in printed.splitlines() if "is damaged" in line]
    assert line.startswith(f"{newest.name} is damaged (")
    assert "continuing after step 16 of 18" in printed
    assert newest.with_name(f"damaged-{newest.name}").is_dir()
    assert losses(tmp_path / "run") == losses(finished)
    assert differing(end(tmp_path / "run"), end(finished)) == []


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_one_flipped_bit_is_found(finished, step, tmp_path, name):
    def flip(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        at = data.index(b'"seconds": ') + 11 if name == "state.json" else len(data) - 5
        data[at] ^= 1
        (path / name).write_bytes(data)

    damaged_copy(finished, tmp_path / "run", flip, checksums=True)
    assert restored(tmp_path / "run", step) == (16, [f"{name} does not match its checksum"])


def test_when_every_checkpoint_is_damaged_nothing_is_trained_and_nothing_removed(tiny, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "ema.safetensors").unlink()
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(the newest: no ema\.safetensors\)"):
        resume(tiny, tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_checkpoint_of_another_format_version_is_not_damage(tiny, finished, tmp_path):
    damaged_copy(finished, tmp_path / "run", put("version", 2))
    with pytest.raises(UserError, match=r"has format version 2, expected 1\. Use the fastft version that wrote it"):
        resume(tiny, tmp_path / "run")


# states that agree with themselves, but not with the tensors or the recipe's rules
HOSTILE: dict[str, tuple[Damage, str]] = {
    "absurd width": (put("arch", "width", 1 << 40), "arch|class_embedding"),
    "absurd depth": (put("arch", "layers", 1 << 40), "more than 512 layers|too few tensors"),
    "absurd image": (
        edited(lambda s: s["arch"].update(image_size=1 << 40) or s["recipe"]["model"].update(image_size=1 << 40)),
        "image size"),
    "absurd outputs": (put("recipe", "data", "num_classes", 1 << 40), "num_classes"),
    "large outputs": (put("recipe", "data", "num_classes", 1_000_000), "head"),
    "large image": (
        edited(lambda s: s["arch"].update(image_size=8192) or s["recipe"]["model"].update(image_size=8192)),
        "more than 128 patches|positional_embedding"),
    "other image sizes": (put("arch", "image_size", 64), "different image sizes"),
    "more classes than outputs": (put("classes", list("abc")), "more classes"),
    "unknown option": (put("recipe", "optim", "speed", 3), "unknown option"),
    "option of another kind": (put("recipe", "optim", "lr", {"a": [1]}), "optim.lr"),
}  # fmt: skip


@pytest.mark.parametrize("case", ["no recipe", "state is a FIFO", "arch of zeros", "checksums are a list", *HOSTILE])
def test_commands_that_read_a_damaged_checkpoint_print_one_line(finished, tmp_path, case, capsys):
    damage, reason = (CASES | HOSTILE)[case]
    newest = damaged_copy(finished, tmp_path / "run", damage, checksums="checksums" in case)
    code = main(["eval", str(newest), "--device=cpu"])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith("fastft eval: "), error
    assert re.search(reason, error), error
