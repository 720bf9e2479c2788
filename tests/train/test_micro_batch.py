"""The micro-batch divides the batch and fits the memory."""

import pytest
import torch

from beton_tools.errors import UserError
from fastft.train import micro_batch
from fastft.train.precision import Precision

FP32 = Precision(torch.float32, "cpu")


@pytest.mark.parametrize(
    ("number", "at_most", "want"), [(256, 100, 64), (250, 100, 50), (7, 3, 1), (80, 80, 80), (12, 0, 1)]
)
def test_largest_divisor(number: int, at_most: int, want: int) -> None:
    assert micro_batch.largest_divisor(number, at_most) == want


def test_a_requested_micro_batch_must_divide_the_batch() -> None:
    assert micro_batch.choose_micro_batch(64, 256, torch.nn.Linear(1, 1), 224, FP32) == 64
    with pytest.raises(UserError, match="use 64"):
        micro_batch.choose_micro_batch(100, 256, torch.nn.Linear(1, 1), 224, FP32)


@pytest.mark.parametrize(("number", "at_most", "want"), [(50, 32, 10), (42, 32, 14), (80, 7, 4), (6, 1, 2)])
def test_mixed_pairs_stay_together(number: int, at_most: int, want: int) -> None:
    assert micro_batch.largest_divisor(number, at_most, 2) == want


def test_mixing_needs_even_micro_batches() -> None:
    with pytest.raises(UserError, match="into even parts; use 10"):
        micro_batch.choose_micro_batch(25, 50, torch.nn.Linear(1, 1), 224, FP32, unit=2)
    with pytest.raises(
        UserError, match=r"an even number of images per process, not 5; change optim\.batch_size"
    ):
        micro_batch.choose_micro_batch(0, 5, torch.nn.Linear(1, 1), 224, FP32, unit=2)


class OnGpu(torch.nn.Module):
    def parameters(self, recurse: bool = True):
        class Parameter:
            device, grad = torch.device("cuda"), None

        return iter([Parameter()])


def test_gpu_micro_batch_is_what_fits(monkeypatch) -> None:
    """1 GB per image, 5 GB fixed, 80 GB free: 67 fit into nine tenths, 64 divides 2048."""

    cached = [60e9]  # by the allocator since an earlier training
    monkeypatch.setattr(torch.cuda, "empty_cache", cached.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9 - sum(cached), 80e9))
    monkeypatch.setattr(micro_batch, "measure_memory", lambda *_: (5e9, 1e9))
    assert micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32) == 64
    monkeypatch.setattr(micro_batch, "measure_memory", lambda *_: (5e9, 90e9))
    with pytest.raises(UserError, match="grad_checkpointing"):
        micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32)


@pytest.mark.parametrize(("fits", "micro"), [(8, 64), (2, 64), (0, None)])
def test_probes_that_do_not_fit_are_tried_smaller_then_refused(
    monkeypatch, fits: int, micro: int | None
) -> None:
    def measure(model, image_size, precision, probes):
        if max(probes) > fits:
            raise torch.OutOfMemoryError
        return 5e9, 1e9

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))
    monkeypatch.setattr(micro_batch, "measure_memory", measure)
    if micro is not None:
        assert micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32) == micro
        return
    with pytest.raises(UserError, match="does not fit"):
        micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32)
