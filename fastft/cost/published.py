"""Published trainings of vision transformers: their speed, and the accuracy of the paper's own runs after every epoch."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PublishedRun:
    """A training whose speed was published. mfu: of the GPU's dense peak (`fastft.machine.gpus`).

    arch, image_size: what `implied_k` of benchmarks/costs.py compares it with, the same model or one of its size.
    """

    gpu: str
    name: str
    mfu: float
    arch: str
    source: str
    image_size: int = 224
    remark: str = ""


PUBLISHED_RUNS = (
    PublishedRun(
        "V100", "DeiT-B", 0.21, "timm/vit_base_patch16_224", "252 images/s per GPU (arXiv 2012.12877, section 5.6)",
        remark="PyTorch of 2020, autocast",
    ),
    PublishedRun(
        "A100", "this paper's B/16", 0.143, "ViT-B-16-quickgelu", "424 images/s per GPU in its log",
        remark="DeepSpeed fp16, Pillow loader",
    ),
    PublishedRun(
        "A100", "this paper's L/14", 0.176, "ViT-L-14-quickgelu", "113 images/s per GPU in its log",
        remark="as its B/16",
    ),
    PublishedRun(
        "A100", "PLSC B/16", 0.151, "timm/vit_base_patch16_224", "3,583 images/s on 8 A100 (PLSC, task/classification/vit)",
        remark="PaddlePaddle fp16",
    ),
    PublishedRun(
        "A100", "PLSC L/16", 0.194, "timm/vit_large_patch16_224", "5,256 images/s on 32 A100 (the same page)",
        remark="as its B/16, ImageNet-21k",
    ),
    PublishedRun(
        "A100", "NeMo g/14", 0.445, "timm/vit_giant_patch14_224", "693 images/s on a DGX A100 (NeMo performance page)",
        remark="Megatron; twelve times the parameters",
    ),
    PublishedRun(
        "H100", "ViT-5-S, compiled", 0.229, "timm/vit_small_patch16_224", "8,003 images/s (nvSubquadratic benchmarks)",
        remark="compiled: moves fewer bytes than the roofline counts",
    ),
    PublishedRun(
        "H100", "NeMo g/14", 0.289, "timm/vit_giant_patch14_224", "1,428 images/s on a DGX H100 (NeMo performance page)",
        remark="as on A100",
    ),
    PublishedRun(
        "RTX3090", "timm B/16", 0.58, "timm/vit_base_patch16_224", "393 images/s (timm, benchmark-train-amp-rtx3090.csv)",
        remark="the step alone, on random images",
    ),
)  # fmt: skip


@cache
def reference_curves() -> dict[str, dict[str, Any]]:
    """Name of the final recipe -> arch, image_size, epochs, and by epoch train_loss, top1_raw, top1_ema."""
    text = files("fastft.cost").joinpath("reference_curves.json").read_text("utf-8")
    return json.loads(text)["curves"]


def reference_of(arch: str, image_size: int) -> tuple[str | None, dict[str, Any] | None]:
    """The paper's run of an architecture and image size: (name of its recipe, curve); (None, None) if there is none."""
    for name, curve in reference_curves().items():
        if (curve["arch"], curve["image_size"]) == (arch, image_size):
            return name, curve
    return None, None
