"""One optimiser step: class weights, the gradients' norm, and the loss scale of fp16 with arithmetic in fp32."""

import pytest
import torch

from fastft.machine.distributed import World
from fastft.machine.precision import GROWTH_INTERVAL, INITIAL_SCALE, YOUNG_STEPS, Precision
from fastft.model import build_classifier
from fastft.train.step import Step, StepChoice
from tests.train.test_step_choice import small_arch

CPU = torch.device("cpu")


def trained(scaled: bool, steps: range, monkeypatch: pytest.MonkeyPatch, lr: float = 1.0, **options) -> Step:
    """Plain SGD, as Adam's updates do not depend on the scale of gradients."""
    monkeypatch.setattr(Precision, "scaled", scaled)
    torch.manual_seed(0)
    model = build_classifier(small_arch(), 5)
    step = Step(
        model,
        torch.optim.SGD(model.parameters(), lr),
        None,
        World(0, 1, 0, CPU),
        Precision(torch.float32, "cpu"),
        **options,
    )
    step.connect(StepChoice())
    for k in steps:
        step.micro_batch(torch.randn(4, 3, 32, 32), torch.arange(4), step=k, last=True)
        step.update()
    return step


@pytest.mark.parametrize("clip_grad", [None, 0.01])
def test_a_loss_scale_changes_no_update(clip_grad, monkeypatch):
    """Gradients are clipped at the same norm: clipping those of the scaled loss would all but stop the training."""
    plain, scaled = (trained(on, range(3), monkeypatch, clip_grad=clip_grad).model for on in (False, True))
    start = trained(False, range(0), monkeypatch).model
    for before, want, got in zip(*(m.head.parameters() for m in (start, plain, scaled)), strict=True):
        assert (want - before).norm() > 1e-3
        torch.testing.assert_close(got - before, want - before, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("clip_grad", [None, 0.01])
def test_the_logged_norm_is_that_of_all_gradients_unscaled_and_before_clipping(clip_grad, monkeypatch):
    step = trained(True, range(0), monkeypatch, clip_grad=clip_grad)
    step.micro_batch(torch.randn(4, 3, 32, 32), torch.arange(4), step=0, last=True)
    gradients = [p.grad / step.scaler.get_scale() for p in step.model.parameters() if p.grad is not None]
    want = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    step.update(is_logged=True)
    assert step.grad_norm.item() == pytest.approx(want.item(), rel=1e-5) and want > 0.01


def test_the_loss_scale_grows_fast_while_a_run_is_young(monkeypatch):
    step = trained(True, range(130), monkeypatch, lr=1e-3)
    assert step.scaler.get_scale() == 2 * INITIAL_SCALE
    resumed = trained(True, range(0), monkeypatch, lr=1e-3)
    resumed.scaler.load_state_dict({**step.scaler.state_dict(), "_growth_tracker": 0})
    for k in range(YOUNG_STEPS, YOUNG_STEPS + 130):
        resumed.micro_batch(torch.randn(1, 3, 32, 32), torch.arange(1), step=k, last=True)
        resumed.update()
    assert resumed.scaler.get_scale() == 2 * INITIAL_SCALE and resumed.scaler.get_growth_interval() == GROWTH_INTERVAL
