"""Precision chosen by hardware; gradients in the buckets of DistributedDataParallel."""

import pytest
import torch

from beton_tools.base.errors import UserError
from fastft.machine import precision
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.train.step import Step

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_v100_gets_fp16_with_a_scaler_and_newer_cards_bf16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = precision.choose_precision("auto", torch.device("cuda"))
    assert chosen.dtype == dtype
    assert chosen.scaled == (dtype == torch.float16)


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        ("AuthenticAMD avx512f avx512_bf16", torch.bfloat16),
        ("GenuineIntel avx512_bf16 amx_bf16", torch.bfloat16),
        ("GenuineIntel avx512f avx512_bf16", torch.float32),
        ("AuthenticAMD avx2", torch.float32),
    ],
)
def test_cpu_gets_bf16_only_where_it_is_faster_than_fp32(monkeypatch, cpuinfo, dtype):
    monkeypatch.setattr(precision.Path, "read_text", lambda *_, **__: cpuinfo)
    assert precision.choose_precision("auto", CPU).dtype == dtype


def test_a_model_trained_in_fp16_predicts_on_a_cpu():
    assert precision.inference_precision("fp16", CPU).dtype in (torch.bfloat16, torch.float32)
    assert precision.inference_precision("fp32", CPU).dtype == torch.float32
    assert precision.inference_precision("fp16", torch.device("cuda")).dtype == torch.float16


@pytest.mark.parametrize(
    ("choice", "amp", "capability", "half"),
    [
        ("auto", "auto", (7, 0), True),
        ("auto", "auto", (8, 0), False),
        ("auto", "fp16", (9, 0), False),
        ("auto", "fp32", (7, 0), False),
        ("on", "bf16", (9, 0), True),
        ("off", "fp16", (7, 0), False),
    ],
)
def test_v100_trains_a_half_precision_copy_in_fp16(monkeypatch, choice, amp, capability, half):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.choose_precision(amp, torch.device("cuda"), choice).half_residual is half


@pytest.mark.parametrize(
    ("amp", "choice", "reason"), [("fp16", "auto", "needs a GPU"), ("fp32", "on", "half_residual is on")]
)
def test_what_the_device_or_precision_cannot_is_refused(amp, choice, reason):
    with pytest.raises(UserError, match=reason):
        precision.choose_precision(amp, CPU, choice)


@pytest.mark.parametrize(("world_size", "accumulation", "kept"), [(1, 2, False), (2, 1, False), (2, 2, True)])
def test_gradients_stay_views_of_the_buckets_where_they_are_accumulated(world_size, accumulation, kept):
    """New ones would be copied into the buckets: a fourth copy of all that is trained."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    world = World(0, world_size, 0, CPU)
    step = Step(model, optimizer, None, world, Precision(torch.float32, "cpu"), accumulation=accumulation)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad
    step.update()
    assert (model.weight.grad is before) == kept
    assert model.weight.grad is None or not model.weight.grad.any()
