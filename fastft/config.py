"""Recipes: the schema (fastargs sections), loading with `extends`, command-line overrides, validation.

Every option is declared once, as a field of a section's dataclass: its default, what it means, and what it may be.
fastargs sections are built from these dataclasses and do the collecting and checking.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastargs
import yaml
from fastargs.exceptions import MissingValueError, ValidationError
from fastargs.validation import Checker

from beton_tools.errors import UserError
from fastft.constants import CLIP_MEAN, CLIP_STD, CROPS, ERASE_MODES, INTERPOLATIONS, MAX_ERASE

IMAGENET_TRAIN_SIZE = 1_281_167  # ILSVRC2012 training images
LARGEST_SEED = 2**63 - 1  # random numbers are drawn from it as an int64
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML 1.1
NOTHING = ("none", "null", "~")


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence = (),
) -> Any:
    """low and high may be reached, below may not."""
    bounds = {"low": low, "high": high, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, **bounds})


@dataclass(frozen=True)
class Data:
    train: str | None = option(None, "training .beton file")
    val: str | None = option(None, "validation .beton file")
    train_size: int = option(
        IMAGENET_TRAIN_SIZE, "training images, where the file is not there to be asked", low=1
    )
    num_classes: int = option(1000, "outputs of the head", low=2)
    workers: int = option(
        0, "decode and augment threads per process, 0: the process's share of the cores", low=0
    )
    batches_ahead: int = option(2, "micro-batches prepared in advance", low=1)


@dataclass(frozen=True)
class Model:
    arch: str = option("ViT-B-16-quickgelu", "an open_clip model name, or a .json file of the same form")
    weights: str = option("openai", "open_clip pretrained tag, local weights file, or 'random'")
    image_size: int = option(
        224, "pixels; positions are interpolated when the weights have another size", low=1
    )
    freeze_conv1: bool = option(
        True, "keep the patch embedding as it is (reference: frozen at 224, trained above)"
    )
    trainable_layers: int | None = option(
        None, "train only the top k blocks and the head; 0: linear probe", low=0
    )
    layer_scale: float | None = option(
        None, "initial value of an added LayerScale (paper Table 12: 1.0)", low=0
    )
    rel_pos_bias: bool = option(
        False, "add a zero-initialised relative position bias per block (paper Table 12)"
    )
    drop_path: float = option(0.0, "stochastic depth of the last block, linear from 0", low=0, high=0.99)
    patch_dropout: float = option(0.0, "share of patch tokens left out while training", low=0, high=0.95)
    head_init_scale: float = option(0.001, "factor on the freshly drawn head", low=0)


@dataclass(frozen=True)
class Augment:
    policy: str = option("rand-m9-mstd0.5-inc1", "timm RandAugment string, '3aug', 'augmix...' or 'none'")
    crop: str = option("rrc", "random-resized-crop or simple-resize-crop", choices=CROPS)
    scale_min: float = option(0.08, "smallest crop area, share of the image", low=1e-4, high=1)
    scale_max: float = option(1.0, "largest crop area, share of the image", low=1e-4, high=1)
    ratio_min: float = option(3 / 4, "narrowest crop, width / height", low=0.05, high=20)
    ratio_max: float = option(4 / 3, "widest crop, width / height", low=0.05, high=20)
    interpolation: str = option("bicubic", "of crop and geometric ops", choices=INTERPOLATIONS)
    hflip: float = option(0.5, "probability of a horizontal flip", low=0, high=1)
    erase_prob: float = option(0.25, "probability of random erase", low=0, high=1)
    erase_mode: str = option("pixel", "filling of the erased box", choices=ERASE_MODES)
    erase_count: int = option(1, "boxes erased at most", low=1, high=MAX_ERASE)
    mixup: float = option(0.0, "mixup alpha, 0: off", low=0)
    cutmix: float = option(0.0, "cutmix alpha, 0: off", low=0)
    mix_prob: float = option(1.0, "probability that a block of images is mixed at all", low=0, high=1)
    mix_switch_prob: float = option(0.5, "probability of cutmix where both are on", low=0, high=1)
    mean: tuple[float, float, float] = option(CLIP_MEAN, "per-channel mean of inputs in 0..1")
    std: tuple[float, float, float] = option(CLIP_STD, "per-channel standard deviation of inputs in 0..1")


@dataclass(frozen=True)
class Optim:
    batch_size: int = option(2048, "images per optimiser step over all processes", low=1)
    lr: float = option(6e-4, "learning rate of the head after warm-up; not scaled with the batch", low=0)
    layer_decay: float = option(0.6, "lr factor per block from the head down, 1: none", low=1e-3, high=1)
    weight_decay: float = option(0.05, "decoupled; none on 1-D tensors, positions and the class token", low=0)
    beta1: float = option(0.9, "AdamW", low=0, below=1)
    beta2: float = option(0.999, "AdamW", low=0, below=1)
    eps: float = option(1e-8, "AdamW", low=0)
    clip_grad: float | None = option(None, "largest global gradient norm", low=0)
    label_smoothing: float = option(0.1, "share of the target spread over all classes", low=0, high=1)


@dataclass(frozen=True)
class Schedule:
    epochs: int = option(50, "length of the cosine", low=1)
    warmup_epochs: float = option(10.0, "linear warm-up from 0", low=0)
    min_lr: float = option(1e-6, "end of the cosine, times each group's lr scale", low=0)
    stop_epoch: int | None = option(None, "stop after this many epochs of the schedule", low=1)


@dataclass(frozen=True)
class Ema:
    decay: float = option(0.9998, "per step at the reference batch, 0: no EMA", low=0, below=1)
    reference_batch: int = option(
        2048, "batch that the decay is given for; converted to the one in use", low=1
    )


@dataclass(frozen=True)
class Train:
    run_dir: str | None = option(None, "where the run lives; default runs/<recipe name>")
    seed: int = option(0, "of order, augmentation, head and stochastic depth", low=0, high=LARGEST_SEED)
    device: str = option("auto", "auto takes the GPU where there is one", choices=("auto", "cuda", "cpu"))
    amp: str = option(
        "auto", "auto: fp16 on V100, bf16 where it is native", choices=("auto", "fp32", "bf16", "fp16")
    )
    micro_batch: int = option(0, "images per forward pass and process, 0: as many as fit", low=0)
    compile: str = option("auto", "torch.compile: auto where Triton runs", choices=("auto", "on", "off"))
    grad_checkpointing: bool = option(
        False, "recompute activations in backward: less memory, a third more FLOPs"
    )
    timeout_minutes: float = option(10.0, "until a process that no longer answers ends the run", low=0.01)
    log_every: int = option(50, "steps between log lines", low=1)
    eval_every: int = option(1, "epochs between evaluations", low=1)
    eval_crop_pct: float = option(1.0, "centre crop as a share of the resized short side", low=0.1, high=1)
    checkpoint_steps: int = option(500, "steps between checkpoints, 0: only at epoch ends", low=0)
    checkpoint_minutes: float = option(15.0, "minutes between checkpoints, 0: no clock", low=0)
    tracker: str = option(
        "none", "also log to Weights & Biases or MLflow", choices=("none", "wandb", "mlflow")
    )
    keep_checkpoints: int = option(2, "most recent checkpoints kept, beside the best", low=1)


@dataclass(frozen=True)
class About:
    top1: float | None = option(None, "expected ImageNet top-1 in percent", low=0, high=100)
    source: str | None = option(None, "where that number comes from")


@dataclass(frozen=True)
class Recipe:
    """A validated recipe; `name` is the file's stem."""

    name: str
    data: Data
    model: Model
    augment: Augment
    optim: Optim
    schedule: Schedule
    ema: Ema
    train: Train
    about: About

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {s: dataclasses.asdict(getattr(self, s)) for s in SECTIONS}

    @property
    def epochs(self) -> int:
        """Epochs that are trained: the whole schedule, or up to where it is stopped."""
        return min(self.schedule.epochs, self.schedule.stop_epoch or self.schedule.epochs)

    def steps_per_epoch(self, train_size: int | None = None) -> int:
        """Optimiser steps; the last partial batch is dropped, as the reference does."""
        return (train_size or self.data.train_size) // self.optim.batch_size


