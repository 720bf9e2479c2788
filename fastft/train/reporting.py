"""A run's log: its first lines, its intervals, evaluations and epochs, and its process's hardware."""

import math
import os
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import torch
from rich.console import Console

from beton_tools import __version__
from beton_tools.base.console import counted, format_duration
from fastft.cost.work import evaluated_models, recipe_flops
from fastft.data.loader import TrainLoader
from fastft.data.warnings import SPEED, TRAINING, Warned
from fastft.evaluate.scores import Evaluated
from fastft.machine.distributed import World
from fastft.machine.exits import Preempted
from fastft.machine.facts import cpu_name
from fastft.machine.gpus import data_sheet_flops
from fastft.machine.precision import Precision
from fastft.model import count_flops
from fastft.optim.ema import ema_warnings
from fastft.optim.schedule import short_run_warnings
from fastft.recipe import FinalRecipe
from fastft.run.baseline import Baseline
from fastft.run.checkpoint import Logged
from fastft.run.evaluations import BALANCED_ACCURACY, ByWeights, Evaluation, describe_imbalance, flatten
from fastft.run.metrics_lines import LOG, Interval, RawLine, Start, read_lines
from fastft.run.metrics_log import RunLog
from fastft.run.predictions import write_validation
from fastft.run.run_directory import write_identity, write_recipe
from fastft.train.progress import describe_baseline, describe_evaluation
from fastft.train.setup import Setup
from fastft.train.step import Step
from fastft.train.step_choice import Decision

LONG_SECONDS = 3600  # a run on a CPU that takes longer gets advice
TIMED_STEPS = 3  # on a CPU the remaining time is estimated from this many steps after the process's first one


class Meter:
    """Steps, loss and seconds since the last log line, also across a resume.

    `state_dict` waits for the device, but counting does not.
    """

    def __init__(self, step: Step, loader: TrainLoader, world: World) -> None:
        self._step, self._loader, self._world = step, loader, world
        self._split: defaultdict[str, float] = defaultdict(float)
        self._has_batch = False  # whether this process has received its first batch
        self.steps, self._began = 0, time.monotonic()
        self.paused = 0.0  # seconds, summed over all pauses
        self.reset()

    def reset(self) -> None:
        self._step.reset_loss()
        self._loader.wait_seconds = 0.0
        self.steps = 0
        self._split.clear()
        self._began = time.monotonic()

    def mark_batch(self, logged: Logged | None) -> None:
        """End the wait for a batch. A process's first wait is counted as `start`, and in no interval.

        Args:
            logged: the interval in the checkpoint that the process continues from (`state_dict`).
        """
        if self._has_batch:
            self._step.split.mark("wait")
            return
        self.reset()
        if logged is not None:
            self.load_state_dict(logged)
        self._step.split.mark("start")
        self._has_batch = True

    def pause(self, seconds: float) -> None:
        """Leave the last `seconds`, spent on evaluation or saving, out of the interval."""
        self._began += seconds
        self.paused += seconds

    def state_dict(self) -> Logged:
        """Return the interval so far.

        A checkpoint stores it, so that after a resume the log line covers all steps in its interval.
        """
        loss_sum = self._world.sum(self._step.loss_sum / self._world.size).item()
        seconds = time.monotonic() - self._began  # after .item(), which waits for the device
        for part, spent in (self._step.split.collect() | self._loader.pop_timings()).items():
            self._split[part] += spent
        return Logged(
            steps=self.steps,
            loss_sum=loss_sum,
            seconds=seconds,
            waited=self._loader.wait_seconds,
            split=dict(self._split),
        )

    def load_state_dict(self, state: Logged) -> None:
        """Restore what `state_dict` returned, on an interval that has just begun."""
        if state.steps == 0:
            return
        self.steps = state.steps
        self._step.loss_sum += state.loss_sum
        self._loader.wait_seconds = state.waited
        self._split.update(state.split)
        self._began -= state.seconds


