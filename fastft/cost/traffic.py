"""Count a training step's memory traffic outside matrix products and attention, and the memory that the step takes.

Traffic is counted by operation. One forward and backward pass runs on fake tensors, which have shapes and dtypes but
no data, so you need neither a GPU nor weights. Every PyTorch operation counts its inputs and outputs once. Views,
matrix products, convolutions, fused attention (whose rate, `ATTENTION_SHARE`, applies to whole kernels), the
optimiser and the EMA are left out. An operation's inner passes are not seen: a kernel that reads its input twice, as
LayerNorm's backward does, counts once.
"""

import copy
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastft.model import ImageClassifier, TowerArch, linear
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.optim import HalfCopy
from fastft.recipe import Recipe, recipe_from_dict
from fastft.recipe.recipe_file import RECIPES
from fastft.recipe.schema import About, Augment, Data, Ema, Optim, Schedule, Train

# Autocast does nothing on meta tensors. So fake tensors claim to be on the CPU, where autocast casts the same
# operations in a tower as on a GPU.
DEVICE = "cpu"
IMAGES = 256  # images per step, if the recipe leaves the micro-batch open
HALF = torch.float16  # bf16 has the same width
# A100 and newer run autocast, V100 half-precision weights. Each counts the attention kernel that it uses by default.
KERNELS = {"autocast": "sdpa", "half": "efficient"}
COMPUTE = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "convolution")
ATTENTION = "attention"  # part of every fused kernel's name
# operations whose names begin so read or write no bytes
FREE = ("detach", "_unsafe_view", "empty", "new_empty", "device")
WRITES_ONLY = ("copy_", "fill_", "zero_")  # operations whose names end so do not read what they overwrite


_DEFAULTS = recipe_from_dict("", {"model": {"weights": "random", "head_init": "small"}})


@dataclass(frozen=True)
class Traced:
    """A step's traffic per image, how many parameters there are and how many are trained, and memory.

    kept_bytes_per_image: what the forward and backward pass hold at their peak, in addition to weights.
    """

    bytes_per_image: float
    trained_parameters: int
    parameters: int
    kept_bytes_per_image: float


def count_images(recipe: Recipe) -> int:
    """Return the images per forward pass: the recipe's micro-batch, or IMAGES if it is as large as fits."""
    return recipe.train.micro_batch or IMAGES


def image_traffic(recipe: Recipe, path: str) -> Traced | None:
    """Return a recipe's traffic per step in the 'autocast' or the 'half' path.

    Returns None if the model cannot be traced in this path: some timm models do not run with half-precision weights.
    """
    return _image_traffic(_counted_options(recipe), path)


def traffic_key(recipe: Recipe, path: str) -> str:
    """Return the key for a recipe's traffic in `traffic.json`.

    It consists of the path and the options that the traffic depends on, without default values.
    """
    options, defaults = _counted_options(recipe).flat(), _DEFAULTS.flat()
    arch = Path(options["model.arch"])
    if arch.resolve().parent == RECIPES.resolve():
        options["model.arch"] = arch.name  # from a file, the same on every machine
    changed = [f"{key}={value}" for key, value in options.items() if value != defaults[key]]
    return " ".join([path, *sorted(changed)])


@cache
def stored_traffic() -> dict[str, Any]:
    """Return bytes per image and trained parameters for fastft's recipes, by `traffic_key`.

    benchmarks/tables.py has traced them.
    """
    return json.loads(files("fastft.cost").joinpath("traffic.json").read_text("utf-8"))


def _counted_options(recipe: Recipe) -> Recipe:
    """Return the recipe, with default values for the options that the traffic does not depend on."""
    model = replace(recipe.model, weights="random", head=None, head_init="small")
    return Recipe(
        name="", data=Data(num_classes=recipe.data.num_classes), model=model,
        augment=Augment(mixup=float(recipe.augment.mixes)), optim=Optim(), schedule=Schedule(), ema=Ema(), about=About(),
        train=Train(micro_batch=recipe.train.micro_batch, grad_checkpointing=recipe.train.grad_checkpointing),
    )  # fmt: skip


@lru_cache(maxsize=256)  # recipes that differ only in other options have the same traffic
def _image_traffic(recipe: Recipe, path: str) -> Traced | None:
    stored = stored_traffic().get(traffic_key(recipe, path))
    return trace_image(recipe, path) if stored is None else Traced(*stored)


