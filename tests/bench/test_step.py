"""The training step: what is measured where the device's peak is not known."""

import json
from pathlib import Path

import pytest
import torch

from fastft.bench import step
from fastft.bench.data import Images, Workspace
from fastft.bench.harness import Rounds
from fastft.bench.options import Options
from fastft.report.bench_report import measure_view


def test_on_a_gpu_without_a_known_peak_all_but_mfu_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An L4: `peak_flops` says None."""
    monkeypatch.setattr("fastft.report.hardware.peak_flops", lambda device, dtype: None)
    turn = {"wall": 1.0, **step.arm(lambda: None, 8, 1, 1e9, torch.float32)()}  # type: ignore[dict-item]
    monkeypatch.setattr(step, "alternate", lambda *_, **__: Rounds({"fastft": {"step": [turn]}}))
    measures = step.run(Options(Workspace(tmp_path, Images([], "none")), rounds=1, threads=1)).measures
    assert {m["name"] for m in measures} == {"Training step", "Training step, lower half frozen"}
    assert [measure_view(m)["compared"] for m in measures] == 4 * [False]
    assert "NaN" not in json.dumps(measures)
