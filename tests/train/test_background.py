"""Work beside the GPU's: a stream of high priority, and gradients in the buckets of DistributedDataParallel."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastft.train import loop
from fastft.train.distributed import World
from fastft.train.precision import Precision
from fastft.train.step import Step

CPU = torch.device("cpu")


def test_training_runs_on_one_high_priority_stream_per_gpu(monkeypatch):
    made: list[SimpleNamespace] = []

    def new_stream(device: torch.device, priority: int) -> SimpleNamespace:
        waits: list[object] = []
        made.append(SimpleNamespace(device=device, priority=priority, waits=waits, wait_stream=waits.append))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"default of {device}")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(stream))
    loop._high_priority_stream.cache_clear()
    try:
        gpu = torch.device("cuda", 1)
        for _ in range(2):  # two trainings of a sweep
            with loop.training_stream(gpu) as current:
                assert current is made[0]
        assert len(made) == 1 and made[0].priority < 0
        assert made[0].waits == ["default of cuda:1"] * 2
    finally:
        loop._high_priority_stream.cache_clear()
    with loop.training_stream(CPU):
        assert len(made) == 1


@pytest.mark.parametrize(("world_size", "accumulation", "kept"), [(1, 2, False), (2, 1, False), (2, 2, True)])
def test_gradients_stay_views_of_the_buckets_where_they_are_accumulated(world_size, accumulation, kept):
    """New ones would be copied into the buckets: a fourth copy of all that is trained."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    world = World(0, world_size, 0, CPU)
    step = Step(model, optimizer, None, world, Precision(torch.float32, "cpu"), accumulation=accumulation)  # type: ignore[arg-type]
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad
    step.update()
    assert (model.weight.grad is before) == kept
    assert model.weight.grad is None or not model.weight.grad.any()
