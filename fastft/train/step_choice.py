"""Choose how the training step is computed: eagerly, compiled, as a CUDA graph or by fused kernels, and its attention kernel.

`train.step` names the way. 'auto' on a GPU and 'measure' time the candidates in this process, on a copy of the model.
Checkpoints record the choice, so that a resumed run computes as before. docs/step.md lists the candidates by device.
"""

import copy
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from beton_tools.base.errors import UserError, first_line
from fastft.machine.distributed import World
from fastft.machine.exits import GpuLost
from fastft.machine.facts import cpu_name
from fastft.machine.precision import choose_precision
from fastft.model.attention import ATTENTION_KERNELS, BF16_NATIVE, attention_candidates, default_kernel
from fastft.model.recipe_model import can_compile, can_fuse
from fastft.recipe import FinalRecipe, Recipe
from fastft.run.checkpoint import StoredStep
from fastft.run.trial_record import TrialRecord
from fastft.train.step import COMPILED, MODES, Step, StepChoice

MARGIN = 0.02  # an earlier candidate is kept if it is at most this much slower, because such differences are noise
WARM_UP_CALLS, TIMED_CALLS = 2, 3
# CUDA graphs are tried for micro-batches up to this size: above it, launches take less than 2 % of the time
GRAPH_MICRO_BATCH = 64
# By how much logits, or a parameter's gradient, may differ from eager (relative). Correct attention kernels differ by
# 0.6 % in bf16 and by 0.1 % in fp16 (ViT-S and ViT-B on a CPU).
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
LOSS_SCALE = 2.0**16  # for fp16: the first batch's gradients are far from overflow
SEED = 0

# runs a micro-batch forward and backward, and returns logits and gradients by name
Pass = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class StepTrial:
    """A candidate: its milliseconds for a micro-batch's forward and backward pass, or the reason why it was dropped."""

    choice: StepChoice
    milliseconds: float | None
    reason: str | None = None

    def __str__(self) -> str:
        result = f"dropped ({self.reason})" if self.milliseconds is None else f"{self.milliseconds:.1f} ms"
        return f"{self.choice} {result}"


@dataclass(frozen=True)
class Decision:
    """A choice and its origin: default, recipe, checkpoint or measurement."""

    choice: StepChoice
    origin: str
    trials: tuple[StepTrial, ...] = ()

    @property
    def is_worth_a_line(self) -> bool:
        return bool(self.trials) or self.choice != StepChoice()

    def describe(self) -> str:
        """Return the log line: what was chosen, and how the other candidates did."""
        by_choice = {trial.choice: trial for trial in self.trials}
        chosen = by_choice.pop(self.choice, None)
        time = f": {chosen.milliseconds:.1f} ms per micro-batch" if chosen and chosen.milliseconds else ""
        others = f" ({', '.join(map(str, by_choice.values()))})" if by_choice else ""
        return f"step: {self.choice} (from {self.origin}){time}{others}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the 'start' line of metrics.jsonl."""
        trials = [{**asdict(t.choice), "milliseconds": t.milliseconds, "reason": t.reason} for t in self.trials]
        return {
            "step_mode": self.choice.mode,
            "step_attention": self.choice.attention,
            "step_origin": self.origin,
            "step_trials": trials,
        }


def refuse_impossible(recipe: Recipe, device: torch.device) -> None:
    """Raise UserError if `train.step` names a way in which this recipe's steps cannot be computed."""
    mode = recipe.train.step
    if (reason := failure(mode, recipe, device)) is not None:
        raise UserError(f"train.step is {mode}, which {reason}. Use --train.step=auto")


