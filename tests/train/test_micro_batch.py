"""The micro-batch divides the batch and fits the memory."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.jobs.run import run_recipe
from fastft.machine.precision import Precision
from fastft.recipe import load_recipe
from fastft.train import micro_batch, setup
from fastft.train.step import Step
from tests.train.runs import differing, end, flags, run

FP32 = Precision(torch.float32, "cpu")


def test_mixing_needs_even_micro_batches():
    with pytest.raises(UserError, match=r"into even parts\. Use 10"):
        micro_batch.choose_micro_batch(25, 50, torch.nn.Linear(1, 1), 224, FP32, unit=2)
    with pytest.raises(UserError, match=r"an even number of images per process, not 5. Change optim\.batch_size"):
        micro_batch.choose_micro_batch(0, 5, torch.nn.Linear(1, 1), 224, FP32, unit=2)


class OnGpu(torch.nn.Module):
    def parameters(self, recurse: bool = True):
        class Parameter:
            device, grad = torch.device("cuda"), None

        return iter([Parameter()])


@pytest.fixture
def gpu_80gb(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A stub of a GPU of 80 GB. Returns the bytes that the allocator has cached since an earlier training."""
    cached = [60e9]
    monkeypatch.setattr(torch.cuda, "empty_cache", cached.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9 - sum(cached), 80e9))
    return cached


@pytest.mark.parametrize(
    ("fits", "per_image", "loader", "micro"),
    [(8, 1e9, 0, 64), (8, 1e9, 1e9, 32), (2, 1e9, 0, 64), (8, 90e9, 0, None), (0, 1e9, 0, None)],
)
def test_the_gpu_micro_batch_is_the_largest_that_fits(monkeypatch, gpu_80gb, fits, per_image, loader, micro):
    """1 GB per image, 5 GB fixed, 80 GB free: 67 fit into nine tenths, 64 divides 2048. Smaller probes are tried too."""

    def measure(model, image_size, precision, probes, most):
        if max(probes) > fits:
            raise torch.OutOfMemoryError
        return 5e9, per_image

    monkeypatch.setattr(micro_batch, "measure_memory", measure)
    if micro is None:
        with pytest.raises(UserError, match=r"does not fit in this GPU.s memory. Try --train\.grad_checkpointing"):
            micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32)
        return
    assert micro_batch.choose_micro_batch(0, 2048, OnGpu(), 224, FP32, loader_bytes=loader) == micro


def test_a_multiple_of_8_is_preferred_if_it_is_at_least_half_as_large():
    """240 images of which 100 fit: 80 and 60 divide them; 50 of which 25 fit: no multiple of 8 divides them."""
    assert micro_batch.fast_divisor(240, 100) == 80
    assert micro_batch.fast_divisor(240, 61) == 48  # 60 is the largest, 48 the largest multiple of 8
    assert micro_batch.fast_divisor(50, 25) == 25
    assert micro_batch.fast_divisor(8 * 13, 60) == 52  # 8 is less than half of it
    assert micro_batch.fast_divisor(240, 7) == 6


def test_the_workspace_of_the_first_pass_is_not_counted_for_images(monkeypatch):
    """Else the first probe is too large, the difference of the two too small, and too many images are taken to fit."""
    workspace = [1000]  # cuBLAS takes it in the first pass
    monkeypatch.setattr(
        micro_batch,
        "_peak_of_pass",
        lambda model, size, precision, images: (workspace.pop() if workspace else 0) + 50 + 7 * images,
    )
    frozen = torch.nn.Linear(8, 2).requires_grad_(False)
    assert micro_batch.measure_memory(frozen, 8, FP32, (4, 8), 64) == (50, 7)


def test_probes_grow_until_activations_dominate_and_stop_at_the_batch_or_at_the_end_of_memory(monkeypatch):
    """Gradients of 4,000 bytes hide the 100 bytes per image that a checkpointed pass keeps until there are 40 images."""
    model, seen = torch.nn.Linear(999, 1), []

    def peak(model, size, precision, images: int) -> int:
        seen.append(images)
        if images > memory:
            raise torch.OutOfMemoryError
        return max(4000 + 20 * images, 120 * images)

    monkeypatch.setattr(micro_batch, "_peak_of_pass", peak)
    memory = 1000
    assert micro_batch.measure_memory(model, 8, FP32, (4, 8), 2048) == (3 * 4000, 120)
    assert seen == [4, 4, 8, 16, 32, 64, 128, 256]
    assert micro_batch.measure_memory(model, 8, FP32, (4, 8), 16) == (3 * 4000 + 4000, 20)
    memory = 100
    assert micro_batch.measure_memory(model, 8, FP32, (4, 8), 2048)[1] == pytest.approx(95)  # of 32 and 64 images


