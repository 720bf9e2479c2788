"""The set-up of a run: everything that it is made of, built once in the order of `build_setup`."""

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.augment import Mixer
from fastft.augment.recipe_policy import build_mixer, build_policy
from fastft.cost.work import phase_flops
from fastft.data import EvalLoader, Output, Shard, TrainLoader
from fastft.data.classes import refuse_other_classes
from fastft.data.engine import Engine
from fastft.data.stage import check_shrink
from fastft.model import ImageClassifier
from fastft.model.head_file import read_head
from fastft.model.phases import find_phases, with_phase
from fastft.optim.schedule import build_schedule
from fastft.recipe import Recipe, parse_duration, resolve
from fastft.recipe.training_images import NO_DATA, with_training_files
from fastft.run.continuation import refuse_other_run, shared_options
from fastft.run.run_directory import lock_run, read_choices, run_folder
from fastft.run.tracking import Tracker, open_tracker
from fastft.train.checkpointing import Checkpointing, describe_divergence
from fastft.train.distributed import World
from fastft.train.exceptions import NonFinite
from fastft.train.head_start import refuse_large
from fastft.train.micro_batch import COPIES, choose_micro_batch, loader_bytes
from fastft.train.models import build_step, build_training_models
from fastft.train.precision import Precision, choose_precision
from fastft.train.preempt import SignalGuard
from fastft.train.progress import Progress, describe_model
from fastft.train.run_phases import RunPhase, RunPhases
from fastft.train.step import Step
from fastft.train.step_choice import refuse_impossible
from fastft.train.validation import Validation


@dataclass(frozen=True)
class Setup:
    """The parts of a run.

    recipe: for the training files, with the automatic values of the run directory. progress: restored, or of a new run; the run
    goes on from it. deadline: by `time.monotonic`, after which the run stops. tracker: of the main process.
    """

    recipe: Recipe
    folder: Path
    world: World
    guard: SignalGuard
    deadline: float
    precision: Precision
    phases: RunPhases
    mixer: Mixer | None
    loader: TrainLoader
    validation: Validation
    step: Step
    schedule: Callable[[int], float]
    checkpoints: Checkpointing
    progress: Progress
    tracker: Tracker | None

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def moments_bytes(self) -> int:
        """Memory of the optimiser's state, which is made in the first step."""
        return (COPIES - 1) * 4 * sum(p.numel() for p in self.step.model.parameters() if p.requires_grad)

    def position(self, progress: Progress) -> int:
        """Optimiser steps done."""
        return progress.epoch * self.steps_per_epoch + progress.step

    def describe(self, recipe: Recipe) -> dict[str, Any]:
        """The constant part of a checkpoint's state."""
        return _describe(recipe, self.step.model, self.loader)

    def check_finite(self, steps_done: int, weights: bool = False) -> None:
        """Raise NonFinite, in all processes, if the run has diverged. weights: look at weights and moments too."""
        found = self.step.find_divergence(steps_done, weights)
        if found is not None:
            self.checkpoints.wait()  # the message names the last one
            samples = self.loader.samples_of_step(*divmod(found[0], self.steps_per_epoch)).tolist()
            raise NonFinite(describe_divergence(*found, samples, self.checkpoints.folder))

    def consistency_key(self) -> dict[str, str]:
        """Values that must be equal in every process, by their name in error messages."""
        loaders = [loader for loader in (self.loader, self.validation.loader) if loader is not None]
        # files may have other names on other hosts
        data = [{k: v for k, v in loader.content.items() if k != "files"} for loader in loaders]
        return {
            "checkpoints": str(self.position(self.progress)),
            "data": json.dumps(data, sort_keys=True),
            "recipes": shared_options(self.recipe),
        }


