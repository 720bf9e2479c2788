"""A run's set-up: `build_setup` builds all its parts once, in a fixed order."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import expand_home
from beton_tools.read.class_list import Classes
from fastft.augment.mix import Mixer
from fastft.augment.policies import AugmentPolicy
from fastft.augment.recipe_policy import build_mixer, build_policy
from fastft.cost.gpu_memory import COPIES, describe_too_large, state_bytes
from fastft.data.classes import refuse_other_classes, refuse_other_labels
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.order import Shard
from fastft.data.stage import Output
from fastft.machine.distributed import World
from fastft.machine.exits import NonFinite
from fastft.machine.precision import Precision, choose_precision
from fastft.machine.preempt import SignalGuard
from fastft.model import ImageClassifier
from fastft.model.head_file import WEIGHTS_OF_HEAD, read_head, set_head
from fastft.model.recipe_model import build_model, check_model
from fastft.optim import Ema, build_adamw, decay_for_batch, layer_groups, optimizer_groups
from fastft.optim.schedule import build_schedule
from fastft.recipe import AskedRecipe, FinalRecipe, Recipe
from fastft.recipe.constants import NONE
from fastft.recipe.training_images import with_images
from fastft.run.baseline import Baseline, read_baseline
from fastft.run.checkpoint import ModelState, list_checkpoints
from fastft.run.identity import refuse_other_run, with_stored_val
from fastft.run.inputs import Inputs
from fastft.run.run_directory import START_HEADS, run_folder
from fastft.run.tracking import Tracker, import_tracker, open_tracker
from fastft.train.checkpointing import Checkpointing
from fastft.train.micro_batch import MicroBatches, divide_batch
from fastft.train.progress import Progress
from fastft.train.step import Step
from fastft.train.step_choice import is_out_of_memory, refuse_impossible
from fastft.train.validation import Validation

OUT_OF_MEMORY_DEVICES = ["cuda"]  # devices whose allocator raises torch.OutOfMemoryError
SHOWN_SAMPLES = 8  # samples named for a step whose loss is NaN or Inf


@dataclass
class Setup:
    """A run's parts.

    Attributes:
        recipe: the final recipe.
        state: the part of the run's checkpoints that is constant.
        baseline: the linear probe's scores, if the run starts from one.
        progress: restored, or new. The run continues from it.
        began, deadline: when the set-up began and when the run must stop, by `time.monotonic`.
        tracker: only in the main process.
    """

    recipe: FinalRecipe
    state: ModelState
    folder: Path
    world: World
    guard: SignalGuard
    began: float
    deadline: float
    precision: Precision
    micro_batches: MicroBatches
    mixer: Mixer | None
    loader: TrainLoader
    validation: Validation
    step: Step
    schedule: Callable[[int], float]
    checkpoints: Checkpointing
    progress: Progress
    baseline: Baseline | None
    tracker: Tracker | None

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def reserve_bytes(self) -> int:
        """Bytes for the loaders, and for the optimiser's state, which the first step makes unless it is restored."""
        trained = sum(p.numel() for p in self.step.model.parameters() if p.requires_grad)
        moments = 0 if self.step.optimizer.state else (COPIES - 1) * 4 * trained
        return moments + int(self.micro_batches.loader_bytes)

    def position(self, progress: Progress) -> int:
        return progress.epoch * self.steps_per_epoch + progress.step

    def check_finite(self, steps_done: int, weights: bool = False) -> None:
        """Raise NonFinite, in all processes, if the run has diverged. weights: also check weights and moments."""
        divergence = self.step.find_divergence(steps_done, weights)
        if divergence is None:
            return
        step, what = divergence
        samples = self.loader.samples_of_step(*divmod(step, self.steps_per_epoch)).tolist()
        listed = ", ".join(map(str, samples[:SHOWN_SAMPLES]))
        rest = f", ... {len(samples)} in all" if len(samples) > SHOWN_SAMPLES else ""
        self.checkpoints.wait()  # the error names the last checkpoint
        good = list_checkpoints(self.checkpoints.folder)
        last = f"Last good checkpoint: {good[-1]}" if good else "There is no checkpoint yet"
        raise NonFinite(f"{what} at step {step} (samples {listed}{rest}). {last}")

    def consistency_key(self) -> dict[str, str]:
        """Return the values that must be equal in every process, by their name in error messages."""
        return {
            "checkpoints": str(self.position(self.progress)),
            "data": self.state.digest(),
            "devices or precisions (train.device, train.amp)": f"{self.world.device.type}, {self.precision}",
        }