def failure(mode: str, recipe: Recipe, device: torch.device) -> str | None:
    """Return why a step cannot be computed in this mode, or None if it can."""
    train = recipe.train
    if mode in ("graph", "fused"):
        if device.type != "cuda":
            return "needs a GPU"
        if train.grad_checkpointing:
            return "does not work with train.grad_checkpointing"
    if mode == "fused":
        if not choose_precision(train.amp, device, train.half_residual).half_residual:
            return "needs half-precision weights (--train.half_residual=on)"
        if not can_fuse(recipe):
            return "does not know timm's models, LayerScale and stochastic depth"
    if mode not in PROBES:
        return None
    needed, probe = PROBES[mode]
    try:
        probe(device)
    except Exception as error:  # a compiler and the driver raise many types
        return f"needs {needed}, which fails here ({first_line(error)})"
    return None


def _probe_compiler(device: torch.device) -> None:
    torch.compile(lambda x: 2 * x + 1)(torch.ones(8, device=device))


def _probe_fused(device: torch.device) -> None:
    x_RD, gain_D = (torch.zeros(*shape, 64, dtype=torch.float16, device=device) for shape in ((1,), ()))
    torch.ops.fastft.add_norm(x_RD, x_RD, gain_D, gain_D, 1e-5)[0].cpu()


# mode -> (what it needs, the smallest computation that shows whether this works)
PROBES = {
    **dict.fromkeys(COMPILED, ("a compiler", _probe_compiler)),
    "fused": ("numba-cuda (`fastft doctor` examines it)", _probe_fused),
}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def stored_choice(stored: StoredStep | None, device: str) -> StepChoice | None:
    """Return a checkpoint's choice, if it was made for the same device name and this version knows it."""
    if stored is None or stored.device != device:
        return None
    known = stored.mode in MODES and stored.attention in ("auto", *ATTENTION_KERNELS)
    return StepChoice(stored.mode, stored.attention) if known else None


def choose_step(
    recipe: FinalRecipe,
    step: Step,
    micro_batch: int,
    stored: StoredStep | None,
    *,
    reserve_bytes: int,
    say: Callable[[str], None],
    record: TrialRecord | None = None,
) -> Decision:
    """Decide how steps are computed, the same in every process. All processes call this once, before `step.connect`.

    The recipe's choice comes first, then the run's earlier one if every process can compute it, then the fastest
    candidate in process 0. On a CPU 'auto' measures nothing, and the step is eager.

    Args:
        stored: the choice that the checkpoint records (`fastft.train.progress.Progress.step_choice`).
        reserve_bytes: GPU memory that optimiser and loaders will take.
        say: prints a line.
        record: the candidates that ended an earlier process of this run, which are not tried again.

    Raises:
        GpuLost: a candidate has left the GPU unusable.
    """
    world, requested = step.world, recipe.train.step
    if "torch._dynamo" in sys.modules:  # otherwise the runs of a sweep would reach the recompilation limit
        torch.compiler.reset()
    if requested in MODES:  # every process's set-up has checked these
        return Decision(StepChoice(requested), "recipe")
    earlier = world.broadcast(stored_choice(stored, device_name(world.device)))
    if earlier is not None:
        reason = failure(earlier.mode, recipe, world.device)
        if not world.any(reason is not None):
            return Decision(earlier, "checkpoint")
        say(f"step: {earlier} (from checkpoint) {reason or 'is not possible in another process'}. Choosing another")
    if requested == "auto" and world.device.type == "cpu":
        return Decision(StepChoice(), "default")
    fused = not world.any(_is_newer(world.device) or failure("fused", recipe, world.device) is not None)
    measured = _measure(recipe, step, micro_batch, reserve_bytes, say, record, fused) if world.is_main else None
    return world.broadcast(measured)


def is_out_of_memory(recipe: FinalRecipe, step: Step, micro_batch: int, reserve_bytes: int) -> bool:
    """True if an eager pass over this many images runs out of memory in some process. Call it before `step.connect`.

    Args:
        reserve_bytes: as for `choose_step`.
    """
    device, failed = step.world.device, False
    try:
        reserved = torch.empty(reserve_bytes if device.type == "cuda" else 0, dtype=torch.uint8, device=device)
        trial = Step(step.model, step.optimizer, None, World(0, 1, 0, device), step.precision)
        trial.connect(StepChoice())
        trial.model.train()
        batch = _random_batch(recipe, step.model.visual.noise_columns, micro_batch, device, step.precision.dtype)
        trial.micro_batch(*batch, step=0, last=True)
        del reserved
    except torch.OutOfMemoryError:
        failed = True
    step.model.zero_grad(set_to_none=True)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return step.world.any(failed)


