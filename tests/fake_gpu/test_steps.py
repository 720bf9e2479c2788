"""What a training step asks of a card: nothing waits, nothing is allocated, and the launches keep to their limits."""

import gc

import pytest
import torch

from fastft.bench.step_bench import StepRunner, our_step, random_batch, shape
from fastft.machine.precision import Precision
from fastft.train.step import StepChoice
from tests.fake_gpu.card import counting, launched

BF16, FP16 = (Precision(dtype, "cuda") for dtype in (torch.bfloat16, torch.float16))
HALF_BF16, HALF_FP16 = (Precision(dtype, "cuda", half_residual=True) for dtype in (torch.bfloat16, torch.float16))
FP32 = Precision(torch.float32, "cuda")
STEPS = 3
# of B/16, all parameters trained, with EMA: what the host hands to the card in a step, as counted on 2026-11-30
LIMITS = {
    (FP32, "eager", "auto"): 743,
    (BF16, "eager", "auto"): 1047,
    (FP16, "eager", "auto"): 1083,
    (HALF_FP16, "eager", "auto"): 735,
    (HALF_BF16, "eager", "auto"): 700,
    (BF16, "eager", "flash"): 1047,
    (BF16, "eager", "efficient"): 1047,
    (BF16, "eager", "batched"): 1150,
    (BF16, "compile", "auto"): 939,
    (HALF_FP16, "compile", "auto"): 831,
}
GB = {(BF16, "eager", "auto"): 17.6, (HALF_FP16, "eager", "auto"): 17.4}  # at the peak, with 256 images


@pytest.fixture(autouse=True)
def without_cudnn():
    """cuDNN asks the card for more than it answers."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def warm_step(
    precision: Precision, choice: StepChoice, images: int
) -> tuple[StepRunner, tuple[torch.Tensor, torch.Tensor]]:
    arch = shape("B")
    step = our_step(arch, precision, choice=choice)
    pixels, labels = random_batch(arch, images, torch.device("cuda"))
    batch = pixels.to(precision.dtype), labels
    for _ in range(3):  # the optimiser's state, workspaces, graphs
        step(*batch)
    torch.cuda.reset_peak_memory_stats()
    return step, batch


@pytest.mark.parametrize(("precision", "mode", "attention"), LIMITS, ids=str)
def test_a_step_neither_waits_nor_allocates_and_keeps_to_its_launches(precision, mode, attention, tmp_path):
    images = 256
    step, batch = warm_step(precision, StepChoice(mode, attention), images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with counting() as asked:
            for _ in range(STEPS):
                step(*batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print(f"{precision.name}, half {precision.half_residual}, {mode}, {attention}: {asked.work / STEPS:.0f} {dict(asked)} "
          f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB")  # fmt: skip
    assert asked["waits"] == asked["allocations"] == asked["host_allocations"] == asked["to_host"] == 0
    assert asked.work / STEPS <= LIMITS[precision, mode, attention]
    limit = GB.get((precision, mode, attention))
    assert limit is None or torch.cuda.max_memory_allocated() / 1e9 <= limit
    assert not any("elementwise_kernel" in name and "addcmul" in name for name in launched(tmp_path))


@pytest.mark.parametrize("precision", [BF16, HALF_FP16], ids=str)
def test_a_captured_step_is_one_graph_and_its_update(precision):
    """Nothing that a capture refuses runs in it; forward and backward pass are then one launch."""
    with counting() as asked:
        step, batch = warm_step(precision, StepChoice("graph"), 64)
    assert asked["refused"] == 0
    with counting() as asked:
        for _ in range(STEPS):
            step(*batch)
    print(asked)
    assert asked["graphs"] == STEPS and asked["products"] == 0
    assert asked["waits"] == asked["allocations"] == 0
    assert asked.work / STEPS < 130


def test_an_update_in_a_capture_that_waits_is_noticed():
    """The card refuses what CUDA refuses: else the test above could not fail."""
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(3, device="cuda")
    with counting() as asked, pytest.raises(RuntimeError), torch.cuda.graph(graph):
        x.sum().item()
    assert asked["refused"] >= 1
