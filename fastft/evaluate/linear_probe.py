"""A recipe's linear probe: ridge regression on the features that its frozen tower computes for the training images.

Two stages of a run use it: choosing options compares probes, and the head may start as one. The features are computed
once and kept in a file of the run directory until the head is written.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from beton_tools.base.atomic import atomic_output
from beton_tools.base.errors import CORRECT, report_disk_errors
from beton_tools.base.progress_bar import progress_lines
from beton_tools.read.beton_set import BetonPaths, BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.data.classes import name_outputs
from fastft.data.loader import EvalLoader
from fastft.data.order import Shard
from fastft.data.stage import Output
from fastft.evaluate.ridge import (
    FOLDS,
    MOST_KEPT,
    SCORED_VALUES,
    LabelledFeatures,
    RidgeHead,
    RidgeSums,
    choose_ridge,
    fit_ridge_head,
)
from fastft.evaluate.scores import forward, pooled_features
from fastft.machine.distributed import World
from fastft.machine.precision import Precision, choose_precision
from fastft.model import ImageClassifier
from fastft.model.head_file import Head, tower_checksum, write_head
from fastft.model.recipe_model import build_model
from fastft.model.weight_files import save_tensors
from fastft.recipe import Recipe

FEATURES = "features.safetensors"  # in a run directory
MOST_IMAGES = 100_000  # up to here features are kept. With 1,024 values each they take 400 MB
TIMED_BATCHES = 4
BATCH = {"cpu": 32, "cuda": 256}  # images per forward pass


@dataclass(frozen=True)
class FrozenTower:
    """A recipe's pretrained model on this process's device, and the images as the model sees them in evaluation.

    stop: called before each batch. Once it returns true in one process, EvaluationStopped is raised in all of them.
    """

    recipe: Recipe
    model: ImageClassifier
    world: World
    precision: Precision
    stop: Callable[[], bool]

    @classmethod
    def build(cls, recipe: Recipe, world: World, stop: Callable[[], bool]) -> "FrozenTower":
        model = build_model(recipe).to(world.device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            recipe, model, world, choose_precision(recipe.train.amp, world.device, recipe.train.half_residual), stop
        )

    @property
    def batch(self) -> int:
        """Images per forward pass."""
        return BATCH[self.world.device.type]

    @property
    def output(self) -> Output:
        return Output(self.recipe.model.image_size, self.world.device, self.precision.dtype)

    @property
    def shard(self) -> Shard:
        return Shard(self.world.rank, self.world.size)

    def open(self, files: BetonPaths | BetonSet, indices: np.ndarray | None = None) -> EvalLoader:
        """Return this process's share of the images."""
        return EvalLoader(
            files, build_policy(self.recipe), self.output, batch_size=self.batch, shard=self.shard,
            workers=self.recipe.data.workers or None, indices=indices,
        )  # fmt: skip

    def write_head(self, head: RidgeHead, files: BetonSet, path: Path, **source: str) -> None:
        """Write a head that was fitted to the tower's features for these images. source: more that the file is to say."""
        recipe, tensors = self.recipe, (torch.from_numpy(head.weight_KD), torch.from_numpy(head.bias_K))
        classes = name_outputs(files.class_names, recipe.data.num_classes)
        source |= {"weights": recipe.model.weights, "tower": tower_checksum(self.model)}
        write_head(path, Head(*tensors, classes, self.model.pool, source))

    @torch.no_grad()
    def set_head(self, head: RidgeHead) -> None:
        self.model.head.weight.copy_(torch.from_numpy(head.weight_KD))
        self.model.head.bias.copy_(torch.from_numpy(head.bias_K))


@dataclass(frozen=True)
class LinearProbe:
    """A linear probe fitted to the training images at one image size.

    Attributes:
        head: the same in all processes.
        data: only in process 0. None for more than MOST_IMAGES images.
        seconds: time for the forward pass over the images. A probe kept by a run has the time for all the run's probes.
    """

    size: int
    images: int
    head: RidgeHead
    data: LabelledFeatures | None
    seconds: float


def fit_probe(tower: FrozenTower, files: BetonSet, units_N: np.ndarray, say: Callable[[str], None]) -> LinearProbe:
    """Fit the probe at the recipe's image size. All processes get the same probe.

    Its accuracy comes from cross-validation, in which all images in a unit share a fold.

    Args:
        units_N: int64, see `fastft.data.units.units_of`.

    Raises:
        EvaluationStopped: a stop was requested.
    """
    recipe, world, data, head = tower.recipe, tower.world, None, None
    classes, seed = recipe.data.num_classes, recipe.train.seed
    with tower.open(files) as loader, progress_lines("linear probe", say, "images") as show:
        next(iter(loader), None)  # a process's first batch waits until the loader is compiled
        images, batches, began = loader.num_samples, count(), time.monotonic()

        def stop() -> bool:
            show(min(images, next(batches) * tower.batch * world.size), images, 0)
            return tower.stop()

        if images > MOST_IMAGES and not recipe.data.multi_label:
            scored_H = draw_scored(units_N, classes, seed)
            head = _fit_in_one_pass(tower.model, loader, world, tower.precision, scored_H, stop)
            seconds = time.monotonic() - began
        else:
            features_ND, labels_N = pooled_features(tower.model, loader, world, tower.precision, stop)
            seconds = time.monotonic() - began
            if world.is_main:
                data = LabelledFeatures(features_ND, labels_N, classes, seed, units_N)
                head = fit_ridge_head(data)
        show(images, images, 0)
    head, seconds = world.broadcast((head, seconds))
    assert head is not None
    return LinearProbe(recipe.model.image_size, images, head, data, seconds)


