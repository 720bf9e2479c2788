"""TensorBoard reads what the trainer logs; after a resume it shows every step once."""

import shutil
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastft.train.checkpoint import list_checkpoints
from tests.train.runs import losses, run


def test_tensorboard_shows_the_losses_of_the_log_also_after_a_resume(tiny, tmp_path: Path) -> None:
    """The second start repeats no step here; a third one, from an older checkpoint, repeats some."""

    changes = {"train__keep_checkpoints": "100"}
    run(tiny, tmp_path, schedule__stop_epoch="1", **changes)
    run(tiny, tmp_path, schedule__stop_epoch="2", **changes)
    for path in list_checkpoints(tmp_path / "checkpoints")[2:]:
        shutil.rmtree(path)
    run(tiny, tmp_path, **changes)
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert {"train/loss", "train/split/forward", "eval/ema_top1", "checkpoint/seconds"} <= set(
        shown.Tags()["scalars"]
    )
    loss = [(event.step, event.value) for event in shown.Scalars("train/loss")]
    want = losses(tmp_path)
    assert [step for step, _ in loss] == [step for step, _ in want] == list(range(1, 19))
    assert all(abs(a - b) < 1e-6 for (_, a), (_, b) in zip(loss, want, strict=True))
