"""One optimiser step: micro-batches forward and backward, also as a CUDA graph, then the update.

Nothing waits for the device.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastft.augment.rng import step_seed
from fastft.machine.distributed import World
from fastft.machine.precision import GROWTH_INTERVAL, YOUNG_STEPS, Precision
from fastft.model import ImageClassifier
from fastft.model.recipe_model import compile_blocks
from fastft.optim import Ema, HalfCopy
from fastft.train.timing import Split

NEVER = 1 << 62  # later than any step
SMALLEST_LOSS_SCALE = 2.0**-10  # 22 halvings below the start: every recent step has overflowed
COMPILED = {"compile": "default", "autotune": "max-autotune-no-cudagraphs"}  # Inductor's modes
MODES = ("eager", *COMPILED, "graph", "fused")
WARM_UP_PASSES = 3  # as PyTorch's CUDA graph documentation recommends, so that libraries allocate their workspaces
Pass = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepChoice:
    """The way to compute a step. mode: one of MODES. attention: one of ATTENTION_KERNELS, or 'auto'."""

    mode: str = "eager"
    attention: str = "auto"

    def __str__(self) -> str:
        return self.mode if self.attention == "auto" else f"{self.mode} with {self.attention} attention"


def draw_noise(columns: int, batch_size: int, seed: int, step: int, device: torch.device) -> Tensor | None:
    """Draw uniform numbers (batch_size, columns) for the stochastic layers. None for 0 columns.

    They depend only on seed and step, and have one row per image in the global batch. So neither a resume nor another
    number of processes or micro-batches changes what an image gets.
    """
    if columns == 0:
        return None
    generator = torch.Generator(device).manual_seed(step_seed(seed, step))
    return torch.rand(batch_size, columns, generator=generator, device=device)


class Step:
    """The model, with everything that changes it.

    `loss_sum` (float32) and `first_bad_step` (int64, -1 while every loss is finite) stay on the device. Reading them waits
    for the device, so the loop reads them only when it logs or saves.
    """

    def __init__(
        self,
        model: ImageClassifier,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        world: World,
        precision: Precision,
        *,
        accumulation: int = 1,
        label_smoothing: float = 0.0,
        clip_grad: float | None = None,
        multi_label: bool = False,
    ):
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.world, self.precision = world, precision
        self.accumulation, self.label_smoothing, self.clip_grad = accumulation, label_smoothing, clip_grad
        self.multi_label = multi_label
        self.forward: Any = model
        # holds the gradients of a backward pass: the model, or its half-precision copy
        self.trained: ImageClassifier = model
        self.half: HalfCopy[ImageClassifier] | None = None
        self._graph: GraphedPass | None = None
        self._flat: tuple[Tensor, ...] = ()  # all gradients of a CUDA graph, if processes average them
        self._compiled = False
        self.scaler = precision.scaler()
        self.split = Split(world.device)
        self.grad_norm = torch.zeros(())  # norm of all gradients together, before clipping
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)
        self.reset_loss()

    def connect(self, choice: StepChoice) -> None:
        """Set up gradient all-reduce (every process calls this) and the chosen way to compute the step."""
        self.model.visual.set_attention_kernel(choice.attention)
        if self.precision.half_residual:  # copied here, because a checkpoint may have been loaded before
            self.half = HalfCopy(self.model, self.precision.dtype)
            self.trained = self.half.module
        self.trained.visual.fused = choice.mode == "fused"
        if choice.mode in COMPILED:
            compile_blocks(self.trained, COMPILED[choice.mode])
            self._compiled = True
        if choice.mode != "graph":
            self.forward = self.world.wrap(self.trained)
            return
        self.forward = self.trained
        if self.world.size > 1:
            self.world.equalise(self.trained.parameters())
            self._flat = flatten_gradients(self.trained.parameters())
        self._graph = GraphedPass(self._pass, self.trained.parameters())

    def evaluation_context(self) -> AbstractContextManager:
        """Return the context for evaluating `model`.

        Its blocks run uncompiled, because they would otherwise be compiled for each batch size.
        """
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def reset_loss(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float32, device=self.world.device)

    def find_divergence(self, steps_done: int, weights: bool = False) -> tuple[int, str] | None:
        """Return (first bad step in any process, what is wrong), the same in all processes. None if nothing is wrong.

        Args:
            weights: also check the weights and the optimiser's moments. The loss shows a bad gradient only one step
                later. It never shows a second moment that has become Inf, which stops its weights from moving.
        """
        bad = int(self.first_bad_step.item())
        first = -self.world.max(-bad if bad >= 0 else -NEVER)
        if first != NEVER:
            return first, "the loss is NaN or Inf"
        if weights:
            moments = (m for state in self.optimizer.state.values() for m in state.values())
            trained = (p for p in self.model.parameters() if p.requires_grad)
            for tensors, what in ((trained, "the weights contain"), (moments, "the optimiser's moments contain")):
                finite = [torch.isfinite(t).all() for t in tensors if torch.is_tensor(t)]
                if self.world.any(bool(finite) and not torch.stack([f.to(self.world.device) for f in finite]).all()):
                    return steps_done - 1, f"{what} NaN or Inf"
        # the scale is the same in every process
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_LOSS_SCALE:
            return steps_done - 1, "every recent fp16 step overflows"
        return None

    def micro_batch(
        self, images: Tensor, targets: Tensor, noise: Tensor | None = None, *, step: int, last: bool
    ) -> Tensor:
        """Add one micro-batch's gradients, and return its logits.

        The `last` one in a step averages them over the processes.

        Args:
            targets: int64 labels (b,), smoothed here, or float32 (b, K), used unchanged: distributions, or with
                `multi_label` the probability of each label.
        """
        if self.world.size > 1 and self._graph is None:
            self.forward.require_backward_grad_sync = last
        if step == YOUNG_STEPS:  # checkpoints have the interval
            self.scaler.set_growth_interval(GROWTH_INTERVAL)
        logits_BK, loss = (self._graph or self._pass)(images, targets, noise)
        if last:
            for gradients in self._flat:
                self.world.average(gradients)
        self.loss_sum += loss / self.accumulation
        bad = ~torch.isfinite(loss) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)
        self.split.mark("backward")  # with a CUDA graph: forward and backward
        return logits_BK

    def _pass(self, images: Tensor, targets: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the forward and backward pass of a micro-batch, and return its logits and loss."""
        with self.precision.training_context():
            logits_BK = self.forward(images, noise)
        loss = self._loss(logits_BK.float(), targets)
        if self._graph is None:
            self.split.mark("forward")
        self.scaler.scale(loss / self.accumulation).backward()
        return logits_BK.detach(), loss.detach()

    def _loss(self, logits_BK: Tensor, targets: Tensor) -> Tensor:
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits_BK, targets)
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        return F.cross_entropy(logits_BK, targets, label_smoothing=smoothing)

    def update(self, is_logged: bool = False) -> None:
        """Update weights, loss scale and EMA from the gradients, and reset these. is_logged: also compute `grad_norm`."""
        if self.half is not None:
            self.half.move_gradients()
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        elif is_logged:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.grad_norm = torch.nn.utils.get_total_norm(gradients) / self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.clear_gradients()
        if self.half is not None:
            self.half.refresh()
        self.split.mark("optimizer")
        if self.ema is not None:
            self.ema.update()
            self.split.mark("ema")

    def clear_gradients(self) -> None:
        """Free the gradients, or set them to zero if they must stay in place.

        A CUDA graph adds to the gradients where they are. DistributedDataParallel copies gradients that are not views
        of its buckets, so views are kept for accumulation.
        """
        if self._graph is not None or (self.world.size > 1 and self.accumulation > 1):
            gradients = [p.grad for p in self.trained.parameters() if p.grad is not None]
            if gradients:  # there are none before the first pass
                torch._foreach_zero_(gradients)
        else:
            self.trained.zero_grad(set_to_none=True)
        if self.half is not None:
            self.model.zero_grad(set_to_none=True)


