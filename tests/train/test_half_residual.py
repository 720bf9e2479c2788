"""A half-precision copy of fp32 weights (train.half_residual) trains as fp32 does."""

import sys
from pathlib import Path

import pytest

from fastft.recipe import load_recipe
from tests.train.runs import flags

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp16 copy", "bf16 copy"])
def test_300_steps_follow_the_loss_of_fp32(tiny, tmp_path: Path, name: str) -> None:
    """A small tower from random weights on a few photographs; the loss falls from 0.68 to 0.53."""
    import half_residual

    changes = {"schedule__epochs": "50", "schedule__warmup_epochs": "2", "optim__label_smoothing": "0"}
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path, **changes))
    exact = half_residual.train(recipe, half_residual.PRECISIONS["fp32"])
    found = half_residual.train(recipe, half_residual.PRECISIONS[name])
    curve, want = half_residual.means(found["losses"]), half_residual.means(exact["losses"])
    assert len(found["losses"]) == 300
    assert want[-1] < 0.85 * want[0]
    assert curve == pytest.approx(want, abs=0.005)
    assert abs(found["eval_loss"] - exact["eval_loss"]) < 0.02