def build_setup(
    recipe: FinalRecipe,
    inputs: Inputs,
    folder: Path,
    world: World,
    guard: SignalGuard,
    deadline: float,
    opened: ExitStack,
) -> Setup:
    """Set up a run in this process, and restore its newest checkpoint if there is one.

    The loaders and the checkpoint writer end with `opened`.

    Args:
        recipe: the final recipe, as `fastft.choose` returns it.
        folder: the run directory. Unless the run starts from a small random head, the folder has its head.

    Raises:
        UserError: bad input.
    """
    began = time.monotonic()
    checkpoints = Checkpointing(folder / "checkpoints", recipe.train, world)
    precision = choose_precision(recipe.train.amp, world.device, recipe.train.half_residual)
    model, ema = _build_models(recipe, world.device, folder, new=not checkpoints.exist)
    policy, mixer = build_policy(recipe), build_mixer(recipe)
    unit = 1 if mixer is None else 2  # mixup and CutMix take pairs
    micro_batches = divide_batch(recipe, model, world, precision, inputs, policy, unit)
    loader, evaluated = open_loaders(recipe, world, precision, micro_batches.size, inputs, policy, opened)
    validation = Validation(recipe, evaluated, loader.class_counts, world, precision, guard.is_stop_requested)

    step = _build_step(recipe, model, ema, world, precision, micro_batches.count)
    progress, identity = Progress(), inputs.identify(recipe)
    if checkpoints.exist:
        refuse = partial(refuse_other_run, now=identity, folder=folder)
        progress, stored = checkpoints.restore(step, loader.steps_per_epoch, refuse)
        identity = with_stored_val(identity, stored)
    state = ModelState.of_run(recipe.name, identity, loader.class_counts)

    opened.callback(checkpoints.close)
    tracker, done = None, progress.epoch * loader.steps_per_epoch + progress.step
    if world.is_main:
        tracker = open_tracker(recipe.train.tracker, folder, recipe.name, recipe.as_dict(), done)
    return Setup(
        recipe, state, folder, world, guard, began, deadline, precision, micro_batches, mixer, loader, validation, step,
        schedule=build_schedule(recipe, loader.steps_per_epoch), checkpoints=checkpoints, progress=progress,
        baseline=read_baseline(folder), tracker=tracker,
    )  # fmt: skip