def test_a_first_step_out_of_memory_is_tried_with_half_the_micro_batch(tiny, tmp_path, monkeypatch, capsys):
    """Nothing is written before; if half of it does not fit either, the run ends."""
    monkeypatch.setattr(setup, "OUT_OF_MEMORY_DEVICES", ["cpu"])
    forward, sizes = Step.micro_batch, []

    def limited(self: Step, images: torch.Tensor, *rest, **options) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > fits:
            assert not (tmp_path / "run" / "metrics.jsonl").exists() or fits < 4
            raise torch.OutOfMemoryError
        return forward(self, images, *rest, **options)

    monkeypatch.setattr(Step, "micro_batch", limited)
    fits, changes = 4, {"schedule__stop_epoch": "1", "model__drop_path": "0.3"}
    recipe = load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path / "run", train__micro_batch="8", **changes))
    run_recipe(recipe, Console(width=200))
    assert "out of memory with 8 images per forward pass, trying 4" in capsys.readouterr().out
    assert sizes[:3] == [8, 4, 4]
    run(tiny, tmp_path / "half", train__micro_batch="4", **changes)
    assert differing(end(tmp_path / "run"), end(tmp_path / "half")) == []
    fits = 2
    with pytest.raises(UserError, match="too small for micro-batches of 4"):
        run(tiny, tmp_path / "none", train__micro_batch="8", **changes)


def test_a_set_up_out_of_memory_is_one_line_with_what_is_needed_and_what_is_there(tiny, tmp_path, monkeypatch):
    """A stub of a GPU that has 0.2 of 16 GB left when the model's EMA is made; nothing is written."""

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(setup, "Ema", fails)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0.2e9, 16e9))
    with pytest.raises(
        UserError, match=r"it takes 0\.0 GB with .* 0\.2 of 16\.0 GB are free on this GPU. End other programs"
    ):
        run(tiny, tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("options", "half", "gb"),
    [
        # ViT-B/16 of 1,000 classes: 86.6 M parameters, of which conv1's 0.6 M are frozen; five fp32 copies
        ([], "off", 5 * 0.34391 + 0.00236),
        (["--ema.decay=0"], "off", 4 * 0.34391 + 0.00236),
        (["--train.amp=bf16"], "on", 5 * 0.34391 + 0.00236 + 2 * 0.17196 + 0.00118),
    ],
)
def test_the_memory_of_a_models_state_is_counted_by_hand(options, half, gb):
    recipe = load_recipe("final_b16", [*options, f"--train.half_residual={half}"])
    assert setup.needed_bytes(recipe, torch.device("cpu")) == pytest.approx(gb * 1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("arch", "gb"),
    [
        ("timm/eva02_enormous_patch14_clip_224", r"87\.\d"),  # 4.4 billion parameters: EVA's E/14
        ("timm/vit_7b_patch16_dinov3", r"134\.\d"),  # 6.7 billion
    ],
)
def test_a_model_whose_state_exceeds_the_gpu_is_refused_before_its_weights_are_fetched(arch, gb, monkeypatch):
    """Weights, gradients, moments and EMA."""
    card = SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(setup, "build_model", partial(no_weights, setup.build_model))
    recipe = load_recipe("final_b16", [f"--model.arch={arch}", "--model.weights=timm", "--model.image_size=224"])
    with pytest.raises(
        UserError, match=rf"does not fit: weights, .* {gb} GB, and this GPU has 80\.0 GB\. .*torchtitan"
    ):
        setup.refuse_too_large(recipe, torch.device("cuda"))
    card.total_memory = 141e9
    setup.refuse_too_large(recipe, torch.device("cuda"))
    setup.refuse_too_large(recipe, torch.device("cpu"))


def no_weights(build, recipe, *, pretrained: bool) -> torch.nn.Module:
    assert not pretrained
    return build(recipe, pretrained=False)


@pytest.mark.parametrize("half", [True, False])
def test_memory_is_measured_with_the_copy_that_will_train(monkeypatch, gpu_80gb, half):
    """A half-precision copy takes memory for its weights, and half as much as autocast for its activations."""
    measured = []
    monkeypatch.setattr(micro_batch, "measure_memory", lambda model, *_: measured.append(model) or (5e9, 1e9))
    model = torch.nn.Linear(1, 1)
    micro_batch._measure_free(model, 224, Precision(torch.float16, "cuda", half_residual=half), 8)
    assert (measured[0] is model) is not half
    assert measured[0].weight.dtype == (torch.float16 if half else torch.float32)
