"""A run is logged to W&B and MLflow, and a resumed run continues the same record."""

import json
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from tests.train.runs import losses, run


def test_mlflow_has_the_losses_of_the_log_and_one_run_over_a_resume(
    tiny, tmp_path: Path, monkeypatch
) -> None:
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


def test_wandb_keeps_its_record_in_the_run_directory(tiny, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tiny, tmp_path, schedule__stop_epoch="1", train__tracker="wandb")
    first = json.loads((tmp_path / "wandb.json").read_text())["id"]
    run(tiny, tmp_path, schedule__stop_epoch="2", train__tracker="wandb")
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == first
    records = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{first}.wandb"))
    assert records and all(b"train/loss" in record.read_bytes() for record in records)


def test_a_tracker_that_is_not_installed_is_one_line(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match="wandb, which is not installed; pip install wandb"):
        run(tiny, tmp_path, train__tracker="wandb")