def halve_if_too_large(setup: Setup, say: Callable[[str], None]) -> Setup:
    """Return the set-up, with half the micro-batch if it does not fit the GPU's memory in some process."""
    s, m, unit = setup, setup.micro_batches, 1 if setup.mixer is None else 2
    if s.world.device.type not in OUT_OF_MEMORY_DEVICES:
        return setup
    if not is_out_of_memory(s.recipe, s.step, m.size, s.reserve_bytes):
        return setup
    if m.size % (2 * unit):
        return setup
    halves = MicroBatches(m.size // 2, 2 * m.count, m.loader_bytes / 2)
    say(f"out of memory with {m.size} images per forward pass, trying {halves.size}")
    s.loader.resize(s.recipe.model.image_size, halves.size)
    s.step.accumulation = halves.count
    return replace(setup, micro_batches=halves)


def refuse_untrainable(recipe: AskedRecipe, inputs: Inputs, world: World) -> None:
    """Raise UserError for what cannot be trained, before weights are fetched or anything is written."""
    images = inputs.images
    if world.is_main and recipe.train.tracker != NONE:
        import_tracker(recipe.train.tracker)
    if inputs.val is not None:
        refuse_other_labels(inputs.val, with_images(recipe, images))
    one_label = {
        "model.head": recipe.model.head is not None,
        "data.sampling": recipe.data.sampling != NONE,
        "train.refit": recipe.train.refit,
    }
    for option, is_set in one_label.items():
        if images.multi_label and is_set:
            raise UserError(f"{option} works with one label per image, but the images have several. Leave it out")
    refuse_impossible(recipe, world.device)
    if not list_checkpoints(run_folder(recipe) / "checkpoints"):
        refuse_too_large(with_images(recipe, images), world.device)
        check_model(with_images(recipe, images))
        refuse_other_head(recipe, inputs)


def refuse_too_large(recipe: Recipe, device: torch.device) -> None:
    """Raise UserError if weights, gradients, moments and EMA alone exceed a GPU's memory."""
    if device.type != "cuda":
        return
    needed, there = needed_bytes(recipe, device), torch.cuda.get_device_properties(device).total_memory
    if needed > there:
        raise UserError(f"{recipe.model.arch} does not fit: {describe_too_large(needed, there)}")


def out_of_memory(recipe: FinalRecipe, device: torch.device) -> UserError:
    """Return the error for a set-up that has too little free GPU memory."""
    free, total = torch.cuda.mem_get_info(device)
    return UserError(
        f"out of memory while the model is set up: it takes {needed_bytes(recipe, device) / 1e9:,.1f} GB with gradients, "
        f"AdamW's moments and EMA, and {free / 1e9:,.1f} of {total / 1e9:,.1f} GB are free "
        "on this GPU. End other programs that use it"
    )


def needed_bytes(recipe: Recipe, device: torch.device) -> int:
    """Return the bytes of weights, gradients, moments and EMA, and of a half-precision copy if one is trained."""
    with torch.device("meta"):
        sizes = [(p.numel(), p.requires_grad) for p in build_model(recipe, pretrained=False).parameters()]
    half = choose_precision(recipe.train.amp, device, recipe.train.half_residual).half_residual
    trained = sum(size for size, is_trained in sizes if is_trained)
    return state_bytes(sum(size for size, _ in sizes), trained, ema=recipe.ema.decay > 0, half=half)


def _build_models(
    recipe: FinalRecipe, device: torch.device, folder: Path, new: bool
) -> tuple[ImageClassifier, Ema | None]:
    """Build the model on its device, and its EMA if the recipe has one. new: load the weights that runs start from."""
    model = build_model(recipe, pretrained=new)
    if new and recipe.model.head_init in START_HEADS:
        path = folder / START_HEADS[recipe.model.head_init]
        set_head(model, read_head(path), path)
    model = model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.visual.grad_checkpointing = recipe.train.grad_checkpointing
    options = recipe.ema
    if options.decay == 0:
        return model, None
    decay = decay_for_batch(options.decay, recipe.optim.batch_size, options.reference_batch)
    return model, Ema(model, decay)


def _build_step(
    recipe: FinalRecipe, model: ImageClassifier, ema: Ema | None, world: World, precision: Precision, accumulation: int
) -> Step:
    o = recipe.optim
    groups = optimizer_groups(model, layer_groups(model, model.visual.arch.layers, o.layer_decay, o.weight_decay))
    optimizer = build_adamw(groups, betas=(o.beta1, o.beta2), eps=o.eps)
    return Step(
        model, optimizer, ema, world, precision, accumulation=accumulation, label_smoothing=o.label_smoothing,
        clip_grad=o.clip_grad, multi_label=recipe.data.multi_label,
    )  # fmt: skip


def refuse_other_head(recipe: Recipe, inputs: Inputs) -> None:
    """Raise UserError if `model.head` is for other classes than the training file's, or was made from other weights."""
    if recipe.model.head is None:
        return
    path = expand_home(recipe.model.head)
    head = read_head(path)
    try:
        expected, by_position = Classes.of(head.classes), recipe.data.classes_by_position
        refuse_other_classes(inputs.train.known_classes, expected, str(recipe.data.train), by_position=by_position)
    except UserError as error:
        raise UserError(f"model.head {path} has other classes: {error}") from None
    # heads of fastft 0.3 do not say what their weights held
    if head.source.get(WEIGHTS_OF_HEAD, inputs.weights) != inputs.weights:
        raise UserError(
            f"model.head {path} was made from other weights ({head.source.get('weights')}) than model.weights "
            f"{recipe.model.weights}. Make it again with fastft zeroshot --out"
        )


def open_loaders(
    recipe: FinalRecipe,
    world: World,
    precision: Precision,
    micro_batch: int,
    inputs: Inputs,
    policy: AugmentPolicy,
    opened: ExitStack,
) -> tuple[TrainLoader, list[EvalLoader]]:
    """Open the loaders for the training images, and for validation and selection images if there are any.

    The loaders are closed with `opened`.

    Raises:
        UserError: a file does not fit the recipe.
    """
    r = recipe
    output = Output(r.model.image_size, world.device, precision.dtype)
    in_evaluation = replace(output, size=r.evaluated_size)
    common: dict[str, Any] = {
        "shard": Shard(world.rank, world.size),
        "workers": r.data.workers or None,
        "batches_ahead": r.data.batches_ahead,
    }
    loader: TrainLoader = opened.enter_context(TrainLoader(
        inputs.train, policy, output, seed=r.train.seed, batch_size=r.optim.batch_size, micro_batch=micro_batch,
        order=r.data.order, block_mib=r.data.block_mib, sampling=r.data.sampling, **common,
    ))  # fmt: skip
    if loader.num_classes > r.data.num_classes:
        raise UserError(
            f"{r.data.train} has {loader.num_classes} classes, but the recipe has {r.data.num_classes}. "
            f"Set --data.num_classes={loader.num_classes}"
        )
    evaluated = [
        opened.enter_context(EvalLoader(betons, policy, in_evaluation, batch_size=micro_batch, **common))
        for betons in inputs.evaluated
    ]
    return loader, evaluated
