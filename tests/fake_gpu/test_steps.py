"""What a training step asks of a card: nothing waits, nothing is allocated, and the launches keep to their limits."""

import pytest
import torch

from fastft.train.step import StepChoice
from tests.fake_gpu.card import counting, launched
from tests.fake_gpu.ways import (
    BF16,
    FP16,
    FP32,
    GRAPH_IMAGES,
    HALF_BF16,
    HALF_FP16,
    IMAGES,
    STEPS,
    steady,
    warm_step,
    without_cudnn,
)  # fmt: skip

# of B/16, all parameters trained, with EMA: what the host hands to the card in a step, as counted with PyTorch 2.15
LIMITS = {
    (FP32, "eager", "auto"): 743,
    (BF16, "eager", "auto"): 1047,
    (FP16, "eager", "auto"): 1083,
    (HALF_FP16, "eager", "auto"): 735,
    (HALF_BF16, "eager", "auto"): 699,
    (BF16, "eager", "flash"): 1047,
    (BF16, "eager", "efficient"): 939,
    (BF16, "eager", "batched"): 1119,
    (BF16, "compile", "auto"): 939,
    (BF16, "compile", "efficient"): 843,
    (HALF_FP16, "compile", "auto"): 831,
    (HALF_BF16, "compile", "auto"): 795,
    (HALF_FP16, "fused", "auto"): 666,
}
# PyTorch 2.10, the last for CUDA 12, takes 4 to 16 more
MORE = 16 if torch.__version__.startswith("2.10.") else 0
# at the peak, with 256 images
GB = {(BF16, "eager", "auto"): 17.6, (HALF_FP16, "eager", "auto"): 17.4, (BF16, "compile", "auto"): 17.5}


@pytest.fixture(autouse=True)
def fused_attention_without_cudnn():
    with without_cudnn():
        yield


@pytest.mark.parametrize(("precision", "mode", "attention"), LIMITS, ids=str)
def test_a_step_neither_waits_nor_allocates_and_keeps_to_its_launches(precision, mode, attention, tmp_path):
    asked = steady(*warm_step(precision, StepChoice(mode, attention), IMAGES))
    print(f"{precision.name}, half {precision.half_residual}, {mode}, {attention}: {asked.work / STEPS:.0f} {dict(asked)} "
          f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB")  # fmt: skip
    assert asked["waits"] == asked["event_waits"] == asked["to_host"] == 0
    assert asked["allocations"] == asked["host_allocations"] == 0
    assert asked.work / STEPS <= LIMITS[precision, mode, attention] + MORE
    limit = GB.get((precision, mode, attention))
    assert limit is None or torch.cuda.max_memory_allocated() / 1e9 <= limit
    assert not any("elementwise_kernel" in name and "addcmul" in name for name in launched(tmp_path))


@pytest.mark.parametrize("precision", [BF16, HALF_FP16], ids=str)
def test_a_captured_step_is_one_graph_and_its_update(precision):
    """Nothing that a capture refuses runs in it; forward and backward pass are then one launch."""
    with counting() as asked:
        step, batch = warm_step(precision, StepChoice("graph"), GRAPH_IMAGES)
    assert asked["refused"] == 0
    asked = steady(step, batch)
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
