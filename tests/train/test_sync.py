"""Nothing in a training step or an evaluation waits for the device, so that the host runs ahead of a GPU.

Seen without a GPU in the operations that PyTorch dispatches.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastft.augment.mix import Mixer
from fastft.data.loader import Batch
from fastft.evaluate.scores import evaluate
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.model import build_classifier
from fastft.optim import Ema, build_adamw, layer_groups, optimizer_groups, set_lr
from fastft.train.step import Step, StepChoice
from tests.model.test_tower import small_arch

CPU = torch.device("cpu")
aten = torch.ops.aten
# what waits for a GPU: reading a value, an output whose size depends on values, and copying from pageable memory, which is
# where a tensor made of Python numbers lies (lift_fresh)
WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.lift_fresh.default,
    aten.equal.default, aten.is_nonzero.default,
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        boolean = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert func not in WAITING and not boolean, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def new_step(precision: Precision, **options) -> Step:
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5, drop_path=0.1, patch_dropout=0.25)
    groups = optimizer_groups(model, layer_groups(model, 3, 0.6, 0.05))
    optimizer = build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    step = Step(model, optimizer, Ema(model, 0.9), World(0, 1, 0, CPU), precision, **options)
    step.connect(StepChoice())
    return step


def check_steps(step: Step) -> None:
    """Two steps that do not wait."""
    size = small_arch().image_size
    images, labels = torch.randn(4, 3, size, size, dtype=step.precision.dtype), torch.arange(4)
    noise = torch.rand(4, step.model.visual.noise_columns)
    for number in range(2):
        with NoWaiting():
            step.split.mark(None)
            set_lr(step.optimizer, 1e-3)
            step.micro_batch(images, labels, noise, step=number, last=True)
            step.update()
    assert torch.isfinite(step.loss_sum)


@pytest.mark.parametrize("waits", [
    lambda t: t.sum().item(), lambda t: bool(t.any()), lambda t: t[t > 0], lambda t: t.nonzero(),
    lambda t: t.new_tensor(3), lambda t: torch.tensor([1.0]),
])  # fmt: skip
def test_waiting_is_noticed(waits):
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        waits(torch.ones(3))


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        (Precision(torch.float32, "cpu"), {}),
        (Precision(torch.float32, "cpu"), {"clip_grad": 1.0, "accumulation": 2}),
        (Precision(torch.bfloat16, "cpu"), {"label_smoothing": 0.1}),
        (Precision(torch.bfloat16, "cpu", half_residual=True), {}),
        (Precision(torch.float16, "cpu"), {"clip_grad": 1.0}),
    ],
)
def test_no_step_waits_for_the_device(precision, options):
    """The first step allocates the optimiser's state, the second is like all others. fp16 has the loss scaler."""
    check_steps(new_step(precision, **options))


def test_mixing_does_not_wait_for_the_device():
    mixer = Mixer(
        mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=5, seed=0
    )
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    for step in range(4):
        with NoWaiting():
            mixer(images, labels, epoch=0, step=step, first_position=0)


def test_no_evaluation_waits_for_the_device_before_its_last_batch():
    model = build_classifier(small_arch(), 5)
    size = small_arch().image_size

    batches = [
        Batch(torch.randn(4, 3, size, size), torch.arange(4), np.arange(4), index, 4 * index) for index in range(3)
    ]
    waited = []

    class Watched(NoWaiting):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not waited:
                return super().__torch_dispatch__(func, types, args, kwargs)
            return func(*args, **(kwargs or {}))

    def then_read():
        yield from batches
        waited.append(True)  # after the last batch the sums are read

    with Watched():
        (evaluated,) = evaluate([model], then_read(), World(0, 1, 0, CPU), Precision(torch.float32, "cpu"))
    assert evaluated.scores.samples == 12
