"""A checkpoint is complete under its name or absent; damage is found when it is read; nothing is unpickled."""

import errno
import json
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import asdict

import pytest
import torch
from safetensors import SafetensorError

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import Content
from fastft.run.checkpoint import (
    CHECKSUMS,
    Damaged,
    State,
    find_checkpoint,
    keep_only,
    list_checkpoints,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from fastft.run.run_directory import load_run
from tests.model.test_tower import small_arch

STATE = State(
    name="r", recipe={}, arch=asdict(small_arch()), classes=["a", "b"], class_counts=[1, 1],
    data=Content(num_samples=2, files=[], identities=[]),
)  # fmt: skip
WEIGHTS = {"model": {"w": torch.zeros(100)}}


def test_a_checkpoint_without_checksums_is_damaged(tmp_path):
    write_checkpoint(tmp_path / "step-00000001", STATE, WEIGHTS)
    assert torch.equal(read_checkpoint(tmp_path / "step-00000001").tensors["model"]["w"], torch.zeros(100))
    (tmp_path / "step-00000001" / CHECKSUMS).unlink()
    with pytest.raises(Damaged, match=r"no checksums\.json"):
        read_checkpoint(tmp_path / "step-00000001")


def test_an_empty_scaler_is_none(tmp_path):
    """Runs in fp32 and bf16 wrote it at first."""
    path = tmp_path / "step-00000001"
    write_checkpoint(path, STATE, WEIGHTS)
    text = json.dumps(json.loads((path / "state.json").read_text()) | {"scaler": {}})
    (path / "state.json").write_text(text)
    checksums = json.loads((path / CHECKSUMS).read_text()) | {"state.json": f"{zlib.crc32(text.encode()):08x}"}
    (path / CHECKSUMS).write_text(json.dumps(checksums))
    assert read_checkpoint(path).state.scaler is None


def test_kill_9_while_writing_leaves_the_older_checkpoint(tmp_path):
    script = (
        "import sys, torch, pathlib\n"
        "from fastft.run.checkpoint import Position, State, prune, write_checkpoint\n"
        "from tests.run.test_checkpoint import STATE\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for i in range(100000):\n"
        "    t = torch.full((200_000,), float(i))\n"
        "    state = State.of(STATE, progress=Position(step=i))\n"
        "    write_checkpoint(folder / f'step-{i:08}', state, {'model': {'w': t}, 'ema': {'w': t}})\n"
        "    prune(folder, 2)\n"
        "    print(i, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    for _ in range(3):
        writer.stdout.readline()
    time.sleep(0.013)
    writer.kill()
    writer.communicate()
    found = list_checkpoints(tmp_path)
    assert found
    for path in found:
        checkpoint = read_checkpoint(path, ("model", "ema"))
        want = torch.full((200_000,), float(checkpoint.state.progress.step))
        assert torch.equal(checkpoint.tensors["model"]["w"], want)
        assert torch.equal(checkpoint.tensors["ema"]["w"], want)


def test_the_same_step_written_again_is_there_before_the_old_one_is_deleted(tmp_path, monkeypatch):
    path = tmp_path / "step-00000001"
    write_checkpoint(path, STATE, WEIGHTS)
    seen, delete = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: (seen.append(list_checkpoints(tmp_path)), delete(*a, **k)))
    write_checkpoint(path, STATE, WEIGHTS)
    assert seen and all(found == [path] for found in seen)


def test_pruning_keeps_the_newest_and_removes_remains(tmp_path):
    for i in range(4):
        write_checkpoint(tmp_path / f"step-{i:08}", STATE, WEIGHTS)
    (tmp_path / ".partial-step-00000009").mkdir()
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_copy_beside_the_checkpoints_is_not_taken_for_one(tmp_path):
    for name in ("step-00000010", "step-100000000", "step-00000012.bak", "damaged-step-00000011"):
        (tmp_path / name).mkdir()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000010", "step-100000000"]


def test_a_run_means_its_best_checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for name in ("step-00000010", "best-0003"):
        write_checkpoint(folder / name, STATE, WEIGHTS)
    assert find_checkpoint(tmp_path / "run").name == "best-0003"
    assert find_checkpoint(folder / "step-00000010").name == "step-00000010"
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "nowhere")
    for read in (find_checkpoint, load_run):
        with pytest.raises(UserError, match=f"{tmp_path} contains runs. Give one of them: {tmp_path / 'run'}$"):
            read(tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("fastft.model.weight_files.save_file", full)
    with pytest.raises(
        UserError, match=r"cannot be written \(.*No space left on device\). Correct this or free some space"
    ):
        write_checkpoint(tmp_path / "step-00000001", STATE, WEIGHTS)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_that_cannot_be_removed_is_named_by_its_reason(tmp_path, monkeypatch):
    """Permissions were taken away: the reason is not that the folder exists."""
    (tmp_path / ".partial-step-00000001").mkdir()

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.rmdir", denied)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        write_checkpoint(tmp_path / "step-00000001", STATE, WEIGHTS)


def test_the_best_checkpoint_replaces_all_others_also_later_ones(tmp_path):
    for name in ("best-0029", "best-0005", "step-00000010"):
        write_checkpoint(tmp_path / name, STATE, WEIGHTS)
    keep_only(tmp_path / "best-0005")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-0005", "step-00000010"]


def test_a_disk_that_does_not_answer_is_not_damage(tmp_path, monkeypatch):
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    path = tmp_path / "step-00000001"
    write_checkpoint(path, STATE, WEIGHTS)
    monkeypatch.setattr("fastft.run.checkpoint.load_file", stale)
    with pytest.raises(UserError, match=r"cannot be read .*Stale file handle") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, Damaged)
