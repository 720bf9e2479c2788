"""The training step on a card: it never waits for the device, its precisions follow fp32, and its memory is as predicted."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import pytest
import torch

from fastft.bench.step_bench import CLASSES, StepRunner, our_step, random_batch
from fastft.machine.precision import Precision, choose_precision
from fastft.model import Arch, build_classifier
from fastft.train.micro_batch import choose_micro_batch
from fastft.train.step import StepChoice

STEPS, WINDOW = 20, 10


def clip_vit(device: torch.device, width: int = 384) -> Arch:
    """CLIP's patch-16 ViT at this width (768 is ViT-B/16); on a CPU a tiny one."""
    cpu = device.type == "cpu"
    size, patch, width, layers = (32, 8, 64, 2) if cpu else (224, 16, width, 12)
    return Arch(
        image_size=size, patch_size=patch, width=width, layers=layers, heads=width // 64, mlp_width=4 * width,
        quick_gelu=True, ln_pre=True, norm_eps=1e-5, layer_scale=False, embed_dim=width,
    )  # fmt: skip


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """On a card, an operation that waits for it raises RuntimeError."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("half_residual", [False, True])
def test_steps_do_not_wait_for_the_device(half_residual, device):
    """After the first three, which allocate the optimiser's state."""
    precision = choose_precision("auto", device)
    precision = Precision(torch.bfloat16 if device.type == "cpu" else precision.dtype, device.type, half_residual)
    arch = clip_vit(device)
    step = our_step(arch, precision, choice=StepChoice())
    images, labels = random_batch(arch, 4 if device.type == "cpu" else 64, device)
    images = images.to(precision.dtype)
    for _ in range(3):
        step(images, labels)
    with no_synchronisation(device):
        for _ in range(STEPS):
            step(images, labels)
    assert step.step.loss_sum > 0


@cache
def loss_curve(precision: Precision, device: torch.device, steps: int) -> list[float]:
    """Mean losses over WINDOW steps on the same random batches."""
    arch = clip_vit(device)
    step: StepRunner = our_step(arch, precision, choice=StepChoice())
    torch.manual_seed(1)
    batches = [random_batch(arch, 4 if device.type == "cpu" else 64, device) for _ in range(4)]
    losses = []
    for k in range(steps):
        images, labels = batches[k % len(batches)]
        step(images.to(precision.dtype), labels)
        if (k + 1) % WINDOW == 0:
            losses.append(float(step.step.loss_sum) / WINDOW)
            step.step.reset_loss()
    return losses


@pytest.mark.parametrize("half_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_follow_those_of_fp32(dtype, half_residual, device):
    """With autocast and with a half-precision copy of the weights; fp16 has the loss scaler."""
    steps = 60 if device.type == "cpu" else 200
    exact = loss_curve(Precision(torch.float32, device.type), device, steps)
    found = loss_curve(Precision(dtype, device.type, half_residual), device, steps)
    assert exact[-1] < 0.9 * exact[0], "a curve, not a constant"
    assert found == pytest.approx(exact, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("gib", [16, 32])
def test_the_automatic_micro_batch_fits_into_smaller_memories(gib):
    """A step of ViT-B/16 with the micro-batch that is chosen if the card had `gib` GiB."""
    device, cap = torch.device("cuda"), gib << 30
    if torch.cuda.get_device_properties(device).total_memory < cap:
        pytest.skip(f"the card has less than {gib} GiB")
    arch, precision = clip_vit(device, 768), choose_precision("auto", device)
    model = build_classifier(arch, CLASSES).to(device, memory_format=torch.channels_last)
    with mock.patch.object(torch.cuda, "mem_get_info", lambda *_: (cap - torch.cuda.memory_reserved(), cap)):
        chosen = choose_micro_batch(0, 2048, model, arch.image_size, precision)
    del model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = our_step(arch, precision, choice=StepChoice())
    images, labels = random_batch(arch, chosen, device)
    step(images.to(precision.dtype), labels)
    torch.cuda.synchronize()
    assert chosen > 1 and torch.cuda.max_memory_allocated() <= cap