def build_setup(recipe: Recipe, world: World, guard: SignalGuard, opened: ExitStack) -> Setup:
    """Set up this process's part of a run, and restore its newest checkpoint if there is one.

    Nothing in an existing run directory is changed; a new one is made last, so that a failed set-up leaves nothing. Lock,
    loaders and writing checkpoints end with `opened`.

    Raises:
        UserError: bad input.
    """
    limit = recipe.train.stop_after
    deadline = math.inf if limit is None else time.monotonic() + parse_duration(limit, "train.stop_after")
    folder = run_folder(recipe)
    exists = folder.is_dir()
    if world.is_main and exists:  # lock it before its checkpoints are read
        opened.enter_context(lock_run(folder))
    checkpoints = Checkpointing(folder / "checkpoints", recipe.train, world, on_wait=guard.check)

    train_files = _open_training_files(recipe)
    recipe = with_training_files(recipe, train_files)
    if checkpoints.exist:
        recipe = resolve(recipe, read_choices(folder))
    _refuse_before_weights(recipe, train_files, world)

    precision = choose_precision(recipe.train.amp, world.device, recipe.train.half_residual)
    model, ema = build_training_models(recipe, world.device, pretrained=not checkpoints.exist)
    mixer = build_mixer(recipe)
    unit = 1 if mixer is None else 2  # mixup and CutMix take pairs
    phases = plan_phases(recipe, model, world, precision, train_files, unit)
    loader, eval_loader = open_loaders(
        recipe, world, precision, phases, train_files, opened, on_wait=guard.check
    )
    if not checkpoints.exist:
        refuse_other_head(recipe, loader.class_names)
    validation = Validation(
        recipe, eval_loader, loader.class_counts, world, precision, guard.is_stop_requested
    )

    step = build_step(recipe, model, ema, world, precision, phases.all[0].accumulation)
    progress = Progress()
    if checkpoints.exist:
        current = _describe(recipe, model, loader)
        refuse = partial(refuse_other_run, recipe=recipe, current=current, folder=folder)
        progress = checkpoints.restore(step, loader.steps_per_epoch, refuse)

    if world.is_main and not exists:
        opened.enter_context(lock_run(folder))
    opened.callback(checkpoints.close)
    return Setup(
        recipe, folder, world, guard, deadline, precision, phases, mixer, loader, validation, step,
        schedule=build_schedule(recipe, loader.steps_per_epoch), checkpoints=checkpoints, progress=progress,
        tracker=open_tracker(recipe.train.tracker, folder, recipe.name, recipe.as_dict()) if world.is_main else None,
    )  # fmt: skip


def _describe(recipe: Recipe, model: ImageClassifier, loader: TrainLoader) -> dict[str, Any]:
    return describe_model(recipe, model.visual.arch, loader.class_names, loader.content, loader.class_counts)


def _open_training_files(recipe: Recipe) -> BetonSet:
    """The .beton files of `data.train`.

    Raises:
        UserError: there are none, or photographs that are not prepared.
    """
    if recipe.data.train is None:
        raise UserError(NO_DATA)
    for path in filter(None, (recipe.data.train, recipe.data.val)):
        if Path(path).expanduser().is_dir():
            raise UserError(
                f"{path} is a folder of photographs; in Python, train(prepare_data(recipe, print)) converts it first, with "
                "prepare_data of fastft.photos.prepare"
            )
    return BetonSet.open(recipe.data.train)


def _refuse_before_weights(recipe: Recipe, train_files: BetonSet, world: World) -> None:
    """Raise UserError for what cannot be trained, before weights are fetched."""
    refuse_large(recipe, len(train_files))
    if recipe.data.val is not None:
        val = BetonSet.open(recipe.data.val)
        refuse_other_classes(val.class_names, train_files.class_names, recipe.data.val)
    refuse_impossible(recipe, world.device.type == "cuda", world.size)


def loader_bytes_per_image(recipe: Recipe, precision: Precision, train_files: BetonSet) -> float:
    """GPU memory of the loaders per image of a micro-batch."""
    val = recipe.data.val
    pixels = [b.largest.mean_pixels for b in (train_files, *([] if val is None else [BetonSet.open(val)]))]
    size, batches = recipe.model.image_size, Engine.slots(recipe.data.batches_ahead)
    return sum(loader_bytes(mean, size, precision.dtype, batches) for mean in pixels)


