"""Measure the candidates of `train.step` on a throw-away model; `fastft.train.step_measure` runs this as a program.

A process of its own leaves weights, random numbers and memory of the training as they are, can be stopped at a time limit in
the middle of a compilation, and may crash, as a compiler that does not know the GPU does.
"""

import gc
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastft.model import arch_from_dict
from fastft.model.attention import BF16_NATIVE, attention_candidates, default_kernel
from fastft.model.recipe_model import can_compile, compile_model
from fastft.recipe import recipe_from_dict
from fastft.train.distributed import World
from fastft.train.models import build_step, build_training_models
from fastft.train.precision import Precision
from fastft.train.step import Step
from fastft.train.step_choice import StepChoice, StepTrial, fastest, graph_obstacle

WARM_UP_CALLS, TIMED_CALLS = 2, 3
# largest for which a CUDA graph is tried: beyond, launches take less than 2 % of the time
GRAPH_MICRO_BATCH = 64
# largest relative difference from eager of the logits or of a parameter's gradient. Attention kernels that are right differ by
# 0.6 % in bf16 and by 0.1 % in fp16 (ViT-S and ViT-B on a CPU)
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
LOSS_SCALE = 2.0**16  # of fp16: gradients of a random model are far from underflow
SEED = 0


class TrialPass(Protocol):
    """A forward and backward pass of one micro-batch, finished when the call returns."""

    def __call__(self) -> None: ...

    def numbers(self) -> Mapping[str, Tensor]:
        """Logits and gradients of the last call, by name, in fp32 on the CPU."""
        ...


class Dropped(Exception):
    """Why a candidate is not taken."""


