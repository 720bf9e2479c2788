"""The trainer: set up, step, evaluate, save. Reads top to bottom."""

import itertools
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

from beton_tools.errors import UserError
from fastft.build import build_mixer, build_model, build_policy, build_schedule, compile_model
from fastft.config import Recipe
from fastft.data import Batch, EvalLoader, TrainLoader
from fastft.data.order import epoch_order
from fastft.model import count_flops
from fastft.optim import Ema, build_adamw, decay_for_batch, layer_groups, optimizer_groups, set_lr
from fastft.report.hardware import peak_flops
from fastft.train.checkpoint import (
    load_optimizer_tensors,
    optimizer_tensors,
    prune,
    read_checkpoint,
    step_checkpoints,
    write_checkpoint,
)
from fastft.train.distributed import World, find_world
from fastft.train.evaluate import evaluate
from fastft.train.log import Interval, RunLog, format_seconds
from fastft.train.micro_batch import choose_micro_batch
from fastft.train.precision import choose_precision
from fastft.train.preempt import Preempted, PreemptionGuard
from fastft.train.run import (
    Progress,
    headline_top1,
    refuse_changed_recipe,
    run_folder,
    summarise,
    write_recipe,
    write_result,
)

SMALLEST_LOSS_SCALE = 2.0**-10  # 17 halvings below the start: every recent step has overflowed


