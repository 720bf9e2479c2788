"""A finished training leaves nothing large behind: the next one in the process, of a search or a notebook, needs the memory."""

import gc

import torch

from tests.train.runs import run


def parameters() -> int:
    """Parameters that exist, also those that only the garbage collector would free."""
    return sum(isinstance(found, torch.nn.Parameter) for found in gc.get_objects())


def test_the_model_is_freed_when_the_training_returns(tiny, tmp_path):
    """Without the garbage collector, which counts objects and would keep gigabytes for long."""
    run(tiny, tmp_path / "first", train__eval_every="1")  # what is imported then leaves cycles of its own
    gc.collect()
    before = parameters()
    gc.disable()
    try:
        run(tiny, tmp_path / "second", train__eval_every="1")
        assert parameters() == before
    finally:
        gc.enable()