class TrialRunner:
    """Tries attention kernels, the first of which is the reference, then the modes with the fastest kernel.

    A candidate may use its share of the time that is left. The last one may use all of it.
    """

    def __init__(
        self,
        build: Callable[[StepChoice], TrialPass],
        kernels: Sequence[str],
        modes: Sequence[str],
        *,
        tolerance: float,
        deadline: float,
        report: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """deadline: on the clock. report: called with 'started' and a choice, and with 'ended' and a trial."""
        self._build, self._kernels, self._modes = build, kernels, modes
        self._tolerance, self._deadline, self._report, self._clock = tolerance, deadline, report, clock
        self._reference: Mapping[str, Tensor] | None = None
        self.trials: list[StepTrial] = []

    def run(self) -> list[StepTrial]:
        left = len(self._kernels) + len(self._modes)
        for kernel in self._kernels:
            self._try(StepChoice("eager", kernel), left)
            left -= 1
            if self._reference is None:
                return self.trials  # eager itself fails
        attention = fastest(self.trials).attention
        for mode in self._modes:
            self._try(StepChoice(mode, attention), left)
            left -= 1
        return self.trials

    def _try(self, choice: StepChoice, left: int) -> None:
        self._report("started", asdict(choice))
        seconds = (self._deadline - self._clock()) / left
        try:
            trial = StepTrial(choice, self._milliseconds(choice, seconds))
        except Dropped as error:
            trial = StepTrial(choice, None, str(error))
        except Exception as error:  # a kernel or a compiler that this device lacks
            trial = StepTrial(choice, None, describe_error(error))
        self.trials.append(trial)
        self._report("ended", trial.as_dict())

    def _milliseconds(self, choice: StepChoice, seconds: float) -> float:
        """Median time of a call, after its numbers have been compared. Raises Dropped."""
        if seconds <= 0:
            raise Dropped("no time left")
        until = self._clock() + seconds
        candidate = self._build(choice)
        for _ in range(WARM_UP_CALLS):
            self._timed(candidate, until, seconds)
        numbers = candidate.numbers()
        if self._reference is None:
            self._reference = numbers
        compare(numbers, self._reference, self._tolerance)
        return 1e3 * median(self._timed(candidate, until, seconds) for _ in range(TIMED_CALLS))

    def _timed(self, candidate: TrialPass, until: float, seconds: float) -> float:
        began = self._clock()
        candidate()
        ended = self._clock()
        if ended > until:
            raise Dropped(f"not finished after its {seconds:.0f} s")
        return ended - began


def compare(found: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare tensors by the norm of their difference over the reference's norm.

    Raises:
        Dropped: a tensor is missing, has NaN or Inf, or differs by more than the tolerance.
    """
    for name, exact in reference.items():
        if name not in found:
            raise Dropped(f"no {name}")
        if not torch.isfinite(found[name]).all():
            raise Dropped(f"NaN or Inf in {name}")
        error = float((found[name] - exact).norm() / exact.norm().clamp_min(torch.finfo(exact.dtype).tiny))
        if error > tolerance:
            raise Dropped(f"{name} differs by {error:.1%} from eager, limit {tolerance:.1%}")


def describe_error(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


# the real candidates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A measurement request as JSON values; the recipe and architecture as `Recipe.as_dict` and `asdict` give them."""

    recipe: dict[str, dict[str, Any]]
    arch: dict[str, Any]
    device: str
    dtype: str
    half_residual: bool
    micro_batch: int
    processes: int
    threads: int
    reserve_bytes: int  # memory that the training will need beside what a forward and backward pass needs
    seconds: float


class Candidates:
    """Builds the passes of candidates over one throw-away model and one random batch."""

    def __init__(self, request: Request) -> None:
        recipe = recipe_from_dict("trials", request.recipe)
        # the recipe's head gives gradients that are too small to be compared; weights from a file would not change the time
        model = replace(recipe.model, weights="random", head=None, head_init_scale=1.0)
        self.recipe = replace(recipe, model=model)
        self.device = torch.device(request.device)
        self.precision = Precision(getattr(torch, request.dtype), self.device.type, request.half_residual)
        self.model, _ = build_training_models(
            replace(self.recipe, ema=replace(recipe.ema, decay=0.0)), self.device, pretrained=False,
            arch=arch_from_dict(request.arch),
        )  # fmt: skip
        self.model.train()
        self._batch = self._random_batch(request.micro_batch)
        self._reserve = torch.empty(request.reserve_bytes if self.device.type == "cuda" else 0, dtype=torch.uint8,
                                    device=self.device)  # fmt: skip
        self._request = request

    def kernels(self) -> list[str]:
        """'auto' and the attention kernels that it is not; only 'auto' with a position bias and for timm's models."""
        if self.recipe.model.rel_pos_bias or not self.model.visual.has_attention_kernels:
            return ["auto"]
        usual = default_kernel(self.device, self.precision.dtype)
        return ["auto", *(kernel for kernel in attention_candidates(self.device) if kernel != usual)]

    def modes(self) -> list[str]:
        """The modes besides eager, compilation last because it takes longest."""
        request = self._request
        graph = (
            request.micro_batch <= GRAPH_MICRO_BATCH
            and graph_obstacle(self.recipe, self.device.type == "cuda", request.processes) is None
        )
        return ["graph"] * graph + ["compile"] * can_compile(self.device)

    def build(self, choice: StepChoice) -> TrialPass:
        gc.collect()  # of the candidate before
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            if choice.mode == "compile" and torch.cuda.get_device_capability(self.device) < BF16_NATIVE:
                probe_compiler(self.device)
        step = build_step(self.recipe, self.model, None, World(0, 1, 0, self.device), self.precision, 1)
        if self.precision.scaled:
            step.scaler = torch.amp.GradScaler(self.device.type, init_scale=LOSS_SCALE)
        step.connect(choice)
        return _StepPass(step, self._batch)

    def _random_batch(self, images: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, labels or (with mixup) distributions, and noise of the stochastic layers."""
        r, generator = self.recipe, torch.Generator(self.device).manual_seed(SEED)
        size, classes, columns = r.model.image_size, r.data.num_classes, self.model.visual.noise_columns
        options: dict[str, Any] = {"generator": generator, "device": self.device}
        pixels = torch.randn(images, 3, size, size, **options).to(self.precision.dtype)
        targets = torch.randint(classes, (images,), **options)
        if r.augment.mixes:
            targets = F.one_hot(targets, classes).float()
        noise = torch.rand(images, columns, **options) if columns else None
        return pixels.contiguous(memory_format=torch.channels_last), targets, noise


class _StepPass:
    """The trainer's step without its update."""

    def __init__(self, step: Step, batch: tuple[Tensor, Tensor, Tensor | None]) -> None:
        self._step, self._batch = step, batch

    def __call__(self) -> None:
        self._step.clear_gradients()
        images, targets, noise = self._batch
        self._logits = self._step.micro_batch(images, targets, noise, step=0, last=True)
        if images.is_cuda:
            torch.cuda.synchronize()

    def numbers(self) -> dict[str, Tensor]:
        gradients = {name: p.grad for name, p in self._step.trained.named_parameters() if p.grad is not None}
        # clones: on a CPU `float` and `cpu` return the tensor itself
        return {
            name: t.to("cpu", torch.float32, copy=True)
            for name, t in (gradients | {"logits": self._logits}).items()
        }


def probe_compiler(device: torch.device) -> None:
    """Compile one small kernel and compare its numbers: Triton for a GPU that it no longer supports fails within seconds.

    Raises:
        Dropped: it computes something else. What the compiler raises is not caught.
    """

    exact = nn.Sequential(nn.LayerNorm(768), nn.SiLU()).to(device, torch.float16)
    x = torch.linspace(-3, 3, 64 * 768, device=device, dtype=torch.float16).view(64, 768)
    with torch.no_grad():
        found, want = compile_model(exact)(x), exact(x)
    compare({"a small kernel": found.float()}, {"a small kernel": want.float()}, TOLERANCE[torch.float16])


def main(request_file: str, results_file: str) -> None:
    """Try the candidates of a request; each report is a line of the results."""
    began = time.monotonic()
    request = Request(**json.loads(Path(request_file).read_text()))
    # ends this process where the training that waits for it was killed
    signal.alarm(math.ceil(request.seconds) + 1)
    torch.set_num_threads(request.threads)
    if request.device != "cpu":
        torch.cuda.set_device(request.device)
    candidates = Candidates(request)
    with Path(results_file).open("a") as results:

        def report(event: str, values: Mapping[str, Any]) -> None:
            results.write(json.dumps({event: values}) + "\n")
            results.flush()

        TrialRunner(
            candidates.build, candidates.kernels(), candidates.modes(),
            tolerance=TOLERANCE[candidates.precision.dtype], deadline=began + request.seconds, report=report,
        ).run()  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
