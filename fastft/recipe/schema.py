"""The recipe schema: every option once, as a field of its section, with its default, limits and meaning.

`fastft options` and docs/options.md print it. `fastft.recipe.check` converts and checks values with it.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from beton_tools.base.errors import UserError
from fastft.recipe.constants import (
    BLOCK_MIB,
    CLIP_MEAN,
    CLIP_STD,
    CROPS,
    DEVICES,
    ERASE_MODES,
    FROM_WEIGHTS,
    IMAGENET_TRAIN_SIZE,
    INTERPOLATIONS,
    MAX_ERASE,
    NONE,
    ORDERS,
    PROBE,
    RANDOM,
    REBALANCING,
    RESIZES,
)

MAX_SEED = 2**63 - 1  # random numbers are drawn from it as an int64
MAX_BATCH = 2**20
MAX_EPOCHS = 100_000
MAX_COUNT = 2**31 - 1  # steps or epochs between two events
MINUTES_PER_YEAR = 525_600.0
PUBLISHED = "published"  # stands for a value that is published with the weights


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    paper: str | None = None,
    changes_accuracy: bool = True,
    auto: bool = False,
    resumable: bool = False,
    changes_result: bool = False,
    per_host: bool = False,
    published: str | None = None,
) -> Any:
    """Declare an option as a field of its section.

    Args:
        low, high: inclusive limits. `below` is an exclusive upper limit.
        paper: what the paper or its reference code used, if the final recipes do not say it.
        auto: accepts `auto`, a value that follows from the training images. See `fastft.choose.automatic`.
        changes_accuracy: see `neutral`.
        resumable: may have another value when a run is resumed, because it does not change what a step computes. For
            data, the images are compared instead.
        changes_result: a resumable option that decides how long the run trains, or which epochs and weights are
            evaluated. A finished run with another value has another result.
        per_host: may differ between a run's processes: where a host's files are, and how it computes.
        published: accepts `published`, which stands for this field in the `Preprocessing` published with the weights.
    """
    metadata = {
        "help": help, "low": low, "high": high, "below": below, "choices": choices, "paper": paper,
        "changes_accuracy": changes_accuracy, "auto": auto, "resumable": resumable,
        "changes_result": changes_result, "per_host": per_host, "published": published,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


# options that leave the expected accuracy unchanged: files, hardware, logging, the seed
neutral = partial(option, changes_accuracy=False)


@dataclass(frozen=True)
class Data:
    """Files, image and class counts, loader."""

    train: str | None = neutral(
        None, "training images: a .beton file, several (a quoted pattern, or separated by commas), a folder with "
        "one folder per class, or a CSV or parquet table", resumable=True, per_host=True,
    )  # fmt: skip
    val: str | None = neutral(
        None, "validation images, in any form that data.train accepts. If unset, some training images are "
        "held out (from a .beton only with data.hold_out_beton)", resumable=True, per_host=True,
    )  # fmt: skip
    hold_out_beton: bool = neutral(
        False,
        "if data.val is unset, hold out validation images from a .beton too, as is done for folders and tables",
        resumable=True,
    )
    background: str = option("white", "colour that replaces transparency: a name or '#rrggbb'")
    train_size: int = option(
        IMAGENET_TRAIN_SIZE, "number of training images, for explain and cost (an existing training file overrides it)",
        low=1, high=2**40, resumable=True,
    )  # fmt: skip
    selection_share: float = option(
        0.0, "fraction of the training images reserved for model selection (early stopping, best epoch, raw or "
        "EMA), so that data.val influences no choice (0: off)",
        low=0, high=0.5,
    )  # fmt: skip
    num_classes: int = option(
        1000, "number of classes (the class names in a training file override it)",
        low=2, high=1_000_000, auto=True,
    )  # fmt: skip
    multi_label: bool = option(
        False, "multi-label training with one sigmoid per class. Set automatically for multi-label files",
    )  # fmt: skip
    classes_by_position: bool = neutral(
        False, "take equal labels for the same classes in all files and in the model, whatever the classes are called",
        resumable=True,
    )  # fmt: skip
    order: str = option(
        RANDOM, "sample order in an epoch. blocks reads every page once, which suits files larger than memory",
        choices=ORDERS, paper=RANDOM,
    )  # fmt: skip
    block_mib: int = option(
        BLOCK_MIB, "with data.order=blocks: MiB of pages whose samples are shuffled together. Three blocks must fit into"
        " memory",
        low=1, high=2**20,
    )  # fmt: skip
    sampling: str = option(
        NONE,
        "which images an epoch contains (its length stays the same). none: each image once. balanced: all "
        "classes equally often. sqrt: classes in proportion to the square root of their sizes", choices=REBALANCING, paper=NONE,
    )  # fmt: skip
    workers: int = neutral(
        0,
        "loader threads per process (0: the process's share of the cores)",
        low=0,
        high=4096,
        resumable=True,
        per_host=True,
    )
    batches_ahead: int = neutral(
        2,
        "micro-batches that the loader prepares in advance, including the one in progress",
        low=1,
        high=1024,
        resumable=True,
        per_host=True,
    )


@dataclass(frozen=True)
class Model:
    """Architecture, weights, and which parts are trained."""

    arch: str = option(
        "ViT-B-16-quickgelu",
        "open_clip model name, a .json file in the same form (in the working directory or beside the recipe),"
        " or timm/NAME",
    )
    weights: str = option(
        "openai",
        "a pretrained tag from open_clip or, for timm/NAME, from timm ('timm': the default one), a fastft run "
        "directory (its chosen weights), a weights file, a fastft export, a folder from open_clip, timm or "
        "transformers, hf-hub:ORG/NAME, or 'random'",
        per_host=True,
    )
    image_size: int = option(
        224, "image size in pixels, to which position embeddings are interpolated. auto: compare sizes by linear "
        "probes (few images only)",
        low=1, high=8192, auto=True,
    )  # fmt: skip
    freeze_conv1: bool = option(
        True, "freeze the patch embedding, as the reference does at 224 px (the paper does not mention it)"
    )
    trainable_layers: int | None = option(
        None, "train only the top N blocks and the head (0: only the head, none: everything)", low=0, high=1000
    )
    layer_scale: float | None = option(None, "add LayerScale with this initial value (paper Table 12: 1.0)", low=0)
    rel_pos_bias: bool = option(False, "add a relative position bias, initially 0, to every block (paper Table 12)")
    drop_path: float = option(
        0.0, "stochastic depth rate in the last block. It grows linearly from 0 in the first block", low=0, high=0.99
    )
    patch_dropout: float = option(0.0, "fraction of patch tokens dropped during training", low=0, high=0.95)
    pool: str = option(
        "patches",
        "the head's input. patches: the normalised patch tokens, averaged (for timm/NAME: timm's "
        "pooling). class: the class token after ln_post, as in timm's fine-tuned CLIP. class+patches: the "
        "class token beside the mean patch token, both after the last LayerNorm, as in DINOv2's linear "
        "probes. attention: the normalised patch tokens averaged with trained weights, as in attentive probes. "
        "token: CLIP's own embedding (class token, ln_post, projection, length 1)",
        choices=("patches", "class", "class+patches", "attention", "token"),
    )  # fmt: skip
    head: str | None = option(
        None, "start from this head, a .safetensors file written by fastft zeroshot (none: head_init decides)", per_host=True,
    )  # fmt: skip
    head_init: str = option(
        "small", "initial head. small: random weights times head_init_scale. probe: the linear probe, a ridge regression on"
        " the frozen tower's features. weights: the rows for your classes from the head in fine-tuned weights, matched"
        " by name (fastft) or WordNet id (timm)",
        choices=("small", PROBE, FROM_WEIGHTS), paper="small", auto=True,
    )  # fmt: skip
    head_init_scale: float = option(0.001, "factor on the head's initial weight and bias", low=0)


@dataclass(frozen=True)
class Augment:
    """Augmentation for training images, and normalisation."""

    policy: str = option(
        "rand-m9-mstd0.5-inc1", "timm RandAugment string, '3aug[-jX]', 'augmix[-mX][-wX]' or 'none'", auto=True,
    )  # fmt: skip
    crop: str = option("rrc", "rrc: random resized crop, src: simple resize crop (DeiT III)", choices=CROPS)
    scale_min: float = option(0.08, "smallest crop area, as a fraction of the image", low=1e-4, high=1, auto=True)
    scale_max: float = option(1.0, "largest crop area, as a fraction of the image", low=1e-4, high=1)
    ratio_min: float = option(3 / 4, "smallest width / height for crops", low=0.05, high=20, auto=True)
    ratio_max: float = option(4 / 3, "largest width / height for crops", low=0.05, high=20, auto=True)
    interpolation: str = option(
        "bicubic", "interpolation for crops and geometric operations. If unset, as for augment.mean", choices=INTERPOLATIONS,
        published="interpolation",
    )  # fmt: skip
    hflip: float = option(0.5, "horizontal flip probability", low=0, high=1, auto=True)
    vflip: float = option(0.0, "vertical flip probability", low=0, high=1)
    quarter_turns: float = option(
        0.0, "probability to rotate by 0, 90, 180 or 270 degrees, for images without an upright side", low=0, high=1,
    )  # fmt: skip
    color_jitter: float = option(
        0.0, "multiply brightness, contrast and saturation by 1 +- this, in random order, after the policy (timm "
        "uses 0.4)",
        low=0, high=1,
    )  # fmt: skip
    color_jitter_prob: float = option(1.0, "colour jitter probability", low=0, high=1)
    erase_prob: float = option(0.25, "random erasing probability", low=0, high=1, auto=True)
    erase_mode: str = option(
        "pixel", "fill erased boxes with zeros, one random colour, or per-pixel noise", choices=ERASE_MODES,
    )  # fmt: skip
    erase_count: int = option(1, "maximum number of boxes erased per image", low=1, high=MAX_ERASE)
    mixup: float = option(0.0, "mixup alpha (0: off)", low=0, high=1000)
    cutmix: float = option(0.0, "CutMix alpha (0: off)", low=0, high=1000)
    mix_prob: float = option(
        1.0, "probability that a group of images is mixed, if mixup or CutMix is on", low=0, high=1
    )
    mix_switch_prob: float = option(0.5, "CutMix probability if both are on (mixup otherwise)", low=0, high=1)
    mean: tuple[float, float, float] = option(
        CLIP_MEAN, "each channel's mean, for pixel values in 0..1. If unset, the mean that is published with model.weights (by "
        "open_clip, by timm or in a folder's configuration), or the one in model.arch's .json",
        low=-10, high=10, published="mean",
    )  # fmt: skip
    std: tuple[float, float, float] = option(
        CLIP_STD, "each channel's standard deviation, for pixel values in 0..1. If unset, as for augment.mean",
        low=0.001, high=10, published="std",
    )  # fmt: skip

    @property
    def mixes(self) -> bool:
        """True if mixup or CutMix is used."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class Optim:
    """AdamW, batch size and loss."""

    batch_size: int = option(2048, "images per optimiser step, over all processes", low=1, high=MAX_BATCH, auto=True)
    lr: float = option(6e-4, "the head's peak learning rate. It is not scaled with the batch size", low=0, auto=True)
    layer_decay: float = option(
        0.6, "factor on the learning rate from each layer to the one below (1: no decay)", low=1e-3, high=1, auto=True,
    )  # fmt: skip
    weight_decay: float = option(
        0.05, "AdamW weight decay. 1-D tensors, position embeddings, position biases and the class token are exempt", low=0,
    )  # fmt: skip
    beta1: float = option(0.9, "AdamW beta1", low=0, below=1)
    beta2: float = option(0.999, "AdamW beta2", low=0, below=1)
    eps: float = option(1e-8, "AdamW epsilon", low=0)
    clip_grad: float | None = option(None, "maximum global gradient norm (none: no clipping)", low=0, auto=True)
    label_smoothing: float = option(0.1, "fraction of each target that is spread over all classes", low=0, high=1)


