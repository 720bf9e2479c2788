"""The trainer: set up, step, evaluate, save. Reads top to bottom."""

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from beton_tools.errors import UserError
from fastft.augment.rng import step_seed
from fastft.build import build_mixer, build_model, build_policy, build_schedule
from fastft.config import Recipe
from fastft.data import Batch, EvalLoader, TrainLoader
from fastft.data.classes import refuse_other_classes
from fastft.data.order import epoch_order
from fastft.files.run_directory import lock_run, run_folder, write_recipe, write_result
from fastft.machine.gpus import peak_flops
from fastft.model import count_flops
from fastft.optim import Ema, build_adamw, decay_for_batch, layer_groups, optimizer_groups, set_lr
from fastft.train.checkpoint import (
    Checkpoint,
    Damaged,
    keep_only,
    load_optimizer_tensors,
    optimizer_tensors,
    prune,
    put_aside,
    read_checkpoint,
    step_checkpoints,
    write_checkpoint,
)
from fastft.train.continuation import (
    refuse_changed_arch,
    refuse_changed_data,
    refuse_changed_recipe,
    shared_options,
)
from fastft.train.description import describe, peak_memory
from fastft.train.distributed import World, find_world, peer_lost
from fastft.train.evaluate import Stopped, evaluate
from fastft.train.exceptions import NonFinite, Preempted
from fastft.train.health import describe_trouble, find_trouble
from fastft.train.log import Interval, RunLog
from fastft.train.meter import Meter
from fastft.train.micro_batch import choose_micro_batch
from fastft.train.precision import choose_precision
from fastft.train.preempt import PreemptionGuard
from fastft.train.progress import Progress, conclusion, describe_model, headline_top1, summarise
from fastft.train.step import Step
from fastft.train.tracking import open_tracker

GO_ON, SAVE, STOP = 0, 1, 2  # what a process wishes between two steps; the strongest wish is all processes'


