"""The learning rate of every step."""

import numpy as np
import pytest

from fastft.optim import WarmupCosine


def test_schedule_is_that_of_the_reference():
    """np.linspace from 0 for the warm-up, then the cosine from the full lr to min_lr, per iteration."""
    epochs, warmup, spe, lr, floor = 50, 10, 625, 6e-4, 1e-6
    steps = np.arange((epochs - warmup) * spe)
    want = np.concatenate(
        [np.linspace(0, lr, warmup * spe), floor + 0.5 * (lr - floor) * (1 + np.cos(np.pi * steps / len(steps)))]
    )
    schedule = WarmupCosine(lr, floor, warmup * spe, epochs * spe)
    assert [schedule(i) for i in range(epochs * spe)] == pytest.approx(want, abs=1e-15)
    assert (schedule(0), schedule(6249), schedule(6250)) == (0, 6e-4, 6e-4)
