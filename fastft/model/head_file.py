"""A classifier's head in a safetensors file, for example one made from text embeddings.

`fastft zeroshot` writes such a file and `model.head` reads it. Its tensors are `head.weight` (K, D) and `head.bias`
(K,), float32. The header holds the class names, the pooling that the head is for, and where the head comes from.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from beton_tools.base.atomic import atomic_output
from beton_tools.base.errors import UserError, first_sentence
from beton_tools.base.user_files import check_user_file
from beton_tools.read.class_list import Classes
from fastft.model.classifier import ATTENTION, CLASS, CLASS_PATCHES, PATCHES, TOKEN
from fastft.model.interface import ImageClassifier
from fastft.model.weight_files import read_state_dict, save_tensors
from fastft.model.weights import TrainedHead, read_trained_head
from fastft.recipe import Recipe

WEIGHT, BIAS = "head.weight", "head.bias"
EXPECTED = "a .safetensors file that fastft zeroshot wrote"
SUFFIX = ".safetensors"
WEIGHTS_OF_HEAD = "weights_content"  # in `Head.source`: identifies the weights from which the head was made


@dataclass(frozen=True)
class Head:
    """weight_KD, bias_K: float32. classes: by label. pool: as `model.pool`. source: key -> text, how it was made."""

    weight_KD: Tensor
    bias_K: Tensor
    classes: list[str]
    pool: str
    source: dict[str, str] = field(default_factory=dict)


def check_head_path(path: Path) -> None:
    """Raise UserError if a head cannot be written to `path` because of its name or its folder."""
    if path.suffix != SUFFIX or path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out {path} must be a file in an existing folder, with a name that ends in {SUFFIX}")


def write_head(path: Path, head: Head) -> None:
    """Write the file atomically. Raises UserError if it cannot be written."""
    header = {"format": "pt", "pool": head.pool, "classes": json.dumps(head.classes), **head.source}
    with atomic_output(path) as partial:
        save_tensors(partial, {WEIGHT: head.weight_KD, BIAS: head.bias_K}, header)


def read_head(path: Path) -> Head:
    """Read a head. Raises UserError if the file cannot be read or holds something else."""
    if path.suffix != SUFFIX:
        raise UserError(f"model.head {path} is not {EXPECTED}")
    check_user_file(path, EXPECTED)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        classes = json.loads(header.get("classes", "null"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"model.head {path} cannot be read ({first_sentence(error)}). Give {EXPECTED}") from None
    tensors = read_state_dict(path)
    weight, bias = tensors.get(WEIGHT), tensors.get(BIAS)
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if weight is None or bias is None or not named or weight.ndim != 2:
        raise UserError(f"model.head {path} holds no head with class names. Give {EXPECTED}")
    if not weight.is_floating_point() or bias.shape != weight.shape[:1] or len(classes) != len(weight):
        raise UserError(f"model.head {path}: weight, bias and class names do not match. Give {EXPECTED}")
    source = {key: text for key, text in header.items() if key not in ("format", "pool", "classes")}
    return Head(weight.float(), bias.float(), classes, header.get("pool", ""), source)


def tower_checksum(model: ImageClassifier) -> str:
    """Return a CRC-32 over all parameters below the head, which tells two models' embeddings apart."""
    of_head = {id(parameter) for parameter in model.head.parameters()}
    crc = 0
    for _, parameter in sorted(model.named_parameters()):
        if id(parameter) not in of_head:
            crc = zlib.crc32(parameter.detach().cpu().contiguous().numpy().data, crc)
    return f"{crc:08x}"


def head_of_weights(model: ImageClassifier, recipe: Recipe, classes: Classes) -> tuple[Head, str]:
    """Make a head from the rows in `model.weights` for the training file's classes.

    Classes that the weights lack get the mean row.

    Args:
        model: the head's model, which may be on the meta device.
        classes: the training file's classes. Rows are found by id, then by name.

    Returns:
        (the head, a line for the log).

    Raises:
        UserError: the weights have no head, or their head reads other tokens or has none of the classes.
    """
    weights = recipe.model.weights
    trained = read_trained_head(weights, recipe.model.arch)
    if trained.pool != model.pool:
        raise UserError(
            f"the head in {weights} reads {_READS[trained.pool]}. Set model.pool to {trained.pool}, or --model.head_init=probe"
        )
    by = "name" if trained.classes else "WordNet id"
    wnids = () if trained.classes else tuple(_wnids(trained))
    known = trained.classes or Classes(wnids, wnids)
    rows = {label: row for label, row in enumerate(classes.rows_in(known)) if row is not None}
    if not rows or trained.weight_KD.shape[1] != model.head.in_features:
        raise UserError(
            f"the head in {weights} has {len(trained.bias_K):,} classes, but none has the same {by} as a class in "
            f"{recipe.data.train}. Set --model.head_init=probe"
        )
    count = len(model.head.bias)

    def taken(theirs: Tensor) -> Tensor:
        found = theirs[list(rows.values())]
        own = found.mean(0).expand(count, *found.shape[1:]).clone()
        own[list(rows)] = found
        return own

    others = ", the others at the mean of these" if len(rows) < count else ""
    names = list(classes.labels)
    head = Head(taken(trained.weight_KD), taken(trained.bias_K), names, model.pool, {"weights": weights})
    shared = {known.names[row] for row in range(len(known))} if len(set(known.names)) < len(known) else set()
    unclear = [name for k, name in enumerate(classes.names) if k not in rows and name in shared]
    same = f" ({len(unclear)} of them share their name, such as {unclear[0]})" if unclear else ""
    return head, f"head: {len(rows):,} of {count:,} classes from {weights}{others}{same}"


_READS = {
    CLASS: "the class token",
    PATCHES: "the mean patch token",
    CLASS_PATCHES: "the class token beside the mean patch token",
    ATTENTION: "the patch tokens, pooled by attention",
    TOKEN: "CLIP's embedding",
    "timm": "the features that timm pools",
}


def _wnids(trained: TrainedHead) -> Sequence[str]:
    """Return a timm head's classes if they are an ImageNet class set whose ids timm knows. Empty for other heads."""
    from timm.data import ImageNetInfo, infer_imagenet_subset  # takes seconds

    subset = infer_imagenet_subset({"num_classes": len(trained.bias_K)})
    return ImageNetInfo(subset).label_names() if subset else ()


@torch.no_grad()
def set_head(model: ImageClassifier, head: Head, path: Path) -> None:
    """Copy a head into a model. path: used in messages.

    Raises UserError if the head is for another pooling, or has a different number of classes or inputs.
    """
    if head.pool != model.pool:
        raise UserError(f"model.head {path} is for --model.pool={head.pool}, but the recipe has {model.pool}")
    shape, expected = tuple(head.weight_KD.shape), tuple(model.head.weight.shape)
    if shape != expected:
        raise UserError(
            f"model.head {path} has {shape[0]} classes and {shape[1]} inputs, but the model has {expected[0]} and {expected[1]}. "
            "Make the head for the recipe's classes and architecture"
        )
    model.head.weight.copy_(head.weight_KD)
    model.head.bias.copy_(head.bias_K)
