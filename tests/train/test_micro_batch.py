"""The micro-batch divides the batch and fits the memory."""

import pytest
import torch

from beton_tools.base.errors import UserError
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


def test_the_gpu_micro_batch_is_the_largest_that_fits(monkeypatch) -> None:
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


def test_a_multiple_of_8_is_preferred_if_it_is_at_least_half_as_large() -> None:
    """240 images of which 100 fit: 80 and 60 divide them; 50 of which 25 fit: no multiple of 8 divides them."""
    assert micro_batch.fast_divisor(240, 100) == 80
    assert micro_batch.fast_divisor(240, 61) == 48  # 60 is the largest, 48 the largest multiple of 8
    assert micro_batch.fast_divisor(50, 25) == 25
    assert micro_batch.fast_divisor(8 * 13, 60) == 52  # 8 is less than half of it
    assert micro_batch.fast_divisor(240, 7) == 6


class Memory:
    """A stub of the CUDA allocator: cuBLAS takes a workspace in the first pass; each image of a pass takes its bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, workspace: int, per_image: int, grows: int) -> None:
        self.held = self.peak = 0
        self.workspace, self.per_image, self.fixed = workspace, per_image, grows
        monkeypatch.setattr(
            torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", self.held)
        )
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.held)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)

    def forward(self, model: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.held, self.workspace = self.held + self.workspace, 0
        self.peak = max(self.peak, self.held + self.fixed + self.per_image * len(inputs[0]))


def test_the_workspace_of_the_first_pass_is_not_counted_for_images(monkeypatch) -> None:
    """Else the first probe is too large, the difference of the two too small, and too many images are taken to fit."""
    memory = Memory(monkeypatch, workspace=1000, per_image=7, grows=50)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    model.register_forward_pre_hook(memory.forward)
    trained = 4 * (3 * 8 * 8 * 2 + 2)
    fixed, per_image = micro_batch.measure_memory(model, 8, FP32, (4, 8))
    assert (fixed, per_image) == (micro_batch.COPIES * trained + 50, 7)


def test_the_loaders_buffers_are_counted(monkeypatch) -> None:
    """1 GB per image in the model and 1 GB in the loaders: half as many fit."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))
    monkeypatch.setattr(micro_batch, "measure_memory", lambda *_: (5e9, 1e9))
    assert micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32) == 64
    assert micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32, loader_bytes=1e9) == 32


def test_loader_bytes_of_imagenet() -> None:
    """Images of 500 x 375 at 224 px in half precision, 4 batches: decoded 2.25 MB, finished and uint8 1.8 MB."""

    want = 4 * (3 * 375 * 500 + 3 * 224 * 224 * 3)
    assert micro_batch.loader_bytes(375 * 500, 224, torch.float16, batches=4) == want


@pytest.mark.parametrize("half", [True, False])
def test_memory_is_measured_with_the_copy_that_will_train(monkeypatch, half: bool) -> None:
    """A half-precision copy takes memory for its weights, and half as much as autocast for its activations."""
    measured = []
    monkeypatch.setattr(micro_batch, "measure_memory", lambda model, *_: measured.append(model) or (5e9, 1e9))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))
    model = torch.nn.Linear(1, 1)
    micro_batch._measure_free(model, 224, Precision(torch.float16, "cuda", half_residual=half))
    assert (measured[0] is model) is not half
    assert measured[0].weight.dtype == (torch.float16 if half else torch.float32)
