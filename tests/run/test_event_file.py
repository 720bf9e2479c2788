"""TensorBoard reads what the trainer logs; after a resume it shows every step once."""

import itertools
import shutil

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastft.run import event_file
from fastft.run.checkpoint import list_checkpoints
from fastft.run.event_file import EventFile
from tests.train.runs import losses, run


def test_tensorboard_shows_the_losses_of_the_log_also_after_a_resume(tiny, tmp_path):
    """The second start repeats no step here; a third one, from an older checkpoint, repeats some."""

    changes = {"train__keep_checkpoints": "100"}
    run(tiny, tmp_path, schedule__stop_epoch="1", **changes)
    run(tiny, tmp_path, schedule__stop_epoch="2", **changes)
    for path in list_checkpoints(tmp_path / "checkpoints")[2:]:
        shutil.rmtree(path)
    run(tiny, tmp_path, **changes)
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert {"train/loss", "train/split/forward", "eval/ema_top1", "checkpoint/seconds"} <= set(shown.Tags()["scalars"])
    loss = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    want = losses(tmp_path)
    assert [step for step, _ in loss] == [step for step, _ in want] == list(range(1, 19))
    assert all(abs(a - b) < 1e-6 for (_, a), (_, b) in zip(loss, want, strict=True))


def test_files_begun_in_one_second_are_read_in_their_order(tmp_path, monkeypatch):
    """The ninth and tenth file of a process: their names must not be in the order of the text "10" before "9"."""

    monkeypatch.setattr(event_file, "_numbers", itertools.count(9))
    monkeypatch.setattr(event_file.time, "time", lambda: 1_800_000_000.0)
    for first, last in ((1, 6), (4, 8)):
        file = EventFile(tmp_path, first)
        for step in range(first, last + 1):
            file.add({"train/loss": 10.0 * first + step}, step)
        file.close()
    shown = EventAccumulator(str(tmp_path))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("train/loss")] == [
        (1, 11.0), (2, 12.0), (3, 13.0), (4, 44.0), (5, 45.0), (6, 46.0), (7, 47.0), (8, 48.0)
    ]  # fmt: skip