# measuring ------------------------------------------------------------------------------------------------------------


class Dropped(Exception):
    """Why a candidate is dropped."""


def _measure(
    recipe: FinalRecipe,
    step: Step,
    micro_batch: int,
    reserve_bytes: int,
    say: Callable[[str], None],
    record: TrialRecord | None,
    fused: bool,
) -> Decision:
    """fused: fused kernels are a candidate."""
    device, dtype = step.world.device, step.precision.dtype
    kernels = ["auto"]
    if step.model.visual.has_attention_kernels and not recipe.model.rel_pos_bias:
        usual = default_kernel(device, dtype)
        kernels += [kernel for kernel in attention_candidates(device) if kernel != usual]
    modes = ["fused"] * fused + candidate_modes(recipe, device, micro_batch, step.world.size)
    if len(kernels) + len(modes) == 1:
        return Decision(StepChoice(), "default")
    say("measuring how to compute a step")
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else [], device_type=device.type if on_gpu else "cuda"):
        reserved = torch.empty(reserve_bytes if on_gpu else 0, dtype=torch.uint8, device=device)
        batch = _random_batch(recipe, step.model.visual.noise_columns, micro_batch, device, dtype)
        trials = run_trials(
            lambda choice: _trial_pass(step, choice, batch),
            kernels,
            modes,
            TOLERANCE[dtype],
            device=device,
            record=record,
        )
        del reserved
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return Decision(fastest(trials), "measurement", tuple(trials))


def candidate_modes(recipe: FinalRecipe, device: torch.device, micro_batch: int, processes: int) -> list[str]:
    """List the modes to compare with eager, compilation last because it takes longest.

    A CUDA graph is listed for one process only. Several processes average its gradients after the backward pass,
    instead of during it, and a measurement in one process does not see this. Compilation is not listed below compute
    capability 8.0 (V100): Triton no longer supports these devices, and its compiler may end the process. There the fused
    kernels do what the compiler does on newer devices.
    """
    graph = processes == 1 and micro_batch <= GRAPH_MICRO_BATCH and failure("graph", recipe, device) is None
    compiled = (_is_newer(device) or device.type == "cpu") and can_compile(device)
    return ["graph"] * graph + ["compile"] * compiled


