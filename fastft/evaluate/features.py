"""Image embeddings: the head's input, stored in one .npz file (`fastft predict --features`).

The file has these arrays:

- `features`: float32 (N, D).
- `labels`: int64 (N,) with -1 for an image without a label, or float32 (N, K) for multi-label data.
- `files`: N names.
- `classes`: K names by label, empty without labels.
- `model`: a checksum of the weights.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from beton_tools.base.atomic import atomic_output
from beton_tools.base.errors import UserError
from beton_tools.read.beton_paths import is_named_beton
from fastft.evaluate.evaluation import eval_loader
from fastft.evaluate.predictor import compute_outputs, describe_left_out, image_paths, say_notes
from fastft.evaluate.scores import pooled_features
from fastft.evaluate.trained import Trained, load_trained
from fastft.machine.distributed import World, connected, find_world
from fastft.machine.precision import inference_precision
from fastft.model.head_file import tower_checksum

NO_LABEL = -1
Say = Callable[[str], None]


class Features(NamedTuple):
    """features_ND: float32. labels_N: int64, NO_LABEL without a label. files: N names. classes: names by label."""

    features_ND: np.ndarray
    labels_N: np.ndarray
    files: list[str]
    classes: list[str]


def save_features(checkpoint: Path, sources: Sequence[Path], device: str, weights: str, path: Path, say: Say) -> str:
    """Write the embeddings for `.beton` files, images and image folders, and return a line about the file.

    Images are preprocessed as in evaluation and stored in the order of `sources`. A `.beton` is divided among the
    processes.

    Args:
        say: called with the weights, each image that cannot be read, and a line about other files in folders and about
            images that lose values.

    Raises:
        UserError: `path` cannot be written, there is no such checkpoint, a source is missing or damaged, two sources
            have different classes, or no image could be read.
    """
    world = find_world(device)
    with connected(world):
        trained = load_trained(checkpoint, world.device, weights)
        say = say if world.is_main else lambda text: None
        extracted = _extract(trained, sources, world, say)
    say(f"using the {trained.weights}")
    if world.is_main:
        with atomic_output(path) as partial:
            np.savez(
                partial,
                features=extracted.features_ND,
                labels=extracted.labels_N,
                files=np.array(extracted.files),
                classes=np.array(extracted.classes, dtype=np.str_),
                model=np.array(tower_checksum(trained.model)),
            )
    count, width = extracted.features_ND.shape
    return f"{path}: {count:,} embeddings of {width} values"


def beton_features(trained: Trained, path: Path, world: World) -> Features:
    """Return the embeddings for a `.beton`, in every process."""
    precision = inference_precision(trained.recipe.train.amp, world.device)
    with eval_loader(trained, path, world) as loader:
        try:
            features_ND, labels_N = pooled_features(trained.model, loader, world, precision, stop=lambda: False)
        except UserError as error:  # a damaged image that only this process has read
            raise world.publish_error(error) from error
        names = loader.betons.read_names()
        files = [f"{path.name}[{i}]" for i in range(len(labels_N))] if names is None else names
        return Features(features_ND, labels_N, files, loader.class_names)


def _extract(trained: Trained, sources: Sequence[Path], world: World, say: Say) -> Features:
    parts: list[Features] = []
    left_out, notes = Counter[str](), Counter[str]()
    for source in sources:
        if is_named_beton(source):
            parts.append(beton_features(trained, source, world))
        else:
            parts.append(_image_features(trained, source, world, say, left_out, notes))
    if left_out:
        say(describe_left_out(left_out))
    say_notes(notes, say)
    labelled = [part for part in parts if part.classes]
    for part, source in zip(parts, sources, strict=True):
        if part.classes and part.classes != labelled[0].classes:
            raise UserError(f"{source} has other classes than the files before it. Write one --features file for each")
    if not any(part.files for part in parts):
        raise UserError("no image could be read. See the reasons above")
    if len({part.labels_N.ndim for part in parts}) > 1:
        raise UserError(
            "multi-label and single-label images have arrays with different shapes. Write one --features file for each"
        )
    features_ND, labels_N = (np.concatenate(arrays) for arrays in list(zip(*parts, strict=True))[:2])
    files = [name for part in parts for name in part.files]
    return Features(features_ND, labels_N, files, labelled[0].classes if labelled else [])


def _image_features(
    trained: Trained, source: Path, world: World, say: Say, left_out: Counter[str], notes: Counter[str]
) -> Features:
    """Return the embeddings for image files. notes: counts what you should know about their pixels."""
    rows, files = [], []
    paths = image_paths([source], left_out)
    for path, read, features_D in compute_outputs(trained, paths, world.device, method="pooled"):
        if isinstance(read, str):
            say(f"{path}: not read: {read}")
            continue
        rows.append(features_D.numpy())
        files.append(str(path))
        notes.update(read.notes)
    features_ND = np.stack(rows) if rows else np.empty((0, trained.model.head.in_features), np.float32)
    return Features(features_ND, np.full(len(files), NO_LABEL, np.int64), files, [])
