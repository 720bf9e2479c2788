"""Work beside the GPU's: copies for checkpoints in page-locked memory, and a stream of high priority."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from fastft.train import loop
from fastft.train.checkpointing import HostCopy
from fastft.train.distributed import World
from fastft.train.precision import Precision
from fastft.train.step import Step

CPU = torch.device("cpu")


def test_a_host_copy_keeps_its_values_and_reuses_its_memory() -> None:
    weight = torch.arange(12.0).reshape(1, 2, 2, 3).to(memory_format=torch.channels_last)
    copies = HostCopy()
    first = copies.take({"model": {"w": weight}})["model"]["w"]
    want = weight.clone()
    weight += 1
    assert torch.equal(first, want) and first.is_contiguous()
    second = copies.take({"model": {"w": weight}})["model"]["w"]
    assert second.data_ptr() == first.data_ptr() and torch.equal(second, weight)
    other = copies.take({"model": {"w": weight.double()}})["model"]["w"]
    assert other.dtype == torch.float64


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    is_cuda = True
    device = torch.device("cuda")

    def detach(self):
        return self


def test_a_host_copy_from_a_gpu_is_page_locked_and_complete_when_it_is_returned(monkeypatch) -> None:
    calls: list[str] = []
    empty = torch.empty

    def new_buffer(*size, pin_memory: bool, **options) -> torch.Tensor:
        calls.append(f"pinned {pin_memory}")
        buffer = empty(*size, **options)
        buffer.copy_ = lambda tensor, non_blocking: calls.append(f"copy, waits {not non_blocking}") or buffer
        return buffer

    monkeypatch.setattr(torch, "empty", new_buffer)
    wait = SimpleNamespace(synchronize=lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: wait)
    weights = {name: torch.zeros(3).as_subclass(OnGpu) for name in "ab"}
    HostCopy().take({"model": weights})
    assert calls == ["pinned True", "copy, waits False"] * 2 + ["synchronize"]


def test_training_runs_on_one_high_priority_stream_per_gpu(monkeypatch) -> None:
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
def test_gradients_stay_views_of_the_buckets_where_they_are_accumulated(
    world_size: int, accumulation: int, kept: bool
) -> None:
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
