"""One optimiser step: micro-batches forward and backward, then the update. Nothing in it waits for the device."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastft.build import compile_model
from fastft.model import Classifier
from fastft.optim import Ema, HalfCopy
from fastft.train.distributed import World
from fastft.train.precision import Precision
from fastft.train.timing import Split


class Step:
    """The model with everything that changes it.

    `loss_sum` (float32) and `first_bad_step` (int64, -1 while every loss is finite) stay on the device. Reading them waits
    for it, so the loop reads them only when it logs or saves.
    """

    def __init__(
        self,
        model: Classifier,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        world: World,
        precision: Precision,
        *,
        accumulation: int = 1,
        label_smoothing: float = 0.0,
        clip_grad: float | None = None,
    ):
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.world, self.precision = world, precision
        self.accumulation, self.label_smoothing, self.clip_grad = accumulation, label_smoothing, clip_grad
        self.forward: Any = model
        self.half: HalfCopy[Classifier] | None = None
        self.scaler = precision.scaler()
        self.split = Split(world.device)
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)
        self.reset_loss()

    def connect(self, compile: str) -> None:
        """Set up gradient all-reduce (every process calls this) and torch.compile."""
        trained: torch.nn.Module = self.model
        if self.precision.half_residual:  # copied here, after a checkpoint may have been loaded
            self.half = HalfCopy(self.model, self.precision.dtype)
            trained = self.half.module
        self.forward = compile_model(self.world.wrap(trained), compile, self.world.device)

    def set_phase(self, patch_dropout: float, accumulation: int) -> None:
        """Train with this patch dropout and number of micro-batches per step from the next step on."""
        self.accumulation = accumulation
        self.model.visual.patch_dropout.rate = patch_dropout
        if self.half is not None:
            self.half.module.visual.patch_dropout.rate = patch_dropout

    def reset_loss(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float32, device=self.world.device)

    def weights_are_finite(self) -> bool:
        """Whether the trained weights have no NaN or Inf; waits for the device."""
        finite = [torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad]
        return bool(torch.stack(finite).all()) if finite else True

    def micro_batch(
        self, images: Tensor, targets: Tensor, noise: Tensor | None = None, *, step: int, last: bool
    ) -> None:
        """Add one micro-batch's gradients; the `last` of a step averages them over the processes.

        targets: int64 labels (b,), smoothed here, or float32 distributions (b, K), used as they are.
        """
        if self.world.size > 1:
            self.forward.require_backward_grad_sync = last
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        with self.precision.training_context():
            logits_BK = self.forward(images, noise)
        loss = F.cross_entropy(logits_BK.float(), targets, label_smoothing=smoothing)
        self.split.mark("forward")
        self.scaler.scale(loss / self.accumulation).backward()
        loss = loss.detach()
        self.loss_sum += loss / self.accumulation
        bad = ~torch.isfinite(loss) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)
        self.split.mark("backward")

    def update(self) -> None:
        """Update weights, loss scale and EMA from the gradients, and reset these."""
        if self.half is not None:
            self.half.move_gradients()
        if self.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # DistributedDataParallel copies gradients that are not views of its buckets, so views are kept for accumulation
        self.optimizer.zero_grad(set_to_none=self.world.size == 1 or self.accumulation == 1)
        if self.half is not None:
            self.half.refresh()
        self.split.mark("optimizer")
        if self.ema is not None:
            self.ema.update()
            self.split.mark("ema")