def train(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Train a recipe, or continue its run directory; returns what `result.json` holds.

    Raises:
        UserError: bad input.  Preempted: stopped by a signal after a checkpoint.  NonFinite: the loss is no number.
    """
    world = find_world(recipe.train.device)
    with world, PreemptionGuard() as guard, Trainer(recipe, world, guard, console or Console()) as trainer:
        return trainer.fit()


class NonFinite(Exception):
    """The loss became inf or nan, or every fp16 step overflows; the message names step, samples and checkpoint."""


class Trainer:
    """One process's part of a run."""

    def __init__(self, recipe: Recipe, world: World, guard: PreemptionGuard, console: Console):
        self.recipe, self.world, self.guard = recipe, world, guard
        self.folder = run_folder(recipe)
        self.checkpoints = self.folder / "checkpoints"
        self.progress = Progress()
        resumed = self._newest_checkpoint()
        self._build_model(pretrained=resumed is None)
        self._build_loaders()
        self._build_optimizer()
        if resumed is not None:
            self._restore(resumed)
        if world.is_main:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_recipe(self.folder, recipe)
        self._steps = 0  # since the last log line
        self.log = RunLog(self.folder, self.total_steps, self.global_step, world.is_main, console)
        self._reset_interval()
        self._last_save = time.monotonic()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()
        self.loader.close()
        if self.eval_loader is not None:
            self.eval_loader.close()

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
        self.forward = compile_model(self.world.wrap(self.model), r.train.compile, device)
        flops = count_flops(
            self.model.visual.arch,
            r.data.num_classes,
            frozen_blocks=self.model.visual.frozen_blocks,
            patch_dropout=r.model.patch_dropout,
        )
        self.train_flops, self.peak_flops = flops.train, peak_flops(device, self.precision.dtype)
        # stochastic layers draw from torch's generator, seeded anew in every step so that a resume repeats it
        self.stochastic = r.model.drop_path > 0 or r.model.patch_dropout > 0

    def _build_loaders(self) -> None:
        r, world = self.recipe, self.world
        if r.data.train is None:
            raise UserError("no training data; set --data.train=FILE.beton (fastft convert writes one)")
        rank_batch = max(1, r.optim.batch_size // world.size)
        self.micro_batch = choose_micro_batch(
            r.train.micro_batch, rank_batch, self.model, r.model.image_size, self.precision
        )
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
        self.loader = TrainLoader(
            r.data.train, self.policy, seed=r.train.seed, batch_size=r.optim.batch_size,
            micro_batch=self.micro_batch, **common,
        )  # fmt: skip
        if self.loader.num_classes > r.data.num_classes:
            raise UserError(
                f"{r.data.train} has {self.loader.num_classes} classes, the recipe {r.data.num_classes}; "
                f"set --data.num_classes={self.loader.num_classes}"
            )
        self.eval_loader = None
        if r.data.val is not None:
            self.eval_loader = EvalLoader(
                r.data.val, batch_size=self.micro_batch, crop_pct=r.train.eval_crop_pct, **common
            )
        self.mixer = build_mixer(r)

    def _build_optimizer(self) -> None:
        r = self.recipe
        groups = layer_groups(
            self.model, self.model.visual.arch.layers, r.optim.layer_decay, r.optim.weight_decay
        )
        self.optimizer = build_adamw(
            optimizer_groups(self.model, groups), betas=(r.optim.beta1, r.optim.beta2), eps=r.optim.eps
        )
        self.scaler = self.precision.scaler()
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.schedule = build_schedule(r, self.steps_per_epoch)
        self.total_steps = r.epochs * self.steps_per_epoch
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.world.device)

    @property
    def global_step(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    # the run ----------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, Any]:
        self._announce()
        while self.progress.epoch < self.recipe.epochs:
            self._train_epoch()
            done = self.progress.epoch
            if done % self.recipe.train.eval_every == 0 or done == self.recipe.epochs:
                self._evaluate_epoch(done - 1)
            self._save()
        result = summarise(self.progress, self.recipe)
        if self.world.is_main:
            write_result(self.folder, result)
        self._conclude(result)
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

    def _train_step(self, epoch: int, step: int, micro_batches: Iterator[Batch]) -> None:
        global_step = epoch * self.steps_per_epoch + step
        if self.stochastic:
            torch.manual_seed(_step_seed(self.recipe.train.seed, global_step, self.world.rank))
        lr = self.schedule(global_step)
        set_lr(self.optimizer, lr)
        for k, batch in enumerate(micro_batches):
            last = k == self.accumulation - 1
            self._forward_backward(batch, epoch, global_step, synchronise=last)
        if self.recipe.optim.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self._lr, self._steps = lr, self._steps + 1

    def _forward_backward(self, batch: Batch, epoch: int, global_step: int, synchronise: bool) -> None:
        images, targets = batch.images, batch.labels
        smoothing = self.recipe.optim.label_smoothing
        if self.mixer is not None:
            images, targets = self.mixer(
                images, targets, epoch=epoch, step=batch.step, first_position=batch.first_position
            )
            smoothing = 0.0  # the mixed targets are smoothed already
        if self.world.size > 1:  # gradients travel once per step, with the last micro-batch
            self.forward.require_backward_grad_sync = synchronise
        with self.precision.autocast():
            logits_BK = self.forward(images)
        loss = F.cross_entropy(logits_BK.float(), targets, label_smoothing=smoothing)
        self.scaler.scale(loss / self.accumulation).backward()
        # kept on the device: reading them here would make every step wait for the GPU
        self._loss_sum += loss.detach() / self.accumulation
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, global_step, self.first_bad_step)

    def _evaluate_epoch(self, epoch: int) -> None:
        if self.eval_loader is None:
            return
        start = time.monotonic()
        models = [self.model] if self.ema is None else [self.model, self.ema.module]
        raw, *averaged = evaluate(models, self.eval_loader, self.world, self.precision)
        ema = averaged[0] if averaged else None
        before = self.progress.best()
        self.progress.add(epoch, raw, ema)
        entry = self.progress.evaluations[-1]
        values = {
            f"{kind}_{k}": v for kind in ("raw", "ema") if kind in entry for k, v in entry[kind].items()
        }
        self.log.record(
            "eval", self.global_step, {"epoch": epoch, "seconds": time.monotonic() - start, **values}
        )
        shown = f"raw {raw.top1:.3f}" + (f", EMA {ema.top1:.3f}" if ema else "")
        self.log.say(f"epoch {epoch}: top-1 {shown} % of {raw.samples} images")
        if before is None or headline_top1(entry) > headline_top1(before):
            self._save_best(epoch, entry)
        self._reset_interval()

    # checkpoints ------------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        if self.world.any(self.guard.requested):
            self._save()
            raise Preempted(f"stopped on a signal after step {self.global_step}; the same command continues")
        every, minutes = self.recipe.train.checkpoint_steps, self.recipe.train.checkpoint_minutes
        due = bool(every) and self.global_step % every == 0
        if minutes and self._steps and not due:
            due = self.world.any(time.monotonic() - self._last_save > 60 * minutes)
        if due:
            self._save()

    def _save(self) -> None:
        self._check_finite()
        if self.world.is_main:
            tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
            if self.ema is not None:
                tensors["ema"] = self.ema.module.state_dict()
            state = {
                **self._description(),
                "progress": asdict(self.progress),
                "scaler": self.scaler.state_dict(),
            }
            write_checkpoint(self.checkpoints / f"step-{self.global_step:08}", state, tensors)
            prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self.world.barrier()
        self._last_save = time.monotonic()

    def _save_best(self, epoch: int, evaluation: dict[str, Any]) -> None:
        self._check_finite()
        if self.world.is_main:
            best = self.ema.module if self.ema is not None else self.model
            state = {**self._description(), "evaluation": evaluation}
            write_checkpoint(self.checkpoints / f"best-{epoch:04}", state, {"model": best.state_dict()})
            prune(self.checkpoints, 1, "best-")

    def _description(self) -> dict[str, Any]:
        """What makes a checkpoint usable by itself."""
        return {
            "name": self.recipe.name,
            "recipe": json.loads(json.dumps(self.recipe.as_dict())),
            "classes": self.loader.class_names,
            "steps_per_epoch": self.steps_per_epoch,
        }

    def _newest_checkpoint(self) -> Path | None:
        found = step_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def _restore(self, path: Path) -> None:
        checkpoint = read_checkpoint(path, self.world.device)
        refuse_changed_recipe(checkpoint.state["recipe"], self.recipe, self.folder)
        if checkpoint.state["steps_per_epoch"] != self.steps_per_epoch:
            raise UserError(
                f"{self.folder} was trained with {checkpoint.state['steps_per_epoch']} steps per epoch, {self.recipe.data.train} "
                f"gives {self.steps_per_epoch}; use the same data or another --train.run_dir"
            )
        self.model.load_state_dict(checkpoint.tensors["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.tensors["ema"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])

    # numbers ----------------------------------------------------------------------------------------------------------

    def _reset_interval(self) -> None:
        self._loss_sum = torch.zeros((), dtype=torch.float32, device=self.world.device)
        self._steps = 0
        self._lr = 0.0
        self.loader.wait_seconds = 0.0
        self._interval_start = time.monotonic()

    def _log_interval(self, epoch: int) -> None:
        steps = self._steps
        loss = self.world.sum(
            self._loss_sum / steps / self.world.size
        ).item()  # waits for the device: timed after it
        self._check_finite()
        seconds = time.monotonic() - self._interval_start
        self.progress.seconds += seconds
        rate = steps * self.recipe.optim.batch_size / seconds
        mfu = None if self.peak_flops is None else rate / self.world.size * self.train_flops / self.peak_flops
        self.log.interval(
            Interval(
                epoch=epoch,
                step=self.global_step,
                loss=loss,
                lr=self._lr,
                images_per_second=rate,
                wait_share=self.loader.wait_seconds / seconds,
                mfu=mfu,
                memory_gib=_peak_memory(self.world.device) / 2**30,
                seconds_left=(self.total_steps - self.global_step) * seconds / steps,
            )
        )
        self._reset_interval()

    def _check_finite(self) -> None:
        bad = int(self.first_bad_step.item())
        overflowing = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_LOSS_SCALE
        if not self.world.any(bad >= 0 or overflowing):
            return
        step = bad if bad >= 0 else self.global_step - 1
        what = "the loss is not a finite number" if not overflowing else "every recent fp16 step overflows"
        good = step_checkpoints(self.checkpoints)
        last = f"last good checkpoint: {good[-1]}" if good else "no checkpoint yet"
        raise NonFinite(f"{what} at step {step} (samples {self._samples_of(step)}); {last}")

    def _samples_of(self, global_step: int) -> str:
        epoch, step = divmod(global_step, self.steps_per_epoch)
        order = epoch_order(self.loader.num_samples, self.recipe.train.seed, epoch)
        batch = self.recipe.optim.batch_size
        ids = order[step * batch : (step + 1) * batch]
        return ", ".join(map(str, ids[:8])) + (f", ... {len(ids)} in all" if len(ids) > 8 else "")

    def _announce(self) -> None:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.log.say(
            f"{self.recipe.name}: {trained:,} trainable parameters, {self.loader.num_samples:,} images, batch "
            f"{self.recipe.optim.batch_size} = {self.world.size} x {self.accumulation} x {self.micro_batch}, "
            f"{str(self.precision.dtype).removeprefix('torch.')} on {self.world.device}, run in {self.folder}"
        )
        if self.global_step:
            self.log.say(f"continuing after step {self.global_step} of {self.total_steps}")

    def _conclude(self, result: dict[str, Any]) -> None:
        best, last = result["best"], result["last"]
        if best is None or last is None:
            self.log.say("done; no validation data, nothing was evaluated")
            return
        parts = [f"best {headline_top1(best):.3f} (epoch {best['epoch']}{', EMA' if 'ema' in best else ''})"]
        parts += [f"last EMA {last['ema']['top1']:.3f}"] if "ema" in last else []
        parts += [f"last raw {last['raw']['top1']:.3f}"]
        expected = (
            f"; expected {self.recipe.about.top1} ({self.recipe.about.source})"
            if self.recipe.about.top1
            else ""
        )
        self.log.say(
            f"top-1 in percent: {', '.join(parts)}{expected}; {format_seconds(result['seconds'])} of training"
        )


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