def _is_newer(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= BF16_NATIVE


def run_trials(
    build: Callable[[StepChoice], Pass],
    kernels: Sequence[str],
    modes: Sequence[str],
    tolerance: float,
    *,
    device: torch.device,
    record: TrialRecord | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[StepTrial]:
    """Try the attention kernels, the first of which is the reference, then the modes with the fastest kernel.

    A candidate is dropped if it fails, if it ended an earlier process, or if its logits or gradients differ from the
    reference by more than `tolerance`.

    Raises:
        GpuLost: the GPU no longer answers.
    """
    trials: list[StepTrial] = []
    reference: dict[str, Tensor] = {}

    def attempt(choice: StepChoice) -> None:
        if record is not None and str(choice) in record.ended:
            trials.append(StepTrial(choice, None, f"ended an earlier process. Delete {record.path} to try it again"))
            return
        with nullcontext() if record is None else record.trying(str(choice)):
            measure(choice)

    def measure(choice: StepChoice) -> None:
        try:
            run = build(choice)
            for _ in range(WARM_UP_CALLS):
                numbers = run()
            if reference:
                compare(numbers, reference, tolerance)
            else:
                reference.update({name: t.detach().clone() for name, t in numbers.items()})
            seconds = []
            for _ in range(TIMED_CALLS):
                began = clock()
                run()
                seconds.append(clock() - began)
            trials.append(StepTrial(choice, 1e3 * median(seconds)))
        except Dropped as error:
            trials.append(StepTrial(choice, None, str(error)))
        except Exception as error:  # this device lacks a kernel or a compiler
            _refuse_lost_gpu(device, choice, error)
            trials.append(StepTrial(choice, None, first_line(error)))

    for kernel in kernels:
        attempt(StepChoice("eager", kernel))
        if not reference:
            return trials  # eager itself fails
    attention = fastest(trials).attention
    for mode in modes:
        attempt(StepChoice(mode, attention))
    return trials


def _refuse_lost_gpu(device: torch.device, choice: StepChoice, error: Exception) -> None:
    """Raise GpuLost if the error has left the GPU unusable: every later call in this process would repeat it."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        raise GpuLost(f"{choice} made the GPU unusable ({first_line(error)}). The same command skips it") from None


def fastest(trials: Sequence[StepTrial]) -> StepChoice:
    """Return the first trial's choice that is within MARGIN of the fastest, or the default if none was measured."""
    measured = {trial.choice: trial.milliseconds for trial in trials if trial.milliseconds is not None}
    limit = min(measured.values(), default=0.0) * (1 + MARGIN)
    return next((choice for choice, time in measured.items() if time <= limit), StepChoice())


def compare(computed: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare tensors by the difference's norm, relative to the reference's norm.

    Raises:
        Dropped: a tensor is missing, has NaN or Inf, or differs by more than the tolerance.
    """
    for name, exact in reference.items():
        if name not in computed:
            raise Dropped(f"no {name}")
        got, want = computed[name].float(), exact.float()
        if not torch.isfinite(got).all():
            raise Dropped(f"NaN or Inf in {name}")
        error = float((got - want).norm() / want.norm().clamp_min(torch.finfo(torch.float32).tiny))
        if error > tolerance:
            raise Dropped(f"{name} differs by {error:.1%} from eager, limit {tolerance:.1%}")


def _trial_pass(step: Step, choice: StepChoice, batch: tuple[Tensor, Tensor, Tensor | None]) -> Pass:
    """Run the trainer's step without its update, on a copy of its model.

    The copy has a random head. Gradients through the recipe's head, which is small, are too small to be compared.
    """
    gc.collect()  # frees what the previous candidate took
    model = copy.deepcopy(step.model).train()
    generator = torch.Generator().manual_seed(SEED)
    head = torch.randn(model.head.weight.shape, generator=generator) * model.head.in_features**-0.5
    model.head.weight.data.copy_(head)
    device = step.world.device
    trial = Step(
        model, step.optimizer, None, World(0, 1, 0, device), step.precision, label_smoothing=step.label_smoothing,
        multi_label=step.multi_label,
    )  # fmt: skip
    if step.precision.scaled:
        trial.scaler = torch.amp.GradScaler(device.type, init_scale=LOSS_SCALE)
    trial.connect(choice)
    images, targets, noise = batch

    def run() -> Mapping[str, Tensor]:
        trial.clear_gradients()
        logits = trial.micro_batch(images, targets, noise, step=0, last=True)
        if images.is_cuda:
            torch.cuda.synchronize()
        gradients = {name: p.grad for name, p in trial.trained.named_parameters() if p.grad is not None}
        return gradients | {"logits": logits}

    return run


def _random_batch(
    recipe: FinalRecipe, columns: int, images: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return images, labels (distributions with mixup or multi-label), and noise for the stochastic layers."""
    options: dict[str, Any] = {"generator": torch.Generator(device).manual_seed(SEED), "device": device}
    size, classes = recipe.model.image_size, recipe.data.num_classes
    pixels = torch.randn(images, 3, size, size, **options).to(dtype)
    targets = torch.randint(classes, (images,), **options)
    if recipe.augment.mixes or recipe.data.multi_label:
        targets = F.one_hot(targets, classes).float()
    noise = torch.rand(images, columns, **options) if columns else None
    return pixels.contiguous(memory_format=torch.channels_last), targets, noise
