"""Embeddings of images: the head's input, in one .npz file (`fastft predict --features`).

Arrays of the file: `features` float32 (N, D); `labels` int64 (N,), -1 for an image without a label; `files` (N,) names;
`classes` (K,) names by label, empty without labels; `model`, a checksum of the weights.
"""

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beton_tools.base.atomic import atomic_path, check_writable
from beton_tools.base.errors import UserError
from beton_tools.base.user_files import check_user_file
from beton_tools.read.subset_file import is_beton_or_subset
from fastft.evaluate.evaluation import eval_loader
from fastft.evaluate.image_files import compute_outputs
from fastft.evaluate.prediction import describe_deep, describe_left_out, image_paths
from fastft.evaluate.trained import Trained
from fastft.model import ImageClassifier
from fastft.train.distributed import World
from fastft.train.head_start import pooled_features
from fastft.train.precision import inference_precision

SUFFIX = ".npz"
EXPECTED = "a .npz file that fastft predict --features wrote"
# of NumPy, for files that are damaged, or whose headers promise more values than fit the memory
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
NO_LABEL = -1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Features:
    """features_ND: float32. labels_N: int64, NO_LABEL without one. files: N names. classes: by label. model: checksum."""

    features_ND: np.ndarray
    labels_N: np.ndarray
    files: list[str]
    classes: list[str]
    model: str


def model_checksum(model: ImageClassifier) -> str:
    """CRC-32 of the parameters of everything below the head, which tells the embeddings of two models apart."""
    of_head = {id(parameter) for parameter in model.head.parameters()}
    crc = 0
    for _, parameter in sorted(model.named_parameters()):
        if id(parameter) not in of_head:
            crc = zlib.crc32(parameter.detach().cpu().contiguous().numpy().data, crc)
    return f"{crc:08x}"


def extract_features(trained: Trained, sources: Sequence[Path], world: World, say: Say) -> Features:
    """Embeddings of the images of `.beton` files, image files and folders of them, in this order.

    The images are seen as in evaluation. A `.beton` is divided among the processes. say: called with each image that cannot be
    read, which is left out, and why; then with a line about other files in folders and one about images that lose values.

    Raises:
        UserError: a source is missing or damaged, two files have other classes, or no image could be read.
    """
    parts: list[Features] = []
    left_out, deep = Counter[str](), Counter[str]()
    checksum = model_checksum(trained.model)
    for source in sources:
        if is_beton_or_subset(source):
            parts.append(_of_beton(trained, source, world, checksum))
        else:
            parts.append(_of_images(trained, image_paths([source], left_out), world, checksum, say, deep))
    if left_out:
        say(describe_left_out(left_out))
    if deep:
        say(describe_deep(deep.total()))
    labelled = [part for part in parts if part.classes]
    for part, source in zip(parts, sources, strict=True):
        if part.classes and part.classes != labelled[0].classes:
            raise UserError(
                f"{source} has other classes than the files before it; write one --features file for each"
            )
    if not any(part.files for part in parts):
        raise UserError("no image could be read; see the reasons above")
    return Features(
        np.concatenate([part.features_ND for part in parts]),
        np.concatenate([part.labels_N for part in parts]),
        [name for part in parts for name in part.files],
        labelled[0].classes if labelled else [],
        checksum,
    )


def _of_beton(trained: Trained, path: Path, world: World, checksum: str) -> Features:
    precision = inference_precision(trained.recipe.train.amp, world.device)
    with eval_loader(trained, path, world) as loader:
        features_ND, labels_N = pooled_features(trained.model, loader, world, precision, stop=lambda: False)
        names = loader.betons.read_names()
        files = [f"{path.name}[{i}]" for i in range(len(labels_N))] if names is None else names
        return Features(features_ND, labels_N, files, loader.class_names, checksum)


def _of_images(
    trained: Trained, paths: Iterable[Path], world: World, checksum: str, say: Say, deep: Counter[str]
) -> Features:
    """The embeddings of image files. deep: counts the images that lose values."""
    rows, files = [], []
    for path, read, features_D in compute_outputs(trained, paths, world.device, "pooled"):
        if isinstance(read, str):
            say(f"{path}: not read: {read}")
            continue
        rows.append(features_D.numpy())
        files.append(str(path))
        deep.update(["images"] * read.loses_values)
    features_ND = np.stack(rows) if rows else np.empty((0, trained.model.head.in_features), np.float32)
    return Features(features_ND, np.full(len(files), NO_LABEL, np.int64), files, [], checksum)


def check_features_path(path: Path) -> None:
    """Raise UserError if features cannot be written to `path` for its name or its folder."""
    if path.suffix != SUFFIX:
        raise UserError(f"--features {path}: the name of the file must end in {SUFFIX}")
    check_writable(path)


def write_features(path: Path, features: Features) -> None:
    """Write the .npz file atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_path(path) as partial:
            np.savez(
                partial, features=features.features_ND, labels=features.labels_N, files=np.array(features.files),
                classes=np.array(features.classes, dtype=np.str_), model=np.array(features.model),
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_features(path: Path) -> Features:
    """Read a file that `write_features` wrote.

    Raises:
        UserError: it cannot be read, does not fit the memory, or holds something else.
    """
    check_user_file(path, EXPECTED)
    try:
        with np.load(path, allow_pickle=False) as file:
            if any(member.compress_type != zipfile.ZIP_STORED for member in file.zip.infolist()):
                raise ValueError("its arrays are compressed")  # a small file could fill the memory
            arrays = {name: file[name] for name in ("features", "labels", "files", "classes", "model")}
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); give {EXPECTED}") from None
    features_ND, labels_N, files_N, classes_K, model = arrays.values()
    if (
        [array.ndim for array in arrays.values()] != [2, 1, 1, 1, 0]
        or not len(features_ND) == len(labels_N) == len(files_N)
        or not features_ND.shape[1]
        or [array.dtype.kind for array in (files_N, classes_K, model)] != ["U"] * 3
        or (features_ND.dtype, labels_N.dtype) != (np.float32, np.int64)
    ):
        raise UserError(f"{path}: its arrays do not fit each other; give {EXPECTED}")
    return Features(features_ND, labels_N, files_N.tolist(), classes_K.tolist(), str(model))
