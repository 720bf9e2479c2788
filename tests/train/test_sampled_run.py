"""A run with sampling and stochastic layers: resumed anywhere it equals an uninterrupted one."""

import shutil
from pathlib import Path

import pytest

from tests.train.runs import differing, end, losses, rewind, run

SAMPLED = {
    "schedule__epochs": "4", "model__patch_dropout": "0.5", "model__drop_path": "0.3", "data__sampling": "balanced",
}  # fmt: skip


@pytest.fixture(scope="module")
def sampled(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sampled")
    run(tiny, folder, train__keep_checkpoints="100", **SAMPLED)
    return folder


@pytest.mark.parametrize("step", [16, 10])
def test_resuming_continues_the_sequence(tiny, sampled, tmp_path, step):
    folder = tmp_path / "resumed"
    shutil.copytree(sampled, folder)
    rewind(folder, step)
    run(tiny, folder, train__keep_checkpoints="100", **SAMPLED)
    assert losses(folder) == losses(sampled)
    assert differing(end(folder), end(sampled)) == []


def test_micro_batches_do_not_change_the_run(tiny, sampled, tmp_path):
    run(tiny, tmp_path, train__micro_batch="2", data__workers="1", **SAMPLED)
    small, whole = ([loss for _, loss in losses(folder)] for folder in (tmp_path, sampled))
    assert small == pytest.approx(whole, abs=5e-5)
