"""A run is logged to TensorBoard, W&B and MLflow; a resumed run continues the same record."""

import json
import os
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from beton_tools.base.errors import UserError
from fastft.run.metrics_log import RunLog
from fastft.run.tracking import open_tracker
from tests.train.runs import losses, rewind, run, wait_for


@pytest.mark.slow
def test_mlflow_has_the_losses_of_the_log_and_one_run_over_a_resume(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    run(tiny, folder, schedule__stop_epoch="1", train__tracker="mlflow")
    run(tiny, folder, schedule__stop_epoch="2", train__tracker="mlflow")
    identity = json.loads((folder / "mlflow.json").read_text())["id"]
    client = mlflow.MlflowClient()
    history = client.get_metric_history(identity, "train/loss")
    assert [(m.step, m.value) for m in history] == losses(folder)
    found = client.get_run(identity)
    assert found.info.status == "FINISHED" and found.data.params["optim.lr"] == "0.001"


@pytest.mark.slow
def test_wandb_keeps_its_record_in_the_run_directory(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tiny, tmp_path, schedule__stop_epoch="1", train__tracker="wandb")
    first = json.loads((tmp_path / "wandb.json").read_text())["id"]
    run(tiny, tmp_path, schedule__stop_epoch="2", train__tracker="wandb")
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == first
    records = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{first}.wandb"))
    assert records
    # wandb's own process may still be writing when `finish` returns
    wait_for(lambda: all(b"train/loss" in record.read_bytes() for record in records))


def test_a_tracker_that_is_not_installed_is_one_line_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb, which is not installed\. Run pip install wandb"):
        run(tiny, tmp_path / "run", train__tracker="wandb")
    assert not (tmp_path / "run").exists()


class Gone:
    """A tracker whose server has gone."""

    def log(self, values: dict, step: int) -> None:
        raise ConnectionError("no route to https://me:secret@tracker.example")

    def close(self, failed: bool) -> None:
        raise ConnectionError("no route to https://me:secret@tracker.example")


@pytest.mark.parametrize("logs", [False, True])
def test_a_tracker_whose_server_has_gone_ends_nothing_and_shows_no_password(tmp_path, logs):
    console = Console(file=StringIO(), width=200)
    log = RunLog(tmp_path, 10, 0, True, console, Gone())
    if logs:
        log.record("train", 1, {"loss": 1.0})
    log.close(failed=logs)
    said = console.file.getvalue()
    assert said.count("logging to the tracker stops: no route to https://") == 1 and "secret" not in said


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "id": 3}', None])
def test_a_damaged_record_is_one_line(tmp_path, monkeypatch, content):
    """None: a FIFO, whose reading would never end."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    path = tmp_path / "wandb.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(UserError, match=r"wandb\.json") as caught:
        open_tracker("wandb", tmp_path, "run", {})
    assert "elete it" in str(caught.value) and "\n" not in str(caught.value)


def test_only_a_new_run_needs_the_server(tmp_path, monkeypatch, caplog):
    """And a record's file that is a link is replaced, not written through."""
    runs = iter([SimpleNamespace(id="7", define_metric=lambda *_, **__: None)])
    stub = SimpleNamespace(init=lambda **_: next(runs))
    monkeypatch.setitem(sys.modules, "wandb", stub)
    open_tracker("wandb", tmp_path, "run", {})
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"version": 1, "id": "7"}

    def unreachable(**_: object) -> None:
        raise ConnectionError("no server")

    stub.init = unreachable
    assert open_tracker("wandb", tmp_path, "run", {}) is None and "wandb failed to start (no server)" in caplog.text
    with pytest.raises(UserError, match=r"failed to start \(no server\). Set --train.tracker=none"):
        open_tracker("wandb", tmp_path / "new", "run", {})


def test_tensorboard_shows_the_losses_of_the_log_also_after_a_resume(tiny, tmp_path):
    changes = {"train__keep_checkpoints": "100", "train__tracker": "tensorboard"}
    run(tiny, tmp_path, schedule__stop_epoch="1", **changes)
    run(tiny, tmp_path, schedule__stop_epoch="2", **changes)
    rewind(tmp_path, 4)
    run(tiny, tmp_path, **changes)
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert {"train/loss", "train/split/forward", "eval/ema_top1", "checkpoint/seconds"} <= set(shown.Tags()["scalars"])
    loss = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    want = losses(tmp_path)
    assert [step for step, _ in loss] == [step for step, _ in want] == list(range(1, 19))
    assert all(abs(a - b) < 1e-6 for (_, a), (_, b) in zip(loss, want, strict=True))