class Reporter:
    """Writes what happens to the console and to the run directory. `meter` measures the intervals between two lines."""

    def __init__(self, setup: Setup, log: RunLog) -> None:
        self._setup, self._log = setup, log
        self.meter = Meter(setup.step, setup.loader, setup.world)
        self._flops = recipe_flops(setup.recipe, setup.step.model.visual.arch).train
        self._peak = data_sheet_flops(setup.world.device, setup.precision.dtype)
        self.say, self.record = log.info, log.record
        self._timed: list[float] = []  # times at which the first steps ended

    def start(self, decision: Decision, step: int) -> None:
        """Write the lines that come before this process's first step. step: optimiser steps done."""
        s, recipe = self._setup, self._setup.recipe
        trained = sum(p.numel() for p in s.step.model.parameters() if p.requires_grad)
        self.say(
            f"{recipe.name}: {trained:,} trainable parameters, {counted(s.loader.num_samples, 'images')}, "
            f"{describe_size(recipe)}, {s.micro_batches.describe(s.world.size)}, {s.precision.name} on {s.world.device}, "
            f"run in {s.folder}"
        )
        for warning in (*ema_warnings(recipe), *short_run_warnings(recipe)):
            self.say(Warned(warning, TRAINING))
        for note in s.loader.notes:
            self.say(Warned(note, SPEED))
        if decision.is_worth_a_line:
            self.say(decision.describe())
        if s.validation.loader is not None and s.validation.best_by == BALANCED_ACCURACY:
            self.say(describe_imbalance(s.loader.class_counts))
        if recipe.data.selection_share:
            left_out = s.validation.loaders[-1].num_samples
            self.say(
                f"{left_out:,} training images are left out of training to choose epoch and weights (data.selection_share)"
            )
        seconds = time.monotonic() - s.began
        started = msgspec.to_builtins(describe_process(s.world, s.precision, seconds))
        self.record("start", step, started | {"world_size": s.world.size} | decision.as_dict())
        for damaged in s.checkpoints.damaged:
            name = damaged.path.name
            self.say(
                f"{name} is damaged ({damaged.reason}). It was renamed to damaged-{name}, and an older checkpoint is used"
            )
        if step:
            self.say(f"continuing after step {step} of {s.total_steps}")

    def baseline(self, baseline: Baseline) -> None:
        scores = ByWeights(raw=baseline.raw), baseline.selection
        made: RawLine = {name: getattr(baseline, name) for name in ("images", "penalty", "scale", "seconds")}
        self.record("baseline", 0, {**made, **flatten(*scores)})
        self.say(describe_baseline(baseline, self._setup.validation.best_by))

    def interval(self, epoch: int, step: int, lr: float) -> float:
        """Write a line for the steps since the previous one, and return their seconds."""
        s, now = self._setup, self.meter.state_dict()
        s.check_finite(step)
        batch = s.recipe.optim.batch_size
        rate = now.steps * batch / now.seconds
        achieved = rate / s.world.size * self._flops
        self._log.interval(Interval(
            step=step,
            epoch=epoch,
            loss=now.loss_sum / now.steps,
            lr=lr,
            grad_norm=norm if math.isfinite(norm := float(s.step.grad_norm)) else None,
            images_per_second=rate,
            wait_share=now.waited / now.seconds,
            mfu=None if self._peak is None else achieved / self._peak,
            memory_gib=peak_memory(s.world.device) / 2**30,
            seconds_left=(s.total_steps - step) * batch / rate,
            split=now.split,
        ))  # fmt: skip
        self.meter.reset()
        return now.seconds

    def advance(self, step: int, epoch: int) -> None:
        """Count a step. On a CPU, say once how long the rest will take. step, epoch: steps and whole epochs done so far."""
        self._log.advance()
        if self._setup.world.device.type != "cpu" or len(self._timed) > TIMED_STEPS:
            return
        self._timed.append(time.monotonic() - self.meter.paused)
        if len(self._timed) > TIMED_STEPS:
            self._estimate(step, epoch, (self._timed[-1] - self._timed[0]) / TIMED_STEPS)

    def _estimate(self, step: int, epoch: int, seconds: float) -> None:
        """Log the estimated remaining time, given the seconds per step.

        Evaluating an image is assumed to be faster than training on it in proportion to its fewer FLOPs.
        """
        s, r = self._setup, self._setup.recipe
        steps, passes = s.total_steps - step, r.evaluations_after(epoch) * bool(s.validation.loaders)
        images = evaluated_models(r) * sum(loader.num_samples for loader in s.validation.loaders)
        share = count_flops(s.step.model.visual.arch, r.data.num_classes).forward / self._flops / r.optim.batch_size
        left = seconds * (steps + passes * images * share)
        rest = f"{counted(steps, 'steps')} at {seconds:.2g} s, {counted(passes, 'evaluations')}"
        self.say(f"about {format_duration(left)} left ({rest})")
        if left > LONG_SECONDS:
            epochs = max(1, int(r.epochs * LONG_SECONDS / left))
            self.say(
                f"a CPU is slow: --schedule.epochs={epochs} takes about an hour. --model.trainable_layers=4 or a smaller "
                "--model.arch or --model.image_size are faster too. Start anew with another --train.run_dir"
            )

    def evaluation(self, entry: Evaluation, evaluated: Mapping[str, Evaluated], seconds: float, step: int) -> None:
        self.meter.pause(seconds)
        self.record(
            "eval", step, {"epoch": entry.epoch, "seconds": seconds, **flatten(entry, entry.selection, entry.best_by)}
        )
        if self._setup.world.is_main:
            kept = {weights: of_weights.predictions for weights, of_weights in evaluated.items()}
            write_validation(self._setup.folder, entry.epoch, kept)
        self.say(describe_evaluation(entry))

    def checkpoint(self, seconds: float, step: int) -> None:
        """Log a checkpoint. seconds: how long training paused. They are left out of the interval."""
        self.meter.pause(seconds)
        self.record("checkpoint", step, {"seconds": seconds})