SECTIONS: dict[str, type] = {
    "data": Data, "model": Model, "augment": Augment, "optim": Optim,
    "schedule": Schedule, "ema": Ema, "train": Train, "about": About,
}  # fmt: skip


class Typed(Checker):
    """A fastargs checker from a field's type, bounds and choices; strict where fastargs converts (3.7 -> 3).

    Takes texts, as files and the command line give them, and the values that a checkpoint remembers.
    """

    def __init__(self, field: dataclasses.Field, hint: Any):
        args = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        self.optional = type(None) in args
        self.type = next(a for a in args if a is not type(None))
        self.low, self.high, self.below = (field.metadata[k] for k in ("low", "high", "below"))
        self.choices = field.metadata["choices"]

    def check(self, value: Any) -> Any:
        if value in (None, "") or (self.optional and str(value).lower() in NOTHING):
            if self.optional:
                return None
            raise ValueError("no value")
        value = self._convert(value)
        if self.choices and value not in self.choices:
            raise ValueError(f"not one of {', '.join(self.choices)}")
        if self.type not in (bool, str):
            for number in value if isinstance(value, tuple) else (value,):
                self._check_inside(number)
        return value

    def _check_inside(self, number: float) -> None:
        inside = math.isfinite(number)
        inside &= self.low is None or number >= self.low
        inside &= self.high is None or number <= self.high
        inside &= self.below is None or number < self.below
        if not inside:
            raise ValueError("out of range")

    def _convert(self, value: Any) -> Any:
        if self.type is bool:
            return BOOLEANS[str(value).lower()]
        if isinstance(value, bool):
            raise TypeError("a boolean is not a number or a text")
        if self.type is int:
            if isinstance(value, int) or str(value).lstrip("+-").isdigit():
                return int(value)  # a float would round it above 2^53
            number = float(value)
            if number != int(number):
                raise ValueError("not a whole number")
            return int(number)
        if self.type is float:
            return float(value)
        if self.type is str:
            if isinstance(value, (list, dict)):
                raise TypeError("not a text")
            return str(value)
        parts = value.strip("[]").split(",") if isinstance(value, str) else value
        numbers = tuple(float(part) for part in parts)
        if len(numbers) != 3:
            raise ValueError("three numbers, one per channel")
        return numbers

    def help(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        name = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
            self.type, "three numbers"
        )
        limits = ((">=", self.low), ("<=", self.high), ("<", self.below))
        bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
        return name + (f" {bounds}" if bounds else "") + (" or none" if self.optional else "")


