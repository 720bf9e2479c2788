"""One process's part of a run: set up, step, evaluate, save."""

import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

from rich.console import Console

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_mixer, build_policy
from fastft.data import Batch
from fastft.machine.gpus import peak_flops
from fastft.model.phases import with_phase
from fastft.optim import set_lr
from fastft.optim.schedule import build_schedule, recipe_warnings
from fastft.photos.paths import NO_DATA
from fastft.recipe import Recipe, describe_choice, parse_duration, resolve
from fastft.recipe.training_data import with_training_files
from fastft.run.continuation import refuse_other_run, shared_options
from fastft.run.evaluations import flatten
from fastft.run.log import Interval, RunLog
from fastft.run.metrics import describe_imbalance
from fastft.run.run_directory import (
    lock_run,
    read_choices,
    run_folder,
    write_choices,
    write_recipe,
    write_result,
)
from fastft.run.tracking import open_tracker
from fastft.run.validation_file import write_validation
from fastft.train.augmentation_choice import choose_augmentation
from fastft.train.checkpointing import Checkpointing
from fastft.train.description import describe_process, peak_memory
from fastft.train.distributed import World
from fastft.train.evaluate import EvaluationStopped
from fastft.train.exceptions import NonFinite, Preempted, TimeUp
from fastft.train.head_start import PROBE, refuse_large, set_probe_head, share_head
from fastft.train.health import describe_divergence, find_divergence
from fastft.train.meter import Meter
from fastft.train.micro_batch import COPIES
from fastft.train.models import build_step, build_training_models
from fastft.train.noise import draw_noise
from fastft.train.precision import choose_precision
from fastft.train.preempt import SignalGuard
from fastft.train.progress import (
    Progress,
    conclusion,
    describe_baseline,
    describe_evaluation,
    describe_model,
    describe_unfinished,
    summarise,
)
from fastft.train.setup import open_loaders, plan_phases, refuse_other_head, refuse_other_val_classes
from fastft.train.step_choice import choose_step, device_name, refuse_impossible
from fastft.train.validation import Validation

# requests of a process between two steps; the highest of all processes is carried out
CONTINUE, SAVE, STOP = range(3)