def train(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Train a recipe, or continue its run directory; returns what `result.json` holds.

    Raises:
        UserError: bad input.  Preempted: stopped by a signal after a checkpoint.  NonFinite: the loss is no number.
    """
    world = find_world(recipe.train.device, recipe.train.timeout_minutes)
    try:
        with (
            world,
            PreemptionGuard() as guard,
            _set_up(recipe, world, guard, console or Console()) as trainer,
        ):
            try:
                return trainer.fit()
            except torch.OutOfMemoryError:
                raise world.leave_word(
                    UserError(
                        f"the GPU's memory is too small for micro-batches of {trainer.micro_batch}; set a lower "
                        "--train.micro_batch, or --train.grad_checkpointing=true"
                    )
                ) from None
            except UserError as error:
                raise world.leave_word(error) from error
    except RuntimeError as error:
        if not world.lost_peer(error):
            raise
        found = step_checkpoints(run_folder(recipe) / "checkpoints")
        after = f"continues after {found[-1].name}" if found else "starts anew: there is no checkpoint yet"
        raise peer_lost(error, f"the same command {after}") from None


def _set_up(recipe: Recipe, world: World, guard: PreemptionGuard, console: Console) -> "Trainer":
    """The trainer, once every process has one; where one has failed, its error in all of them."""
    try:
        trainer = Trainer(recipe, world, guard, console)
    except UserError as error:
        world.agree(str(error), {})
        raise
    try:
        world.agree(None, trainer.standing())
    except UserError:
        trainer.close()
        raise
    return trainer


class Trainer:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, world: World, guard: PreemptionGuard, console: Console):
        if recipe.data.train is None:  # before weights are fetched
            raise UserError("no training data; set --data.train=FILE.beton (fastft convert writes one)")
        self.recipe, self.world, self.guard = recipe, world, guard
        self.folder = run_folder(recipe)
        self.checkpoints = self.folder / "checkpoints"
        self.progress = Progress()
        self._damaged: list[Path] = []
        self._console = console
        with ExitStack() as opened:
            old = self.folder.is_dir()
            if world.is_main and old:  # before its checkpoints are read
                opened.enter_context(lock_run(self.folder))
            resumed = step_checkpoints(self.checkpoints)
            self._build_model(pretrained=not resumed)
            self._build_loaders(opened)
            self._build_optimizer()
            if resumed:
                self._restore(self._read_newest(resumed))
            if world.is_main and not old:
                opened.enter_context(lock_run(self.folder))
            self._tracker = None
            if world.is_main:
                r = self.recipe
                self._tracker = open_tracker(r.train.tracker, self.folder, r.name, r.as_dict())
            self._opened = opened.pop_all()
        self.meter = Meter(self.step, self.loader, world)
        self._lr = 0.0  # of the last step
        self._last_save = time.monotonic()
        self._has_data = False  # until this process has seen its first batch

    def __enter__(self) -> "Trainer":
        """Connects the processes and opens the run directory: from here on something is written."""
        self.step.connect(self.recipe.train.compile)
        if self.world.is_main:
            self.checkpoints.mkdir(exist_ok=True)
            for path in self._damaged:
                put_aside(path)
            write_recipe(self.folder, self.recipe)
        self.log = RunLog(
            self.folder, self.total_steps, self.global_step, self.world.is_main, self._console, self._tracker
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.log.close(failed=kind is not None and not issubclass(kind, Preempted))
        self.close()

    def close(self) -> None:
        """The loaders, and the run directory's lock."""
        self._opened.close()

    def standing(self) -> dict[str, str]:
        """What must be the same in every process, by what it is called."""
        data = [loader.content for loader in (self.loader, self.eval_loader) if loader is not None]
        return {
            "checkpoints": str(self.global_step),
            "data": json.dumps(data, sort_keys=True),
            "recipes": shared_options(self.recipe),
        }

    # set-up -----------------------------------------------------------------------------------------------------------

    def _build_model(self, pretrained: bool) -> None:
        r, device = self.recipe, self.world.device
        self.precision = choose_precision(r.train.amp, device)
        self.model = build_model(r, pretrained=pretrained).to(device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.visual.grad_checkpointing = r.train.grad_checkpointing
        self.ema = None
        if r.ema.decay > 0:
            self.ema = Ema(
                self.model, decay_for_batch(r.ema.decay, r.optim.batch_size, r.ema.reference_batch)
            )
        flops = count_flops(
            self.model.visual.arch,
            r.data.num_classes,
            frozen_blocks=self.model.visual.frozen_blocks,
            patch_dropout=r.model.patch_dropout,
        )
        self.train_flops, self.peak_flops = flops.train, peak_flops(device, self.precision.dtype)

    def _build_loaders(self, opened: ExitStack) -> None:
        r, world = self.recipe, self.world
        assert r.data.train is not None  # __init__ has looked
        rank_batch = max(1, r.optim.batch_size // world.size)
        self.mixer = build_mixer(r)
        self.micro_batch = choose_micro_batch(
            r.train.micro_batch, rank_batch, self.model, r.model.image_size, self.precision,
            unit=1 if self.mixer is None else 2,
        )  # fmt: skip
        self.accumulation = rank_batch // self.micro_batch
        common: dict[str, Any] = {
            "size": r.model.image_size,
            "mean": r.augment.mean,
            "std": r.augment.std,
            "rank": world.rank,
            "world_size": world.size,
            "device": world.device,
            "dtype": self.precision.dtype,
            "workers": r.data.workers or None,
            "batches_ahead": r.data.batches_ahead,
        }
        self.policy = build_policy(r)
        self.loader: TrainLoader = opened.enter_context(TrainLoader(
            r.data.train, self.policy, seed=r.train.seed, batch_size=r.optim.batch_size,
            micro_batch=self.micro_batch, **common,
        ))  # fmt: skip
        self.recipe = replace(
            r, data=replace(r.data, train_size=self.loader.num_samples)
        )  # as reports want to know
        if self.loader.num_classes > r.data.num_classes:
            raise UserError(
                f"{r.data.train} has {self.loader.num_classes} classes, the recipe {r.data.num_classes}; "
                f"set --data.num_classes={self.loader.num_classes}"
            )
        self.eval_loader: EvalLoader | None = None
        if r.data.val is not None:
            self.eval_loader = opened.enter_context(
                EvalLoader(r.data.val, batch_size=self.micro_batch, crop_pct=r.train.eval_crop_pct, **common)
            )
            refuse_other_classes(self.eval_loader.class_names, self.loader.class_names, r.data.val)

    def _build_optimizer(self) -> None:
        r = self.recipe
        groups = layer_groups(
            self.model, self.model.visual.arch.layers, r.optim.layer_decay, r.optim.weight_decay
        )
        self.optimizer = build_adamw(
            optimizer_groups(self.model, groups), betas=(r.optim.beta1, r.optim.beta2), eps=r.optim.eps
        )
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.schedule = build_schedule(r, self.steps_per_epoch)
        self.total_steps = r.epochs * self.steps_per_epoch
        self.step = Step(
            self.model,
            self.optimizer,
            self.ema,
            self.world,
            self.precision,
            accumulation=self.accumulation,
            label_smoothing=r.optim.label_smoothing,
            clip_grad=r.optim.clip_grad,
        )

    @property
    def global_step(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    # the run ----------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        self._announce()
        if self._evaluation_is_due():  # a signal came in the middle of it
            self._finish_epoch()
        while self.progress.epoch < self.recipe.epochs:
            self._train_epoch()
            self._finish_epoch()
        result = summarise(self.progress, self.recipe)
        if self.world.is_main:
            write_result(self.folder, result)
        self.log.say(conclusion(result))
        return result

    def _train_epoch(self) -> None:
        epoch, start = self.progress.epoch, self.progress.step
        self.model.train()
        batches = self.loader.epoch(epoch, start)
        for step in range(start, self.steps_per_epoch):
            self._train_step(epoch, step, itertools.islice(batches, self.accumulation))
            self.progress.step = step + 1
            self.log.advance()
            if (step + 1) % self.recipe.train.log_every == 0 or step + 1 == self.steps_per_epoch:
                self._log_interval(epoch)
            if step + 1 < self.steps_per_epoch:
                self._save_if_due()
        self.progress.epoch, self.progress.step = epoch + 1, 0

    def _finish_epoch(self) -> None:
        """Evaluate where it is due, and save; a signal leaves the rest of an evaluation to the next start."""
        done = self.progress.epoch
        if self._evaluation_is_due():
            try:
                self._evaluate_epoch(done - 1)
            except Stopped:
                self._save()
                raise self._preempted() from None
        self._save()
        self._log_epoch(done - 1)
        if self.world.any(self.guard.requested) and done < self.recipe.epochs:
            raise self._preempted()

    def _evaluation_is_due(self) -> bool:
        done, every = self.progress.epoch, self.recipe.train.eval_every
        return (
            self.eval_loader is not None
            and done > 0
            and self.progress.step == 0
            and (done % every == 0 or done == self.recipe.epochs)
            and not self.progress.evaluated(done - 1)
        )

    def _train_step(self, epoch: int, step: int, micro_batches: Iterator[Batch]) -> None:
        global_step = epoch * self.steps_per_epoch + step
        noise = self._draw_noise(global_step)
        lr = self.schedule(global_step)
        set_lr(self.optimizer, lr)
        self.step.split.begin()
        for k, batch in enumerate(micro_batches):
            if self._has_data:
                self.step.split.mark("wait")
            else:
                self.meter.reset()  # waiting for it is neither the loader's pace nor the training's
                if self.progress.logged is not None:
                    self.meter.take_up(self.progress.logged)
                self.step.split.mark("start")
                self._has_data = True
            images, targets = batch.images, batch.labels
            if self.mixer is not None:
                images, targets = self.mixer(
                    images, targets, epoch=epoch, step=batch.step, first_position=batch.first_position
                )
            mine = None if noise is None else noise[batch.first_position :][: len(images)]
            self.step.micro_batch(images, targets, mine, step=global_step, last=k == self.accumulation - 1)
        self.step.update()
        self._lr = lr
        self.meter.steps += 1

    def _draw_noise(self, global_step: int) -> torch.Tensor | None:
        """For the stochastic layers in a step, of the global batch: a resume repeats it, and no cut of the batch changes it."""
        columns = self.model.visual.noise_columns
        if columns == 0:
            return None
        device = self.world.device
        generator = torch.Generator(device).manual_seed(step_seed(self.recipe.train.seed, global_step))
        return torch.rand(self.recipe.optim.batch_size, columns, generator=generator, device=device)

    def _evaluate_epoch(self, epoch: int) -> None:
        assert self.eval_loader is not None  # _evaluation_is_due has looked
        self._check_finite(weights=True)
        began = time.monotonic()
        models = [self.model] if self.ema is None else [self.model, self.ema.module]
        raw, *averaged = evaluate(
            models, self.eval_loader, self.world, self.precision, stop=lambda: self.guard.requested
        )
        ema = averaged[0] if averaged else None
        before = self.progress.best()
        self.progress.add(epoch, raw, ema)
        entry = self.progress.evaluations[-1]
        values = {
            f"{kind}_{k}": v for kind in ("raw", "ema") if kind in entry for k, v in entry[kind].items()
        }
        self.eval_loader.take_work()  # which is none of the training loader's
        seconds = time.monotonic() - began
        self.meter.pause("eval", seconds)
        self.log.record("eval", self.global_step, {"epoch": epoch, "seconds": seconds, **values})
        shown = f"raw {raw.top1:.3f}" + (f", EMA {ema.top1:.3f}" if ema else "")
        self.log.say(f"epoch {epoch}: top-1 {shown} % of {raw.samples} images")
        if before is None or headline_top1(entry) > headline_top1(before):
            self._save_best(epoch, entry)

    # checkpoints ------------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        every, minutes = self.recipe.train.checkpoint_steps, self.recipe.train.checkpoint_minutes
        due = bool(every) and self.global_step % every == 0
        due |= bool(minutes) and time.monotonic() - self._last_save > 60 * minutes
        # one question to all processes: clocks and signals differ between them
        wish = self.world.max(STOP if self.guard.requested else SAVE if due else GO_ON)
        if wish >= SAVE:
            self._save()
        if wish == STOP:
            raise self._preempted()

    def _preempted(self) -> Preempted:
        return Preempted(f"stopped on a signal after step {self.global_step}; the same command continues")

    def _save(self) -> None:
        self._check_finite(weights=True)
        began = time.monotonic()
        self.progress.logged = self.meter.state()
        if self.world.is_main:
            tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
            if self.ema is not None:
                tensors["ema"] = self.ema.module.state_dict()
            state = {
                **self._description(),
                "progress": asdict(self.progress),
                "scaler": self.step.scaler.state_dict(),
            }
            write_checkpoint(self.checkpoints / f"step-{self.global_step:08}", state, tensors)
            prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self.world.barrier()
        self._last_save = time.monotonic()
        self._note_saved(self._last_save - began)

    def _save_best(self, epoch: int, evaluation: dict[str, Any]) -> None:
        began = time.monotonic()
        if self.world.is_main:
            best = self.ema.module if self.ema is not None else self.model
            state = {**self._description(), "evaluation": evaluation}
            path = self.checkpoints / f"best-{epoch:04}"
            write_checkpoint(path, state, {"model": best.state_dict()})
            keep_only(path)
        self._note_saved(time.monotonic() - began)

    def _note_saved(self, seconds: float) -> None:
        self.meter.pause("checkpoint", seconds)
        self.log.record("checkpoint", self.global_step, {"seconds": seconds})

    def _description(self) -> dict[str, Any]:
        return describe_model(
            self.recipe, self.model.visual.arch, self.loader.class_names, self.loader.content
        )

    def _read_newest(self, paths: list[Path]) -> Checkpoint:
        """The newest that is whole; those after it are remembered as damaged."""
        needed = ("model", "optimizer") if self.ema is None else ("model", "optimizer", "ema")
        for path in reversed(paths):
            try:
                return read_checkpoint(path, needed)
            except Damaged:
                self._damaged.append(path)
        raise UserError(
            f"every checkpoint in {self.checkpoints} is damaged; remove the folder to start anew, or restore one"
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        refuse_changed_recipe(checkpoint.state["recipe"], self.recipe, self.folder)
        refuse_changed_arch(checkpoint.state["arch"], self.model.visual.arch, self.folder)
        refuse_changed_data(checkpoint.state.get("data", {}), self.loader.content, self.folder)
        refuse_other_classes(self.loader.class_names, checkpoint.state["classes"], self.loader.beton.path)
        self.model.load_state_dict(checkpoint.tensors["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.tensors["ema"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        if checkpoint.state["scaler"]:  # empty where it was trained without one, in bf16 or fp32
            self.step.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])

    # numbers ----------------------------------------------------------------------------------------------------------

    def _log_interval(self, epoch: int) -> None:
        now, batch = self.meter.read(), self.recipe.optim.batch_size
        self._check_finite()
        self.progress.seconds += now.seconds
        rate = now.steps * batch / now.seconds
        mfu = None if self.peak_flops is None else rate / self.world.size * self.train_flops / self.peak_flops
        self.log.interval(
            Interval(
                epoch=epoch,
                step=self.global_step,
                loss=now.loss,
                lr=self._lr,
                images_per_second=rate,
                wait_share=now.waited / now.seconds,
                mfu=mfu,
                memory_gib=peak_memory(self.world.device) / 2**30,
                seconds_left=(self.total_steps - self.global_step) * batch / rate,
                split=now.split,
            )
        )
        self.meter.reset()

    def _log_epoch(self, epoch: int) -> None:
        """Where the wall time of this process's epoch went."""
        self.log.record("split", self.global_step, {"epoch": epoch, "seconds": self.meter.take_epoch()})

    def _check_finite(self, weights: bool = False) -> None:
        trouble = find_trouble(self.step, self.world, self.global_step, weights)
        if trouble is not None:
            raise NonFinite(describe_trouble(*trouble, self._samples_of(trouble[0]), self.checkpoints))

    def _samples_of(self, global_step: int) -> list[int]:
        epoch, step = divmod(global_step, self.steps_per_epoch)
        order = epoch_order(self.loader.num_samples, self.recipe.train.seed, epoch)
        batch = self.recipe.optim.batch_size
        return [int(sample) for sample in order[step * batch : (step + 1) * batch]]

    def _announce(self) -> None:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.log.say(
            f"{self.recipe.name}: {trained:,} trainable parameters, {self.loader.num_samples:,} images, batch "
            f"{self.recipe.optim.batch_size} = {self.world.size} x {self.accumulation} x {self.micro_batch}, "
            f"{str(self.precision.dtype).removeprefix('torch.')} on {self.world.device}, run in {self.folder}"
        )
        self.log.record("start", self.global_step, describe(self.world, self.precision))
        for path in self._damaged:
            self.log.say(f"{path.name} is damaged: kept as damaged-{path.name}, an older one is continued")
        if self.global_step:
            self.log.say(f"continuing after step {self.global_step} of {self.total_steps}")
