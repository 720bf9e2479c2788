"""The options of each section as types, for `fastft.fit`: a checker finds a misspelt option or a wrong type.

Written by `python docs/options_page.py` from `fastft/recipe/schema.py`. A test keeps it up to date.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict


class DataOptions(TypedDict, total=False):
    """Files, image and class counts, loader."""

    train: str | Path | None
    val: str | Path | None
    hold_out_beton: bool
    background: str
    train_size: int
    selection_share: float
    num_classes: int | Literal["auto"]
    multi_label: bool
    classes_by_position: bool
    order: Literal["random", "blocks"]
    block_mib: int
    sampling: Literal["none", "sqrt", "balanced"]
    workers: int
    batches_ahead: int


class ModelOptions(TypedDict, total=False):
    """Architecture, weights, and which parts are trained."""

    arch: str | Path
    weights: str | Path
    image_size: int | Literal["auto"]
    freeze_conv1: bool
    trainable_layers: int | None
    layer_scale: float | None
    rel_pos_bias: bool
    drop_path: float
    patch_dropout: float
    pool: Literal["patches", "class", "class+patches", "attention", "token"]
    head: str | Path | None
    head_init: Literal["small", "probe", "weights", "auto"]
    head_init_scale: float


class AugmentOptions(TypedDict, total=False):
    """Augmentation for training images, and normalisation."""

    policy: str
    crop: Literal["rrc", "src"]
    scale_min: float | Literal["auto"]
    scale_max: float
    ratio_min: float | Literal["auto"]
    ratio_max: float | Literal["auto"]
    interpolation: Literal["bicubic", "bilinear"]
    hflip: float | Literal["auto"]
    vflip: float
    quarter_turns: float
    color_jitter: float
    color_jitter_prob: float
    erase_prob: float | Literal["auto"]
    erase_mode: Literal["const", "rand", "pixel"]
    erase_count: int
    mixup: float
    cutmix: float
    mix_prob: float
    mix_switch_prob: float
    mean: Sequence[float]
    std: Sequence[float]


class OptimOptions(TypedDict, total=False):
    """AdamW, batch size and loss."""

    batch_size: int | Literal["auto"]
    lr: float | Literal["auto"]
    layer_decay: float | Literal["auto"]
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    clip_grad: float | Literal["auto"] | None
    label_smoothing: float


class ScheduleOptions(TypedDict, total=False):
    """Epochs, warm-up and cosine."""

    epochs: int | Literal["auto"]
    budget: str | None
    warmup_epochs: float
    warmup: float | Literal["auto"] | None
    min_lr: float
    stop_epoch: int | Literal["auto"] | None


class EmaOptions(TypedDict, total=False):
    """Exponential moving average of the weights."""

    decay: float
    reference_batch: int
    horizon: float | Literal["auto"] | None


class TrainOptions(TypedDict, total=False):
    """Run directory, device, precision, evaluation, checkpoints and logging."""

    run_dir: str | Path | None
    seed: int
    device: Literal["auto", "cuda", "cpu"]
    amp: Literal["auto", "fp32", "bf16", "fp16"]
    half_residual: Literal["auto", "on", "off"]
    micro_batch: int
    step: Literal["auto", "measure", "eager", "compile", "autotune", "graph", "fused"]
    grad_checkpointing: bool
    stop_after: str | None
    stop_when: int | None
    timeout_minutes: float
    refit: bool
    log_every: int
    eval_every: int | Literal["auto"]
    eval_weights: Literal["both", "ema"]
    eval_crop_pct: float
    eval_resize: Literal["shortest", "squash"]
    eval_interpolation: Literal["bicubic", "bilinear"]
    eval_image_size: int | None
    checkpoint_steps: int
    checkpoint_epochs: int | Literal["auto"]
    checkpoint_minutes: float
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"]
    profile: int
    keep_checkpoints: int