def time_forward(tower: FrozenTower, files: BetonSet) -> float:
    """Return the seconds that a forward pass takes for each image, measured on some, the same in all processes.

    Raises:
        EvaluationStopped: a stop was requested.
    """
    timed = min(len(files), TIMED_BATCHES * tower.batch * tower.world.size)
    with tower.open(files, np.linspace(0, len(files) - 1, timed).astype(np.int64)) as loader:
        next(iter(loader), None)  # a process's first batch waits until the loader is compiled
        began = time.monotonic()
        pooled_features(tower.model, loader, tower.world, tower.precision, tower.stop)
        return tower.world.broadcast((time.monotonic() - began) / timed)


def draw_scored(units_N: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Sample the ids of images that choose a head's penalty and scale, int64 (H,). Their features are kept.

    All images in a unit are sampled together. If every unit has more images than may be kept, units are ignored.

    Args:
        units_N: int64, see `fastft.data.units.units_of`.
    """
    count = len(units_N)
    most = max(1, min(MOST_KEPT, SCORED_VALUES // classes, count // FOLDS))
    unit_N = np.unique(units_N, return_inverse=True)[1]
    if np.bincount(unit_N).min() > most:
        unit_N = np.arange(count)
    drawn_N = np.random.default_rng(seed).permutation(unit_N.max() + 1)[unit_N]  # each unit's place in a random order
    sizes = np.bincount(drawn_N)
    fits = sizes <= most
    return np.flatnonzero((fits & (np.cumsum(sizes * fits) <= most))[drawn_N])


@torch.inference_mode()
def _fit_in_one_pass(
    model: ImageClassifier,
    loader: EvalLoader,
    world: World,
    precision: Precision,
    scored_H: np.ndarray,
    stop: Callable[[], bool],
) -> RidgeHead:
    """Fit the head for many images, keeping only float64 sums with width x width and classes x width values.

    Penalty and scale are chosen on the images `scored_H`, whose features are kept, with the sums over the other images.
    The head is fitted to all images.
    """
    classes, width = model.head.weight.shape
    is_kept_N = np.zeros(loader.num_samples, bool)
    is_kept_N[scored_H] = True
    sums, rows = RidgeSums(classes, width, world.device), []
    for batch, (features_BD,) in forward([model], loader, world, precision, stop, "pooled"):
        is_kept_B = torch.from_numpy(is_kept_N[batch.ids]).to(world.device)
        sums.add(features_BD[~is_kept_B], batch.labels[~is_kept_B])
        rows.append(torch.cat([batch.labels[is_kept_B, None].float(), features_BD[is_kept_B]], dim=1))
    table = world.gather_rows(torch.cat(rows) if rows else torch.empty(0, 1)).cpu()
    for summed in sums.parts:
        world.sum(summed)
    features_HD, labels_H = table[:, 1:], table[:, 0].long()
    ridge = choose_ridge([sums.moments()], [(features_HD.numpy(), labels_H.numpy())])
    sums.add(features_HD.to(world.device), labels_H.to(world.device))
    return ridge.head(sums.moments())


# the file between the stages ----------------------------------------------------------------------------------------------


def probe_of_run(
    tower: FrozenTower, files: BetonSet, units_N: np.ndarray, folder: Path, key: str, say: Callable[[str], None]
) -> LinearProbe:
    """Return the probe kept in the run directory, or fit a new one and keep it.

    Args:
        units_N: see `fit_probe`.
        key: identifies what the run is asked for, including the images and their units.
    """
    world, size = tower.world, tower.recipe.model.image_size
    mine = _read(folder / FEATURES, key, size, tower.recipe.train.seed) if world.is_main else None
    kept = world.broadcast(None if mine is None else replace(mine, data=None))
    if kept is not None:
        return mine or kept
    probe = fit_probe(tower, files, units_N, say)
    keep_probe(probe, folder, key, world)
    return probe


def keep_probe(probe: LinearProbe, folder: Path, key: str, world: World) -> None:
    """Write the probe into the run directory, in process 0."""
    if not world.is_main:
        return
    head, data = probe.head, probe.data
    arrays: dict[str, np.ndarray | None] = {
        "weight": head.weight_KD, "bias": head.bias_K, "losses": head.losses_N, "right": head.right_N,
    }  # fmt: skip
    if data is not None:
        arrays |= {"features": data.features_ND, "labels": data.labels_N, "units": data.units_N}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
    numbers = {"size": probe.size, "images": probe.images, "seconds": probe.seconds}
    numbers |= {"penalty": float(head.penalty), "scale": float(head.scale)}
    path = folder / FEATURES
    with report_disk_errors(path, CORRECT), atomic_output(path) as partial:
        save_tensors(partial, tensors, {"key": key} | {name: repr(number) for name, number in numbers.items()})


def _read(path: Path, key: str, size: int, seed: int) -> LinearProbe | None:
    """Return the probe in a file, or None if the file is missing, unreadable or made for something else.

    seed: the one that the folds were drawn with.
    """
    with suppress(OSError, SafetensorError, ValueError, KeyError):
        with safe_open(path, framework="np") as file:
            header: dict[str, Any] = file.metadata() or {}
            if (header.get("key"), header.get("size")) != (key, repr(size)):
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        head = RidgeHead(
            arrays["weight"], arrays["bias"], float(header["penalty"]), float(header["scale"]), arrays["losses"],
            arrays["right"],
        )  # fmt: skip
        data = None
        if "features" in arrays:
            rows = arrays["features"], arrays["labels"]
            data = LabelledFeatures(*rows, len(head.weight_KD), seed, arrays["units"])
        return LinearProbe(size, int(header["images"]), head, data, float(header["seconds"]))
    return None