def fit_micro_batch(
    recipe: Recipe, model: ImageClassifier, world: World, precision: Precision, per_image: float, unit: int
) -> int:
    """Images per forward pass of a process, a divisor of its share of the batch.

    per_image: `loader_bytes_per_image`. unit: images that must stay together.

    Raises:
        UserError: as `choose_micro_batch`.
    """
    size, rank_batch = recipe.model.image_size, max(1, recipe.optim.batch_size // world.size)
    return choose_micro_batch(
        recipe.train.micro_batch, rank_batch, model, size, precision, unit=unit, loader_bytes=per_image
    )


def plan_phases(
    recipe: Recipe,
    model: ImageClassifier,
    world: World,
    precision: Precision,
    train_files: BetonSet,
    unit: int,
) -> RunPhases:
    """The phases of a recipe, each with the micro-batch that fits. unit: images that must stay together.

    Raises:
        UserError: as `find_phases` and `fit_micro_batch`.
    """
    arch, phases = model.visual.arch, []
    for phase in find_phases(recipe, arch):
        constant = with_phase(recipe, phase)
        model.visual.patch_dropout.rate = phase.patch_dropout
        per_image = loader_bytes_per_image(constant, precision, train_files)
        micro_batch = fit_micro_batch(constant, model, world, precision, per_image, unit)
        found = RunPhase(
            **asdict(phase),
            micro_batch=micro_batch,
            accumulation=max(1, recipe.optim.batch_size // world.size) // micro_batch,
            flops=phase_flops(recipe, arch, phase).train,
            loader_bytes=micro_batch * per_image,
        )
        phases.append(found)
    return RunPhases(phases)


def refuse_other_head(recipe: Recipe, class_names: Sequence[str]) -> None:
    """Raise UserError if the classes of `model.head` are not those of the training file."""
    if recipe.model.head is None:
        return
    path = Path(recipe.model.head).expanduser()
    try:
        refuse_other_classes(class_names, read_head(path).classes, str(recipe.data.train))
    except UserError as error:
        raise UserError(f"model.head {path} is of other classes: {error}") from None


def open_loaders(
    recipe: Recipe,
    world: World,
    precision: Precision,
    phases: RunPhases,
    train_files: BetonSet,
    opened: ExitStack,
    on_wait: Callable[[], None],
) -> tuple[TrainLoader, EvalLoader | None]:
    """The loaders of the training files, in the first phase, and of the validation files if there are any.

    They are closed with `opened`. Evaluation is at the final image size.

    on_wait: called while a batch is waited for.

    Raises:
        UserError: a file does not fit the recipe, or the validation files have other classes.
    """
    r = recipe
    output, policy = Output(r.model.image_size, world.device, precision.dtype), build_policy(r)
    first = phases.all[0]
    common: dict[str, Any] = {
        "shard": Shard(world.rank, world.size),
        "workers": r.data.workers or None,
        "batches_ahead": r.data.batches_ahead,
        "on_wait": on_wait,
    }
    loader: TrainLoader = opened.enter_context(TrainLoader(
        train_files, policy, replace(output, size=first.size), seed=r.train.seed, batch_size=r.optim.batch_size,
        micro_batch=first.micro_batch, order=r.data.order, block_mib=r.data.block_mib, **common,
    ))  # fmt: skip
    for phase in phases.all:
        check_shrink(loader.betons, world.device, phase.size)
    if loader.num_classes > r.data.num_classes:
        raise UserError(
            f"{r.data.train} has {loader.num_classes} classes, the recipe {r.data.num_classes}; "
            f"set --data.num_classes={loader.num_classes}"
        )
    if r.data.val is None:
        return loader, None
    eval_loader: EvalLoader = opened.enter_context(
        EvalLoader(
            r.data.val,
            policy,
            output,
            batch_size=phases.smallest_micro_batch,
            crop_pct=r.train.eval_crop_pct,
            **common,
        )
    )
    return loader, eval_loader