def trace_image(recipe: Recipe, path: str) -> Traced | None:
    """Return the same as `image_traffic`, but always trace the model."""
    arch = recipe_arch(recipe)
    parameters = [(p.numel(), p.requires_grad) for p in _meta_model(recipe, arch).parameters()]
    try:
        counter = count_traffic(recipe, path, arch)
    except RuntimeError:
        return None
    images, trained = count_images(recipe), sum(n for n, is_trained in parameters if is_trained)
    moved = sum(map(sum, counter.calls.values()))
    return Traced(moved / images, trained, sum(n for n, _ in parameters), counter.peak / images)


def _meta_model(recipe: Recipe, arch: TowerArch) -> ImageClassifier:
    with torch.device("meta"):
        model = build_model(recipe, pretrained=False, arch=arch)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@contextmanager
def fake_model(recipe: Recipe, path: str, arch: TowerArch) -> Iterator[ImageClassifier]:
    """Return the recipe's model on fake tensors, as `path` computes it.

    The tensors claim to be on the CPU, and count as on a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports PyTorch's compiler, which takes a second

    model = _meta_model(recipe, arch)
    if model.visual.has_attention_kernels:
        model.visual.set_attention_kernel(KERNELS[path])
    model.visual.grad_checkpointing = recipe.train.grad_checkpointing
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.disabled, before = True, log.disabled  # otherwise a failed operation is logged as a traceback
    try:
        with FakeTensorMode(), mock.patch.object(linear, "NORM_BRANCH_DEVICES", [DEVICE]):
            fake = {id(t): _fake(t) for t in (*model.parameters(), *model.buffers())}
            yield copy.deepcopy(model, memo=dict(fake)).train()
    finally:
        log.disabled = before


def count_traffic(recipe: Recipe, path: str, arch: TowerArch) -> "_Counter":
    """Count one micro-batch's traffic: bytes for each call by operation and direction ('forward' or 'backward').

    With half-precision weights, it includes casting the gradients to fp32 and refreshing the weights, once.
    """
    with fake_model(recipe, path, arch) as model:
        images, targets = _fake_batch(recipe)
        half = HalfCopy(model, HALF) if path == "half" else None
        with _Counter() as counter:
            counter.hold(images)
            with torch.autocast(DEVICE, HALF) if half is None else nullcontext():
                logits_BK = (model if half is None else half.module)(images)
            loss = F.cross_entropy(logits_BK.float(), targets)
            counter.direction = "backward"
            loss.backward()
            if half is not None:
                half.move_gradients()
                half.refresh()
    return counter


def _fake(t: Tensor) -> Tensor:
    data = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=DEVICE)
    return nn.Parameter(data, t.requires_grad) if isinstance(t, nn.Parameter) else data


def _fake_batch(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return half-precision images, as the loader delivers them, with labels or, with mixup, target distributions."""
    images, size = count_images(recipe), recipe.model.image_size
    pixels = torch.empty(images, 3, size, size, dtype=HALF, device=DEVICE)
    mixed = recipe.augment.mixes
    shape, dtype = ((images, recipe.data.num_classes), torch.float32) if mixed else ((images,), torch.int64)
    return pixels.contiguous(memory_format=torch.channels_last), torch.empty(shape, dtype=dtype, device=DEVICE)


class _Counter(TorchDispatchMode):
    """Counts bytes for each call by operation and direction.

    `peak` is the most bytes that held tensors take at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.direction = "forward"
        self.calls: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.peak = self._alive = 0
        self._seen: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = func._schema.name.rpartition("::")[2]
        if not (func.is_view or op in COMPUTE or ATTENTION in op or op.startswith(FREE)):
            self.calls[op, self.direction].append(_bytes_moved(op, args, kwargs, out))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and id(t.untyped_storage()) not in given:
                self.hold(t)
        return out

    def hold(self, t: Tensor) -> None:
        """Count a tensor until it is freed."""
        storage = t.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self._alive -= num_bytes


def _bytes_moved(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, out: Any) -> int:
    """Return the bytes in the tensors that the operation reads and writes."""
    target = args[:1] if op.endswith(WRITES_ONLY) else ()
    read = (args[len(target) :], kwargs)
    written = target if out is None else out  # `_foreach_copy_` returns nothing
    return sum(_bytes(t) for t in tree_leaves((read, written)) if isinstance(t, Tensor))


def _bytes(t: Tensor) -> int:
    """Return the bytes in the tensor's distinct elements: an expanded tensor is as large as the tensor that it expands."""
    return min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
