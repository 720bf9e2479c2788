"""The step as a CUDA graph, with a stub of the graph that runs the recorded function again on the same tensors."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.optim import set_lr
from fastft.train import step as step_module
from fastft.train.step import WARM_UP_PASSES, GraphedPass, Step, StepChoice
from fastft.train.step_choice import _trial_pass
from tests.model.test_tower import small_arch
from tests.train.test_sync import check_steps, new_step


class StubGraph:
    """Replays by calling; counts the passes before the recording and the replays."""

    def __init__(self) -> None:
        self.passes = 0

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        def counted() -> None:
            self.passes += 1
            function()

        for _ in range(WARM_UP_PASSES + 1):
            counted()
        return counted


def train(step: Step, micro_batches: int, updates: int = 3, size: int = small_arch().image_size) -> list[torch.Tensor]:
    """Losses and end weights of a few updates on random micro-batches."""
    generator = torch.Generator().manual_seed(1)
    columns, losses = step.model.visual.noise_columns, []
    step.model.train()
    for update in range(updates):
        set_lr(step.optimizer, 1e-3)
        for k in range(micro_batches):
            images = torch.randn(4, 3, size, size, generator=generator).to(step.precision.dtype)
            noise = torch.rand(4, columns, generator=generator)
            labels = torch.randint(5, (4,), generator=generator)
            step.micro_batch(images, labels, noise, step=update, last=k == micro_batches - 1)
        step.update()
        losses.append(step.loss_sum.clone())
        step.reset_loss()
    return [*losses, *(p.detach().clone() for p in step.model.parameters())]


def graphed(precision: Precision, graph: StubGraph, monkeypatch: pytest.MonkeyPatch, **options) -> Step:
    monkeypatch.setattr(step_module, "GraphedPass", partial(GraphedPass, capture=graph.capture))
    step = new_step(precision, **options)
    step.connect(StepChoice("graph"))
    return step


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    ("precision", "options"),
    [
        (Precision(torch.float32, "cpu"), {"label_smoothing": 0.1}),
        (Precision(torch.bfloat16, "cpu"), {"clip_grad": 1.0}),
        (Precision(torch.bfloat16, "cpu", half_residual=True), {}),
    ],
)
def test_a_graphed_step_computes_what_the_eager_one_does(precision, options, micro_batches, monkeypatch):
    """Also with gradients that accumulate, and without a trace of the passes before the recording."""
    graph, options = StubGraph(), {**options, "accumulation": micro_batches}
    found = train(graphed(precision, graph, monkeypatch, **options), micro_batches)
    want = train(new_step(precision, **options), micro_batches)
    assert all(map(torch.equal, found, want))
    assert graph.passes == WARM_UP_PASSES + 1 + 3 * micro_batches


def test_gradients_stay_in_place(monkeypatch):
    """A graph adds to the tensors that it was recorded with."""
    step = graphed(Precision(torch.float32, "cpu"), StubGraph(), monkeypatch)
    train(step, 1, updates=1)
    places = {name: p.grad.data_ptr() for name, p in step.model.named_parameters() if p.requires_grad}
    train(step, 1, updates=2)
    assert {name: p.grad.data_ptr() for name, p in step.model.named_parameters() if p.requires_grad} == places


def test_a_graph_is_tried_like_the_eager_step(monkeypatch):
    """A trial clears gradients before the first pass, when there are none."""
    monkeypatch.setattr(step_module, "GraphedPass", partial(GraphedPass, capture=StubGraph().capture))
    step = new_step(Precision(torch.float32, "cpu"))
    batch = torch.randn(4, 3, 32, 32), torch.arange(4), torch.rand(4, step.model.visual.noise_columns)
    numbers = []
    for mode in ("eager", "graph"):
        run = _trial_pass(step, StepChoice(mode), batch)
        run()
        numbers.append({name: tensor.clone() for name, tensor in run().items()})
    eager, graph = numbers
    assert eager.keys() == graph.keys() and all(torch.equal(eager[name], graph[name]) for name in eager)


def test_processes_average_all_gradients_of_a_step_at_once(monkeypatch):
    """A stub of a second process. Nothing is averaged between micro-batches."""
    averaged, half = [], Precision(torch.bfloat16, "cpu", half_residual=True)
    monkeypatch.setattr(World, "equalise", lambda self, tensors: None)
    monkeypatch.setattr(World, "average", lambda self, values: averaged.append(values.clone()))
    for precision in (Precision(torch.float32, "cpu"), half):
        step = graphed(precision, StubGraph(), monkeypatch, accumulation=2)
        averaged.clear()
        step.world = World(0, 2, 0, torch.device("cpu"))
        step.connect(StepChoice("graph"))
        images = torch.randn(4, 3, 32, 32).to(precision.dtype)
        for k in range(2):
            step.micro_batch(
                images, torch.arange(4), torch.rand(4, step.model.visual.noise_columns), step=0, last=k == 1
            )
        gradients = [p.grad.flatten() for p in step.trained.parameters() if p.requires_grad]
        assert len(averaged) == 1 and averaged[0].norm() > 0
        assert averaged[0].numel() == sum(g.numel() for g in gradients)
        assert averaged[0].float().norm().item() == pytest.approx(torch.cat(gradients).float().norm().item(), rel=1e-3)
        step.update()
        assert not any(p.grad.any() for p in step.trained.parameters() if p.requires_grad), "zeroed in place"


def test_no_graphed_step_waits_for_the_device(monkeypatch):
    check_steps(graphed(Precision(torch.bfloat16, "cpu"), StubGraph(), monkeypatch))