class Trainer:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, world: World, guard: SignalGuard, console: Console):
        if recipe.data.train is None:
            raise UserError(NO_DATA)
        self.world, self.guard, self._console = world, guard, console
        self.folder = run_folder(recipe)
        self._tracker = None
        self._lr = 0.0  # of the last step
        limit = recipe.train.stop_after
        self._deadline = (
            math.inf if limit is None else time.monotonic() + parse_duration(limit, "train.stop_after")
        )
        self._has_data = False  # whether this process has received its first batch
        with ExitStack() as opened:
            exists = self.folder.is_dir()
            if world.is_main and exists:  # lock it before its checkpoints are read
                opened.enter_context(lock_run(self.folder))
            self._build(recipe, BetonSet.open(recipe.data.train), opened)
            self._restore()
            if world.is_main and not exists:  # made last, so that a failed set-up leaves nothing
                opened.enter_context(lock_run(self.folder))
            if world.is_main:
                r = self.recipe
                self._tracker = open_tracker(r.train.tracker, self.folder, r.name, r.as_dict())
            self._opened = opened.pop_all()

    def __enter__(self) -> "Trainer":
        """Open the run directory; nothing in it is changed before."""
        if self.world.is_main:
            self.checkpoints.folder.mkdir(exist_ok=True)
            self.checkpoints.set_damaged_aside()
            if (best := self.progress.best()) is not None:
                self.checkpoints.remove_unrecorded_best(best["epoch"])
            write_recipe(self.folder, self.recipe)
            write_choices(self.folder, self.recipe)
        self.log = RunLog(
            self.folder, self.total_steps, self.global_step, self.world.is_main, self._console, self._tracker
        )
        self.guard.defer_interrupts()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.log.close(failed=kind is not None and not issubclass(kind, Preempted))
        self.close()

    def close(self) -> None:
        """Let a checkpoint be written to its end, close the loaders, release the run directory."""
        self.checkpoints.close()
        self._opened.close()

    def consistency_key(self) -> dict[str, str]:
        """Values that must be equal in every process, by their name in error messages."""
        loaders = [loader for loader in (self.loader, self.eval_loader) if loader is not None]
        # files may have other names on other hosts
        data = [{k: v for k, v in loader.content.items() if k != "files"} for loader in loaders]
        return {
            "checkpoints": str(self.global_step),
            "data": json.dumps(data, sort_keys=True),
            "recipes": shared_options(self.recipe),
        }

    # set-up -----------------------------------------------------------------------------------------------------------

    def _build(self, recipe: Recipe, train_files: BetonSet, opened: ExitStack) -> None:
        world = self.world
        self.checkpoints = Checkpointing(
            self.folder / "checkpoints", recipe.train, world, on_wait=self.guard.check
        )
        recipe = with_training_files(recipe, train_files)
        if self.checkpoints.exist:
            recipe = resolve(recipe, read_choices(self.folder))
        self.recipe = r = recipe
        refuse_large(r, len(train_files))
        refuse_other_val_classes(r, train_files)
        refuse_impossible(r, world.device.type == "cuda", world.size)
        self.precision = choose_precision(r.train.amp, world.device, r.train.half_residual)
        self.model, ema = build_training_models(r, world.device, pretrained=not self.checkpoints.exist)
        self.mixer = build_mixer(r)
        unit = 1 if self.mixer is None else 2  # mixup and CutMix take pairs
        self.phases = plan_phases(r, self.model, world, self.precision, train_files, unit)
        self.phase = self.phases.all[0]
        self.loader, self.eval_loader = open_loaders(
            r, world, self.precision, self.phases, train_files, opened, on_wait=self.guard.check
        )
        if not self.checkpoints.exist:
            refuse_other_head(r, self.loader.class_names)
        self.validation = Validation(
            r, self.eval_loader, self.loader.class_counts, world, self.precision, self.guard.is_stop_requested
        )
        self.step = build_step(r, self.model, ema, world, self.precision, self.phase.accumulation)
        self.meter = Meter(self.step, self.loader, world)
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.total_steps = r.epochs * self.steps_per_epoch
        self.schedule = build_schedule(r, self.steps_per_epoch)
        self.peak_flops = peak_flops(world.device, self.precision.dtype)

    def _describe_model(self) -> None:
        loader = self.loader
        self._description = describe_model(
            self.recipe, self.model.visual.arch, loader.class_names, loader.content, loader.class_counts
        )

    def _restore(self) -> None:
        self._describe_model()
        self.progress = Progress()
        if self.checkpoints.exist:
            refuse = partial(
                refuse_other_run, recipe=self.recipe, current=self._description, folder=self.folder
            )
            self.progress = self.checkpoints.restore(self.step, self.steps_per_epoch, refuse)

    # the run ----------------------------------------------------------------------------------------------------------

    @property
    def global_step(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def fit(self) -> dict[str, Any]:
        self._connect_step()
        self._enter_phase()
        self._log_start()
        if self.global_step == 0 and self.recipe.model.head_init == PROBE:
            self._start_head()
        if self.validation.is_due(self.progress):  # a signal interrupted it
            self._finish_epoch()
        while self.progress.epoch < self.recipe.epochs:
            self._train_epoch()
            self._finish_epoch()
        self.checkpoints.finish()
        result = summarise(self.progress, self.recipe)
        if self.world.is_main:
            write_result(self.folder, result)
        self.log.info(conclusion(result))
        return result

    def _connect_step(self) -> None:
        """Decide how steps are computed, the same in all processes and in all phases, and connect the processes."""
        last = self.phases.all[-1]
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        moments = (COPIES - 1) * 4 * trained  # of the optimiser; gradients are measured
        self._decision = choose_step(
            with_phase(self.recipe, last), self.step, last.micro_batch, self.progress.step_choice,
            reserve_bytes=int(moments + last.loader_bytes), say=self.log.info, check=self.guard.check,
        )  # fmt: skip
        choice = self._decision.choice
        self.progress.step_choice = {**asdict(choice), "device": device_name(self.world.device)}
        self.step.connect(choice)

    def _start_head(self) -> None:
        """Fit the head and evaluate the baseline, unless step 0 is restored from a checkpoint; log the baseline."""
        if self.progress.baseline is None:
            try:
                probe = set_probe_head(
                    self.model, self.recipe, self.world, self.precision, self.phases.smallest_micro_batch,
                    self.guard.is_stop_requested, self.guard.check,
                )  # fmt: skip
                scores = (
                    {}
                    if self.eval_loader is None
                    else {"raw": self.validation.scores([self.model])[0].as_dict()}
                )
                self._choose_augmentation()
            except EvaluationStopped:
                self._stop()
            share_head(self.step)
            self.progress.baseline = probe.as_dict() | scores
            self._save()
        made = {key: value for key, value in self.progress.baseline.items() if key != "raw"}
        self.log.record("baseline", 0, made | flatten(self.progress.baseline))
        self.log.info(describe_baseline(self.progress.baseline))

    def _choose_augmentation(self) -> None:
        """Train without augmentation if it hides the classes from the head; see `augmentation_choice`."""
        recipe, lines = choose_augmentation(
            self.recipe, self.model, self.loader, self.phase.accumulation, self.world, self.precision,
            self.guard.is_stop_requested,
        )  # fmt: skip
        for line in lines:
            self.log.info(line)
        if recipe is self.recipe:
            return
        self.recipe = recipe
        self.loader.set_policy(build_policy(recipe))
        self._describe_model()
        if self.world.is_main:
            write_recipe(self.folder, recipe)
            write_choices(self.folder, recipe)

    def _train_epoch(self) -> None:
        epoch, start = self.progress.epoch, self.progress.step
        if self.phases.at(epoch) is not self.phase:
            self._enter_phase()
            self.log.info(f"epoch {epoch}: {self.phase.describe(self.world.size)}")
        self.model.train()
        batches = self.loader.epoch(epoch, start)
        for step in range(start, self.steps_per_epoch):
            self._train_step(epoch, step, itertools.islice(batches, self.phase.accumulation))
            self.progress.step = step + 1
            self.log.advance()
            if (step + 1) % self.recipe.train.log_every == 0 or step + 1 == self.steps_per_epoch:
                self._log_interval(epoch)
            if step + 1 < self.steps_per_epoch:
                self._save_if_due()
        self.progress.epoch, self.progress.step = epoch + 1, 0

    def _enter_phase(self) -> None:
        """Set image size, patch dropout and micro-batch of the next epoch."""
        self.phase = phase = self.phases.at(self.progress.epoch)
        self.loader.resize(phase.size, phase.micro_batch)
        self.step.set_phase(phase.patch_dropout, phase.accumulation)
        if len(self.phases.all) > 1:
            self.log.record("phase", self.global_step, phase.log_line())

    def _train_step(self, epoch: int, step: int, micro_batches: Iterator[Batch]) -> None:
        global_step, r = epoch * self.steps_per_epoch + step, self.recipe
        noise = draw_noise(
            self.model.visual.noise_columns, r.optim.batch_size, r.train.seed, global_step, self.world.device
        )
        self._lr = self.schedule(global_step)
        set_lr(self.step.optimizer, self._lr)
        self.step.split.begin()
        for k, batch in enumerate(micro_batches):
            self.guard.check()
            self._mark_wait()
            images, targets = batch.images, batch.labels
            if self.mixer is not None:
                images, targets = self.mixer(
                    images, targets, epoch=epoch, step=batch.step, first_position=batch.first_position
                )
            mine = None if noise is None else noise[batch.first_position :][: len(images)]
            self.step.micro_batch(
                images, targets, mine, step=global_step, last=k == self.phase.accumulation - 1
            )
        self.step.update()
        self.meter.steps += 1

    def _mark_wait(self) -> None:
        """End the wait for a batch; that for a process's first batch is counted as `start`, in no interval."""
        if self._has_data:
            self.step.split.mark("wait")
            return
        self.meter.reset()
        if self.progress.logged is not None:
            self.meter.load_state_dict(self.progress.logged)
        self.step.split.mark("start")
        self._has_data = True

    # evaluation -------------------------------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        """Evaluate if due, and save; a signal postpones an evaluation to the next start."""
        done, best = self.progress.epoch, False
        if self.validation.is_due(self.progress):
            try:
                best = self._evaluate_epoch(done - 1)
            except EvaluationStopped:
                self._save()
                self._stop()
        is_last = done == self.recipe.epochs
        stop = not is_last and self.world.any(self._is_stop_due())
        if best or stop or is_last or done % self.recipe.train.checkpoint_epochs == 0:
            self._save(best)
        self._log_epoch(done - 1)
        if stop:
            self._stop()

    def _evaluate_epoch(self, epoch: int) -> bool:
        """Evaluate and log; whether it is the best epoch so far."""
        self._check_finite(weights=True)
        began = time.monotonic()
        scores = self.validation.evaluate_step(self.step)
        entry = self.progress.add(epoch, scores, self.validation.best_by)
        seconds = time.monotonic() - began
        self.meter.pause("eval", seconds)
        self.log.record("eval", self.global_step, {"epoch": epoch, "seconds": seconds, **flatten(entry)})
        if self.world.is_main:
            kept = {weights: s.predictions for weights, s in scores.items() if s.predictions is not None}
            write_validation(self.folder, epoch, kept)
        self.log.info(describe_evaluation(epoch, scores, balanced=self.validation.is_imbalanced))
        return self.progress.best() is entry

    # checkpoints ------------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        self.checkpoints.raise_if_failed()
        due = self.checkpoints.is_due(self.global_step)
        request = self.world.max(STOP if self._is_stop_due() else SAVE if due else CONTINUE)
        if request >= SAVE:
            self._save()
        if request == STOP:
            self._stop()

    def _save(self, best: bool = False) -> None:
        self._check_finite(weights=True)
        began = time.monotonic()
        self.progress.logged = self.meter.state_dict()
        self.checkpoints.save(self.step, self.progress, self.global_step, self._description, best)
        seconds = time.monotonic() - began
        self.meter.pause("checkpoint", seconds)
        self.log.record("checkpoint", self.global_step, {"seconds": seconds})

    def _is_stop_due(self) -> bool:
        """Whether a signal came or the time is up; looked at after a step, so that every process makes progress."""
        return self.guard.requested or time.monotonic() > self._deadline

    def _stop(self) -> NoReturn:
        self.checkpoints.finish()
        if self.world.any(self.guard.requested):
            raise Preempted(f"stopped on a signal after step {self.global_step}; the same command continues")
        for line in describe_unfinished(self.progress, self.recipe, self.global_step):
            self.log.info(line)
        raise TimeUp(
            f"stopped after {self.recipe.train.stop_after} (train.stop_after) at step {self.global_step}; the same command "
            "continues"
        )

    # numbers ----------------------------------------------------------------------------------------------------------

    def _log_interval(self, epoch: int) -> None:
        now, batch = self.meter.read(), self.recipe.optim.batch_size
        self._check_finite()
        self.progress.seconds += now.seconds
        rate = now.steps * batch / now.seconds
        mfu = None if self.peak_flops is None else rate / self.world.size * self.phase.flops / self.peak_flops
        self.log.interval(
            Interval(
                epoch=epoch,
                step=self.global_step,
                loss=now.loss,
                lr=self._lr,
                images_per_second=rate,
                wait_share=now.wait_seconds / now.seconds,
                mfu=mfu,
                memory_gib=peak_memory(self.world.device) / 2**30,
                seconds_left=self.phases.steps_left(self.global_step, self.steps_per_epoch, self.phase)
                * batch
                / rate,
                split=now.split,
            )
        )
        self.meter.reset()

    def _log_epoch(self, epoch: int) -> None:
        """Log how this process spent the wall time of the epoch."""
        self.log.record("split", self.global_step, {"epoch": epoch, "seconds": self.meter.pop_epoch()})

    def _check_finite(self, weights: bool = False) -> None:
        found = find_divergence(self.step, self.world, self.global_step, weights)
        if found is not None:
            self.checkpoints.wait()  # the message names the last one
            samples = self.loader.samples_of_step(*divmod(found[0], self.steps_per_epoch)).tolist()
            raise NonFinite(describe_divergence(*found, samples, self.checkpoints.folder))

    def _log_start(self) -> None:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.log.info(
            f"{self.recipe.name}: {trained:,} trainable parameters, {self.loader.num_samples:,} images, "
            f"{self.phase.describe(self.world.size)}, {self.precision.name} on {self.world.device}, run in {self.folder}"
        )
        for choice in self.recipe.choices:
            self.log.info(describe_choice(**asdict(choice)))
        for warning in (*recipe_warnings(self.recipe), *self.loader.notes):
            self.log.info(f"warning: {warning}")
        if self._decision.is_worth_a_line:
            self.log.info(self._decision.describe())
        if self.eval_loader is not None and self.validation.is_imbalanced:
            self.log.info(describe_imbalance(self.loader.class_counts))
        process = describe_process(self.world, self.precision)
        self.log.record("start", self.global_step, process | self._decision.as_dict())
        for damaged in self.checkpoints.damaged:
            name = damaged.path.name
            self.log.info(
                f"{name} is damaged ({damaged.reason}): renamed to damaged-{name}, using an older one"
            )
        if self.global_step:
            self.log.info(f"continuing after step {self.global_step} of {self.total_steps}")