def fastargs_config() -> fastargs.Config:
    """The schema as fastargs sections, in a configuration of its own (not fastargs' global one)."""
    config = fastargs.Config()
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        fastargs.Section(section, (cls.__doc__ or section).strip(), config_descriptor=config).params(
            **{
                f.name: fastargs.Param(Typed(f, hints[f.name]), f.metadata["help"], default=f.default)
                for f in dataclasses.fields(cls)
            }
        )
    return config


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, follow its `extends`, apply `--section.key=value` overrides, and check everything.

    Raises:
        UserError: missing file, bad YAML, unknown key (with the nearest valid name) or a value of the wrong kind.
    """
    path = Path(path)
    values = _read_with_bases(path, ())
    for text in overrides:
        key, value = _parse_override(text)
        values[key] = (value, text)
    return _validate(path.stem, values)


def recipe_from_dict(name: str, sections: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """A recipe from the nested values that `Recipe.as_dict` gives, as stored in checkpoints."""
    return _validate(
        name, {f"{s}.{k}": (v, name) for s, entries in sections.items() for k, v in entries.items()}
    )


class _RecipeLoader(yaml.BaseLoader):
    """Scalars stay texts, for `Typed` to read: YAML 1.1 takes off for False, 007 for 7 and 6e-4 for a text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"'{key.value}' is there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, tuple[Any, str]]:
    """Flat `section.key` -> (value, where it was written); the file's own values override its base's."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: recipes extend one another in a circle; remove one 'extends'")
    document = _read_yaml(path)
    base = document.pop("extends", None)
    values = _read_with_bases(path.parent / str(base), (*seen, path)) if base else {}
    for section, entries in document.items():
        if not isinstance(entries, dict):
            hint = "" if section in SECTIONS else f"; {_nearest(section, (*SECTIONS, 'extends'))}"
            raise UserError(f"{path}: '{section}' must hold 'key: value' lines{hint}")
        for key, value in entries.items():
            values[f"{section}.{key}"] = (value, str(path))
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise UserError(
            f"recipe {path} does not exist" + (f"; did you mean {near[0]}?" if near else "")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"recipe {path} must hold sections such as 'optim:' with 'key: value' lines")
    return document


def _parse_override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not text.startswith("--") or not equals:
        raise UserError(f"cannot read '{text}'; write overrides as --section.key=value")
    return key[2:], value


def _validate(name: str, values: Mapping[str, tuple[Any, str]]) -> Recipe:
    config = fastargs_config()
    known = {".".join(path): param for path, param in config.entries.items()}
    for key, (value, where) in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown option '{key}'; {_nearest(key, known)}")
        config.content[tuple(key.split("."))] = "none" if value is None else value
    checked: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key, param in known.items():
        section, option_name = key.split(".")
        try:
            checked[section][option_name] = param.validate(
                config.content.get((section, option_name), param.default)
            )
        except (MissingValueError, ValidationError):
            value, where = values[key]
            raise UserError(f"{where}: {key} is {value!r}; it must be {param.checker.help()}") from None
    recipe = Recipe(name, **{section: cls(**checked[section]) for section, cls in SECTIONS.items()})
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """Rules that span options."""
    if recipe.schedule.warmup_epochs >= recipe.schedule.epochs:
        raise UserError(
            f"schedule.warmup_epochs ({recipe.schedule.warmup_epochs:g}) must be smaller than schedule.epochs "
            f"({recipe.schedule.epochs})"
        )
    for low, high in (("scale_min", "scale_max"), ("ratio_min", "ratio_max")):
        if getattr(recipe.augment, low) > getattr(recipe.augment, high):
            raise UserError(f"augment.{low} is larger than augment.{high}; swap them")
    if recipe.model.rel_pos_bias and recipe.model.patch_dropout > 0:
        raise UserError(
            "model.rel_pos_bias needs every patch; set model.patch_dropout to 0, or do without it"
        )


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'?" if near else f"valid names: {', '.join(sorted(known))}"