# as a CUDA graph ------------------------------------------------------------------------------------------------------


def flatten_gradients(parameters: Iterable[nn.Parameter]) -> tuple[Tensor, ...]:
    """Give every trained parameter a zero gradient inside one tensor per dtype, and return these tensors."""
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    flat = tuple(group[0].new_zeros(sum(p.numel() for p in group)) for group in by_dtype.values())
    for whole, group in zip(flat, by_dtype.values(), strict=True):
        for part, parameter in zip(whole.split([p.numel() for p in group]), group, strict=True):
            parameter.grad = part.as_strided(parameter.shape, parameter.stride())
    return flat


class GraphedPass:
    """Replays the `run` that it records: images, targets and noise to (logits, loss), adding gradients.

    It is one launch instead of about 1,000 (B/16). This pays at small micro-batches, where the host needs longer to
    launch the kernels than the GPU to run them. `torch.cuda.make_graphed_callables` and
    `torch.compile(mode="reduce-overhead")` are not used, because their gradients are overwritten when micro-batches
    accumulate (pytorch#181723, pytorch#169545).

    Several processes average all gradients at once, after the pass over a step's last micro-batch: the graph holds no
    communication.

    Inputs are copied to fixed tensors. Results lie in fixed tensors, which the next call overwrites. Gradients must
    stay where they are between calls: use `zero_grad(set_to_none=False)`.
    """

    def __init__(
        self,
        run: Pass,
        parameters: Iterable[nn.Parameter],
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        """Create the pass. capture: runs a function a few times and returns its replay, by default `capture_graph`."""
        self._run, self._parameters = run, [p for p in parameters if p.requires_grad]
        self._capture = capture or capture_graph
        self._inputs: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __call__(self, images: Tensor, targets: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._inputs is None:
            self._record(images, targets, noise)
        assert self._inputs is not None
        for fixed, given in zip(self._inputs, (images, targets, noise), strict=True):
            if fixed is not None and given is not None:
                fixed.copy_(given)
        self._replay()
        return self._outputs

    def _record(self, images: Tensor, targets: Tensor, noise: Tensor | None) -> None:
        """Record before the first step, when there are no gradients except the recording's own."""
        self._inputs = (images.clone(), targets.clone(), None if noise is None else noise.clone())
        self._replay = self._capture(self._pass)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def _pass(self) -> None:
        assert self._inputs is not None
        self._outputs = self._run(*self._inputs)


def capture_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Run a function on a side stream, record it as a CUDA graph, and return the replay.

    Meanwhile the loader's threads go on using CUDA, which only the error mode 'thread_local' allows.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_PASSES):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