@dataclass(frozen=True)
class Schedule:
    """Epochs, warm-up and cosine."""

    epochs: int = option(50, "epochs in the schedule", low=1, high=MAX_EPOCHS, auto=True)
    budget: str | None = option(
        None, "time for linear probes, training and evaluation on this machine, such as 90s, 5m or 1h. Measured rates "
        "then choose model.image_size and schedule.epochs together, except those that you set", paper="none",
    )  # fmt: skip
    warmup_epochs: float = option(10.0, "epochs for the linear warm-up from 0", low=0)
    warmup: float | None = option(
        None, "warm-up as a fraction of the schedule's steps, which sets schedule.warmup_epochs (none: use "
        "warmup_epochs)",
        low=0, below=1, auto=True,
    )  # fmt: skip
    min_lr: float = option(1e-6, "the head's learning rate where the cosine ends", low=0)
    stop_epoch: int | None = option(
        None, "stop after N epochs, while the schedule keeps its length (0: stop at the probe that model.head_init=probe fits)",
        low=0, high=MAX_EPOCHS, auto=True, resumable=True, changes_result=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Ema:
    """Exponential moving average of the weights."""

    decay: float = option(0.9998, "decay per optimiser step at the reference batch size (0: no EMA)", low=0, below=1)
    reference_batch: int = option(
        2048, "batch size that the decay refers to. It is converted to optim.batch_size", low=1, high=MAX_BATCH,
    )  # fmt: skip
    horizon: float | None = option(
        None, "EMA horizon, 1 / (1 - decay) steps, as a fraction of the schedule's steps, which sets ema.decay (none: "
        "use decay)",
        low=0, high=1, auto=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Train:
    """Run directory, device, precision, evaluation, checkpoints and logging."""

    run_dir: str | None = neutral(None, "run directory (none: runs/<recipe name>)", resumable=True, per_host=True)
    seed: int = neutral(
        0,
        "seed for sample order, augmentation, head initialisation and stochastic depth",
        low=0,
        high=MAX_SEED,
        paper="0",
    )
    device: str = neutral("auto", "where to train. auto: on the GPU if there is one", choices=DEVICES, resumable=True)
    amp: str = neutral(
        "auto", "precision. auto: bf16 if the hardware supports it, else fp16 on a GPU and fp32 on a CPU",
        choices=("auto", "fp32", "bf16", "fp16"), paper="fp16 (DeepSpeed)",
    )  # fmt: skip
    half_residual: str = neutral(
        "auto", "train with a half-precision copy beside the fp32 weights and a half-precision residual stream. auto: on "
        "for fp16 on GPUs below compute capability 8.0 (V100, T4)",
        choices=("auto", "on", "off"), paper="on (DeepSpeed's model.half())",
    )  # fmt: skip
    micro_batch: int = neutral(
        0,
        "images per forward pass and process (0: the largest number that fits)",
        low=0,
        high=MAX_BATCH,
        resumable=True,
        per_host=True,
    )
    step: str = neutral(
        "auto", "how a step is computed: eager, torch.compile, torch.compile with autotuning, a CUDA graph, or fused kernels for "
        "half-precision weights. measure: the fastest on this machine. auto: measure on a GPU, eager on a CPU",
        choices=("auto", "measure", "eager", "compile", "autotune", "graph", "fused"), resumable=True, per_host=True,
    )  # fmt: skip
    grad_checkpointing: bool = neutral(
        False,
        "recompute activations in the backward pass, which needs less memory and a third more FLOPs",
        resumable=True,
        per_host=True,
    )
    stop_after: str | None = neutral(
        None, "write a checkpoint and stop after this time, such as 45m or 2h, when a step or evaluation ends",
        resumable=True,
    )  # fmt: skip
    stop_when: int | None = option(
        None, "early stopping: stop after this many evaluations without a gain for the weights that would be used, "
        "measured on the images that data.selection_share reserves, or on data.val if that is 0 (refused on ImageNet). "
        "none: train all epochs",
        low=1, high=MAX_COUNT, paper="none", resumable=True, changes_result=True,
    )  # fmt: skip
    timeout_minutes: float = neutral(
        10.0,
        "end the run if another process does not answer for this many minutes",
        low=0.01,
        high=MINUTES_PER_YEAR,
        resumable=True,
    )
    refit: bool = neutral(
        False, "after fastft train, train again on training and held-out images together, with the settings that the"
        " run chose, into RUN/refit", resumable=True,
    )  # fmt: skip
    log_every: int = neutral(50, "steps between log lines", low=1, high=MAX_COUNT, resumable=True)
    eval_every: int = option(
        1, "epochs between evaluations. The last epoch is always evaluated", low=1, high=MAX_COUNT, paper="1", auto=True,
        resumable=True, changes_result=True,
    )  # fmt: skip
    eval_weights: str = neutral(
        "both", "which weights to evaluate. ema takes half as long as both", choices=("both", "ema"),
        paper="both", resumable=True, changes_result=True,
    )  # fmt: skip
    eval_crop_pct: float = option(
        1.0, "centre crop in evaluation, as a fraction of the short side. published: the one stated with model.weights, which "
        "is also used, if this is unset, for a head in these weights (model.head_init=weights) and for a run that stops at "
        "its linear probe",
        low=0.1, high=1, paper="1", published="crop_pct",
    )  # fmt: skip
    eval_resize: str = option(
        "shortest", "how evaluation resizes an image before its centre crop. shortest: the short side, and the other in "
        "proportion. squash: to a square, whatever its shape. published: as for train.eval_crop_pct",
        choices=RESIZES, paper="shortest", published="resize",
    )  # fmt: skip
    eval_interpolation: str = option(
        "bicubic", "interpolation in evaluation. If unset, as for augment.mean", choices=INTERPOLATIONS, paper="bicubic",
        published="interpolation",
    )  # fmt: skip
    eval_image_size: int | None = option(
        None, "image size in evaluation, prediction and export, in pixels (none: model.image_size). After training on "
        "random crops a larger size can be better, or worse",
        low=1, high=8192, paper="none",
    )  # fmt: skip
    checkpoint_steps: int = neutral(
        500, "steps between checkpoints (0: only after each epoch)", low=0, high=MAX_COUNT, resumable=True
    )
    checkpoint_epochs: int = neutral(
        1, "epochs between end-of-epoch checkpoints. The last and the best epoch are always saved", low=1,
        high=MAX_COUNT, auto=True, resumable=True,
    )  # fmt: skip
    checkpoint_minutes: float = neutral(
        15.0, "minutes between checkpoints (0: off)", low=0, high=MINUTES_PER_YEAR, resumable=True
    )
    tracker: str = neutral(
        "none",
        "also log to TensorBoard, Weights & Biases or MLflow",
        choices=("none", "tensorboard", "wandb", "mlflow"),
        resumable=True,
    )
    profile: int = neutral(
        0, "profile this many steps, after a process's first three, into the run directory (0: off)", low=0, high=10_000,
        resumable=True,
    )  # fmt: skip
    keep_checkpoints: int = neutral(
        2, "number of latest checkpoints to keep, besides the best", low=1, high=MAX_COUNT, resumable=True
    )


@dataclass(frozen=True)
class About:
    """The recipe's expected accuracy."""

    top1: float | None = neutral(None, "expected ImageNet top-1 accuracy in percent", low=0, high=100, resumable=True)
    source: str | None = neutral(None, "where the expected accuracy comes from, or why there is none", resumable=True)


SECTIONS: dict[str, type] = {
    "data": Data, "model": Model, "augment": Augment, "optim": Optim,
    "schedule": Schedule, "ema": Ema, "train": Train, "about": About,
}  # fmt: skip


R = TypeVar("R", bound="Recipe")

# a fraction of the schedule's steps, and the option that it sets
SHARES = {"schedule.warmup": "schedule.warmup_epochs", "ema.horizon": "ema.decay"}


@dataclass(frozen=True)
class Choice:
    """A value that nobody gave: what an option was set to, why, and the numbers that decided.

    Attributes:
        evidence: what was measured, as JSON values. None if a rule decided from the recipe alone.
    """

    option: str
    value: Any
    reason: str
    evidence: Any = None


@dataclass(frozen=True)
class Recipe:
    """A value for every option. Most of fastft reads nothing else. `name` is the file's stem, or a table row's name."""

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
        """Return section -> option -> value."""
        return {section: dataclasses.asdict(getattr(self, section)) for section in SECTIONS}

    def flat(self) -> dict[str, Any]:
        """Return `section.option` -> value."""
        sections = self.as_dict().items()
        return {f"{section}.{key}": value for section, options in sections for key, value in options.items()}

    def with_option(self: R, option: str, value: Any) -> R:
        """Return the recipe with another value for `section.option`."""
        section, _, key = option.partition(".")
        changed = dataclasses.replace(getattr(self, section), **{key: value})
        return dataclasses.replace(self, **{section: changed})

    def with_shares(self: R) -> R:
        """Return the recipe with warm-up epochs and EMA decay computed from its fractions of the schedule."""
        recipe = self
        if recipe.schedule.warmup is not None:
            epochs = recipe.schedule.warmup * recipe.schedule.epochs
            recipe = recipe.with_option("schedule.warmup_epochs", epochs)
        if recipe.ema.horizon is not None:
            steps = max(1, round(recipe.ema.horizon * recipe.schedule_steps()))
            recipe = recipe.with_option("ema.decay", 1 - 1 / steps)
            recipe = recipe.with_option("ema.reference_batch", recipe.optim.batch_size)
        return recipe

    @property
    def epochs(self) -> int:
        """Epochs that are trained: the whole schedule, or up to `stop_epoch`."""
        stop = self.schedule.stop_epoch
        return self.schedule.epochs if stop is None else min(self.schedule.epochs, stop)

    @property
    def evaluated_size(self) -> int:
        """Image size in pixels in evaluation, prediction and export. The linear probe is evaluated at the trained size."""
        return self.train.eval_image_size or self.model.image_size

    def selection_images(self, samples: int) -> int:
        """Return how many out of `samples` training images `data.selection_share` reserves."""
        return math.ceil(samples * self.data.selection_share)

    def steps_per_epoch(self) -> int:
        """Return the optimiser steps per epoch with `data.train_size` images. Raises the same errors as `count_steps`."""
        return count_steps(self.data.train_size, self.optim.batch_size)

    def schedule_steps(self) -> int:
        """Return the optimiser steps in the whole schedule. Raises the same errors as `count_steps`."""
        return self.schedule.epochs * self.steps_per_epoch()

    @property
    def evaluations(self) -> int:
        """How many evaluations the whole run has."""
        return self.evaluations_after(0)

    def evaluations_after(self, epoch: int) -> int:
        """Return how many evaluations follow after the first `epoch` epochs and their evaluation."""
        return sum(map(self.is_evaluated, range(epoch + 1, self.epochs + 1)))

    def is_evaluated(self, done: int) -> bool:
        """True if the model is evaluated after `done` epochs."""
        return done % self.train.eval_every == 0 or done == self.epochs


@dataclass(frozen=True)
class AskedRecipe(Recipe):
    """What was asked for. Options may still be automatic.

    Attributes:
        automatic: options that are `auto` and not decided yet. They hold their default until `fastft.choose` decides
            them.
        given: options that the command line set.
        choices: the values that were decided so far, with their reasons.
    """

    automatic: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    choices: tuple[Choice, ...] = dataclasses.field(default=(), compare=False)

    def with_choices(self, *choices: Choice) -> "AskedRecipe":
        """Return the recipe with these values. A choice replaces an earlier one for the same option, in its place."""
        recipe, listed = self, {choice.option: choice for choice in self.choices}
        for choice in choices:
            recipe, listed[choice.option] = recipe.with_option(choice.option, choice.value), choice
        return dataclasses.replace(recipe, choices=tuple(listed.values()))


@dataclass(frozen=True)
class FinalRecipe(Recipe):
    """What is trained. Every value is final.

    Attributes:
        choices: the values that nobody gave, with their reasons. Recipes that were read from a file have none.
    """

    choices: tuple[Choice, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def of(cls, recipe: Recipe) -> "FinalRecipe":
        """Take the values that a recipe has now as final."""
        sections = {name: getattr(recipe, name) for name in SECTIONS}
        return cls(recipe.name, **sections, choices=getattr(recipe, "choices", ()))

    def asked(self) -> AskedRecipe:
        """Ask for exactly these values."""
        return AskedRecipe(self.name, **{name: getattr(self, name) for name in SECTIONS})


def count_steps(samples: int, batch_size: int) -> int:
    """Return the optimiser steps per epoch. The last partial batch is dropped, as in the reference.

    Raises:
        UserError: there is not one whole batch.
    """
    if samples < batch_size:
        raise UserError(f"{samples} samples do not fill one batch of {batch_size}. Use a smaller --optim.batch_size")
    return samples // batch_size


def options_that_are(marked: str) -> set[str]:
    """Return the full names of the options that are declared with `resumable`, `changes_result` or `per_host`."""
    return {key for key, field in option_fields().items() if field.metadata[marked]}


def option_fields() -> dict[str, dataclasses.Field]:
    """Return `section.option` -> its field, in the schema's order."""
    return {f"{section}.{f.name}": f for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
