"""A run in one process: steps, evaluations and checkpoints, from the set-up's position to the end."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import NoReturn

from fastft.augment.mix import smoothed_targets
from fastft.data.loader import Batch
from fastft.evaluate.scores import EvaluationStopped
from fastft.machine.exits import Preempted, TimeUp
from fastft.optim import set_lr
from fastft.recipe import FinalRecipe
from fastft.run import profile
from fastft.run.checkpoint import StoredStep
from fastft.run.metrics_log import RunLog
from fastft.run.result import RESULT, Result, write_result
from fastft.run.said import read_warnings
from fastft.run.trial_record import TrialRecord
from fastft.train.checkpointing import init_optimizer_state
from fastft.train.progress import conclusion, describe_unfinished, summarise
from fastft.train.reporting import Reporter
from fastft.train.setup import Setup
from fastft.train.step import draw_noise
from fastft.train.step_choice import choose_step, device_name

# What a process requests between two steps. The highest request among all processes is carried out.
CONTINUE, SAVE, STOP = range(3)


class Trainer:
    """Runs one process's part of a run. Its own state is the progress and the learning rate."""

    def __init__(self, setup: Setup, log: RunLog) -> None:
        self.setup, self.world, self.guard, self.step = setup, setup.world, setup.guard, setup.step
        self.progress = setup.progress
        self.reporter = Reporter(setup, log)
        profiled = self.recipe.train.profile if self.world.is_main else 0
        self.profiler = profile.StepProfiler(setup.folder / profile.FOLDER, profiled, self.world.device)
        self._lr = 0.0  # in the last step

    @property
    def recipe(self) -> FinalRecipe:
        return self.setup.recipe

    @property
    def global_step(self) -> int:
        return self.setup.position(self.progress)

    def fit(self) -> Result:
        """Train to the end, and return the content of result.json."""
        self._start()
        if self.world.is_main and not self._is_done():  # the run had ended and has more epochs now
            (self.setup.folder / RESULT).unlink(missing_ok=True)
        if self._is_evaluation_due():  # a signal interrupted it
            self._finish_epoch()
        with closing(self.profiler):
            while not self._is_done():
                self._train_epoch()
                self._finish_epoch()
        if self.recipe.epochs == 0 and not self.setup.checkpoints.exist:
            init_optimizer_state(self.step.optimizer)  # for a run that may be continued
            self._save()
        self.setup.checkpoints.finish()
        result = summarise(self.progress, self.recipe, self.setup.baseline, read_warnings(self.setup.folder))
        if self.world.is_main:
            write_result(self.setup.folder, result)
        self.reporter.say(conclusion(result))
        return result

    def _is_done(self) -> bool:
        p = self.progress
        return p.epoch >= self.recipe.epochs or (p.step == 0 and p.is_stalled(self.recipe))

    # before the first step --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Decide how steps are computed, the same in all processes."""
        s, size, stored = self.setup, self.setup.micro_batches.size, self.progress.step_choice
        recipe = (
            self.recipe if self.recipe.epochs else self.recipe.with_option("train.step", "eager")
        )  # there is no step to measure
        record = TrialRecord(s.folder) if self.world.is_main else None
        decision = choose_step(
            recipe, self.step, size, stored, reserve_bytes=s.reserve_bytes, say=self.reporter.say, record=record
        )
        self.progress.step_choice = StoredStep(**asdict(decision.choice), device=device_name(self.world.device))
        self.reporter.start(decision, self.global_step)
        self.step.connect(decision.choice)
        if self.global_step == 0 and s.baseline is not None:
            self.reporter.baseline(s.baseline)

    # steps ------------------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        s, epoch, start = self.setup, self.progress.epoch, self.progress.step
        self.step.model.train()
        batches = s.loader.epoch(epoch, start)
        for step in range(start, s.steps_per_epoch):
            is_logged = (step + 1) % self.recipe.train.log_every == 0 or step + 1 == s.steps_per_epoch
            self._train_step(epoch, step, islice(batches, s.micro_batches.count), is_logged)
            self.progress.step = step + 1
            self.guard.defer_interrupts()
            self.reporter.advance(self.global_step, epoch)
            if is_logged:
                self.progress.seconds += self.reporter.interval(epoch, self.global_step, self._lr)
            if step + 1 < s.steps_per_epoch:
                self._save_if_due()
        self.progress.epoch, self.progress.step = epoch + 1, 0

    def _train_step(self, epoch: int, step: int, micro_batches: Iterator[Batch], is_logged: bool) -> None:
        s, meter, global_step = self.setup, self.reporter.meter, self.global_step
        columns, batch_size = self.step.model.visual.noise_columns, s.recipe.optim.batch_size
        noise = draw_noise(columns, batch_size, s.recipe.train.seed, global_step, self.world.device)
        self._lr = s.schedule(global_step)
        set_lr(self.step.optimizer, self._lr)
        self.step.split.mark(None)
        for k, batch in enumerate(micro_batches):
            meter.mark_batch(self.progress.logged)
            images, targets = batch.images, batch.labels
            if s.mixer is not None:
                images, targets = s.mixer(
                    images, targets, epoch=epoch, step=batch.step, first_position=batch.first_position
                )
            elif self.step.multi_label:
                targets = smoothed_targets(targets, targets.shape[1], self.step.label_smoothing)
            mine = None if noise is None else noise[batch.first_position :][: len(images)]
            last = k == s.micro_batches.count - 1
            with self.profiler.range("forward and backward"):
                self.step.micro_batch(images, targets, mine, step=global_step, last=last)
        with self.profiler.range("update"):
            self.step.update(is_logged)
        meter.steps += 1
        self.profiler.count_step()

    # evaluation -------------------------------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        """Evaluate if an evaluation is due, and save. A signal postpones the evaluation to the next start."""
        done, best = self.progress.epoch, False
        if self._is_evaluation_due():
            try:
                best = self._evaluate_epoch(done - 1)
            except EvaluationStopped:
                self._save()
                self._stop()
        is_last, request = self._is_done(), self._request()
        stop = not is_last and request == STOP
        if best or is_last or request >= SAVE or done % self.recipe.train.checkpoint_epochs == 0:
            self._save(best)
        if stop:
            self._stop()

    def _is_evaluation_due(self) -> bool:
        return self.setup.validation.loader is not None and self.progress.awaits_evaluation(self.recipe)

    def _evaluate_epoch(self, epoch: int) -> bool:
        """Evaluate and log. Returns whether it is the best epoch so far."""
        s = self.setup
        s.check_finite(self.global_step, weights=True)
        began = time.monotonic()
        evaluated, selection = s.validation.evaluate_step(self.step)
        entry = self.progress.add(epoch, evaluated, s.validation.best_by, selection, s.baseline)
        self.reporter.evaluation(entry, evaluated, time.monotonic() - began, self.global_step)
        return self.progress.best() is entry

    # checkpoints ------------------------------------------------------------------------------------------------------

    def _save_if_due(self) -> None:
        self.setup.checkpoints.raise_if_failed()
        request = self._request()
        if request >= SAVE:
            self._save()
        if request == STOP:
            self._stop()

    def _request(self) -> int:
        """Return CONTINUE, SAVE or STOP for all processes.

        Called after a step, so that every process makes progress.
        """
        due = self.setup.checkpoints.is_due(self.global_step)
        stops = self.guard.requested or time.monotonic() > self.setup.deadline
        return self.world.max(STOP if stops else SAVE if due else CONTINUE)

    def _save(self, best: bool = False) -> None:
        s = self.setup
        s.check_finite(self.global_step, weights=True)
        began = time.monotonic()
        self.progress.logged = self.reporter.meter.state_dict()
        s.checkpoints.save(self.step, self.progress, self.global_step, s.state, best)
        self.reporter.checkpoint(time.monotonic() - began, self.global_step)

    def _stop(self) -> NoReturn:
        self.setup.checkpoints.finish()
        if self.world.any(self.guard.interrupted):
            raise KeyboardInterrupt(
                f"A checkpoint of step {self.global_step} is written. The same command continues the run"
            )
        if self.world.any(self.guard.requested):
            raise Preempted(f"stopped on a signal after step {self.global_step}. The same command continues the run")
        for line in describe_unfinished(self.progress, self.recipe, self.setup.baseline, self.global_step):
            self.reporter.say(line)
        raise TimeUp(
            f"stopped after {self.recipe.train.stop_after} (train.stop_after) at step {self.global_step}. The same command "
            "continues the run"
        )