def describe_size(recipe: FinalRecipe) -> str:
    """Return the image sizes in training and evaluation."""
    trained, evaluated = recipe.model.image_size, recipe.evaluated_size
    return f"{trained} px" if evaluated == trained else f"{trained} px ({evaluated} px in evaluation)"


@contextmanager
def open_log(setup: Setup, console: Console) -> Iterator[RunLog]:
    """Open the run directory for writing. Nothing in it is changed before."""
    replaced = False
    if setup.world.is_main:
        earlier = [] if setup.checkpoints.exist else read_lines(setup.folder / LOG)
        replaced = any(line["step"] for line in earlier)
        setup.checkpoints.prepare_folder(setup.progress.best())
        write_recipe(setup.folder, setup.recipe)  # a resume may have other paths and intervals
        write_identity(setup.folder, setup.state)
    log = RunLog(
        setup.folder, setup.total_steps, setup.position(setup.progress), setup.world.is_main, console, setup.tracker,
        on_gpu=setup.world.device.type == "cuda",
    )  # fmt: skip
    try:
        if replaced:
            text = f"{setup.folder} has no checkpoint, so the run starts anew and replaces its earlier log"
            log.info(Warned(text, TRAINING))
        yield log
    except BaseException as error:
        log.close(failed=not isinstance(error, (Preempted, KeyboardInterrupt)))
        raise
    log.close()


def describe_process(world: World, precision: Precision, seconds: float) -> Start:
    """Return device, cores, threads and versions. seconds: how long the process's set-up took."""
    on_gpu = world.device.type == "cuda"
    return Start(
        device=torch.cuda.get_device_name(world.device) if on_gpu else cpu_name(),
        device_type=world.device.type,
        world_size=world.size,
        cores=len(os.sched_getaffinity(0)),
        torch_threads=torch.get_num_threads(),
        precision=precision.name,
        fastft=__version__,
        torch=str(torch.__version__),
        seconds=seconds,
    )


def peak_memory(device: torch.device) -> int:
    """Return peak memory in bytes: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
