"""fastft's own loaders."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastft.bench.task import AUGMENT, BETON, ERASE, Entry, Pass, Task, Work


def make(task: Task, **options: Any) -> Pass:
    """options: for `TrainLoader`, such as its order."""
    import torch

    from fastft.data.loader import EvalLoader
    from fastft.data.stage import Output

    if task.work == Work.EVALUATION:
        evaluation = EvalLoader(
            task.files["beton"], "none", Output(task.size, task.device), batch_size=task.batch, workers=task.threads,
            indices=repeated(task),
        )  # fmt: skip
        return lambda: (len(b.ids) for b in evaluation)
    loader, epochs = training_loader(task, **options), itertools.count()

    def one_pass() -> Iterator[int]:
        for b in loader.epoch(next(epochs)):
            yield len(b.ids)
        if task.device != "cpu":
            torch.cuda.synchronize()

    return one_pass


def training_loader(task: Task, **options: Any) -> Any:
    from fastft.augment.policies import AugmentPolicy
    from fastft.data.loader import TrainLoader
    from fastft.data.stage import Output

    policy = AugmentPolicy(AUGMENT, erase_prob=ERASE) if task.work == Work.RECIPE else AugmentPolicy("none")
    return TrainLoader(
        task.files["beton"], policy, Output(task.size, task.device), batch_size=task.batch, workers=task.threads,
        subset=repeated(task), **options,
    )  # fmt: skip


def repeated(task: Task) -> np.ndarray | None:
    """Return indices with every sample `repeat` times, or None for once."""
    from beton_tools.read.format import Beton

    if task.repeat == 1:
        return None
    return np.tile(np.arange(Beton.open(task.files["beton"]).num_samples), task.repeat)


ENTRIES = (Entry("fastft", "fastft", make, {Work.RECIPE: (), Work.CROP: (), Work.EVALUATION: ()}, reads=BETON),)
