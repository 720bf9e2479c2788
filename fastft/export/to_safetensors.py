"""One safetensors file with fastft's parameter names. Its header describes the model and the preprocessing."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastft.evaluate.trained import Trained
from fastft.model import TimmArch, arch_from_dict, build_classifier
from fastft.model.timm_tower import NEW_HEADS, TIMM_POOL, build_timm_classifier
from fastft.model.weight_files import CLASS_IDS, CLASSES, save_tensors


def write(trained: Trained, path: Path) -> None:
    recipe = trained.recipe
    header = {
        "arch": asdict(trained.model.visual.arch),
        "num_classes": recipe.data.num_classes,
        "layer_scale": recipe.model.layer_scale,
        "rel_pos_bias": recipe.model.rel_pos_bias,
        "pool": recipe.model.pool,
        "name": recipe.name,
        CLASSES: trained.classes,
        **({CLASS_IDS: ids} if (ids := trained.known_classes.ids) is not None else {}),
        **trained.temperature_record,
        "images": {
            "mean": recipe.augment.mean,
            "std": recipe.augment.std,
            "crop_pct": recipe.train.eval_crop_pct,
            "interpolation": recipe.train.eval_interpolation,
            "resize_mode": recipe.train.eval_resize,
        },
    }
    # safetensors headers hold strings. transformers and timm require "format"
    texts = {"format": "pt"} | {key: json.dumps(value) for key, value in header.items()}
    save_tensors(path, trained.model.state_dict(), texts)


def load(path: Path) -> torch.nn.Module:
    with safe_open(path, framework="pt") as file:
        header = {k: json.loads(v) for k, v in file.metadata().items() if k != "format"}
    arch, num_classes = arch_from_dict(header["arch"]), header["num_classes"]
    model: torch.nn.Module
    if isinstance(arch, TimmArch):
        pool = header["pool"] if header["pool"] in NEW_HEADS else TIMM_POOL
        model = build_timm_classifier(arch, num_classes, pool=pool)
    else:
        model = build_classifier(
            arch,
            num_classes,
            layer_scale=header["layer_scale"],
            rel_pos_bias=header["rel_pos_bias"],
            pool=header["pool"],
        )
    model.load_state_dict(load_file(path))
    return model.eval()


def usage(trained: Trained, path: Path) -> str:
    return (
        "from safetensors import safe_open\n\n"
        "# This format is for fastft: fastft.export.to_safetensors.load builds the model, and model.weights starts from it.\n"
        "# Without fastft you can read the tensors. Other libraries build the exports to timm, open_clip, onnx and torch.\n"
        f'with safe_open("{path.name}", framework="pt") as file:\n'
        "    header = file.metadata()  # the architecture, the classes and the images' normalisation, each as JSON\n"
        "    tensors = {name: file.get_tensor(name) for name in file.keys()}"
    )
