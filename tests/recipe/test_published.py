"""Images are normalised, resized and cropped as whoever published the weights states it."""

import json
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import save_file
from timm.data import create_transform, resolve_data_config

from fastft.augment.recipe_policy import build_policy
from fastft.cost.explanation import explain
from fastft.evaluate.predictor import eval_tensor
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD
from fastft.recipe.published import Preprocessing, published_preprocessing

ALL = ("--train.eval_crop_pct=published", "--train.eval_resize=published")
TAGS = [(model, tag) for model, tag in open_clip.list_pretrained() if model.startswith("ViT")]
TOWERS = sorted(set(re.findall(r"timm/([a-z]\w*(?:\.\w+)?)`", Path("docs/models.md").read_text())))
HALF = (0.5, 0.5, 0.5)


def loaded(arch: str, weights: str, *options: str) -> Recipe:
    return load_recipe("final_b16", [f"--model.arch={arch}", f"--model.weights={weights}", *options])


def evaluation(recipe: Recipe) -> tuple[object, ...]:
    a, t = recipe.augment, recipe.train
    assert a.interpolation == t.eval_interpolation
    return a.mean, a.std, t.eval_interpolation, t.eval_crop_pct, t.eval_resize


def test_every_vit_of_open_clip_gets_its_tags_values():
    assert len(TAGS) > 100
    for arch, tag in TAGS:
        stated = open_clip.get_pretrained_cfg(arch, tag)
        want = tuple(stated["mean"]), tuple(stated["std"]), stated["interpolation"], 1.0, stated["resize_mode"]
        assert evaluation(loaded(arch, tag, *ALL)) == want, (arch, tag)
        if stated["resize_mode"] == "shortest":  # the whole central square, as in the paper
            assert evaluation(loaded(arch, tag)) == want, (arch, tag)


def test_every_timm_tower_of_the_documentation_gets_its_values():
    assert len(TOWERS) > 20
    for name in TOWERS:
        stated = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        resize = {"center": "shortest", "squash": "squash"}[stated["crop_mode"]]
        want = stated["mean"], stated["std"], stated["interpolation"], stated["crop_pct"], resize
        assert evaluation(loaded(f"timm/{name}", "timm", *ALL)) == want, name
        assert evaluation(loaded(f"timm/{name}", "timm"))[:3] == want[:3], name


def test_a_tag_of_timm_that_is_named_in_the_weights_counts():
    """ViT-B/16's default weights want 0.5, MAE's want ImageNet's mean."""
    assert loaded("timm/vit_base_patch16_224", "timm").augment.mean == HALF
    assert loaded("timm/vit_base_patch16_224", "mae").augment.mean == (0.485, 0.456, 0.406)
    assert loaded("ViT-L-14", "timm/vit_large_patch14_clip_224.laion2b").augment.mean == HALF


@pytest.mark.parametrize(
    ("arch", "weights"),
    [("ViT-L-14-CLIPA", "datacomp1b"), ("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-H-14-quickgelu", "dfn5b")],
)
def test_the_pixels_are_those_of_open_clips_transform(arch, weights, photographs):
    stated = open_clip.get_pretrained_cfg(arch, weights)
    asked = {key: stated[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    cfg = open_clip.transform.PreprocessCfg(size=70, **asked)
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)
    policy = build_policy(loaded(arch, weights, *ALL))
    for pixels in photographs.values():
        image = Image.fromarray(pixels[:131, :97])
        assert (eval_tensor(image, 70, policy) - transform(image)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["eva02_base_patch14_448", "convnext_tiny", "swin_tiny_patch4_window7_224"])
def test_the_pixels_are_those_of_timms_transform(name, photographs):
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = create_transform(**config | {"input_size": (3, 56, 56)})
    policy = build_policy(loaded(f"timm/{name}", "timm", *ALL))
    for pixels in photographs.values():
        image = Image.fromarray(pixels[:131, :97])
        assert (eval_tensor(image, 56, policy) - transform(image)).abs().max() < 1e-6


def test_the_published_crop_is_used_for_a_published_head_or_probe_and_where_it_is_asked_for():
    name = "timm/convnext_tiny"
    probe = ("--model.head_init=probe", "--schedule.stop_epoch=0", "--ema.decay=0")
    crops = {
        (): 1.0,
        ("--model.head_init=weights",): 0.95,
        ("--model.head_init=probe",): 1.0,
        probe: 0.95,
        ("--train.eval_crop_pct=published",): 0.95,
        ("--model.head_init=weights", "--train.eval_crop_pct=0.8"): 0.8,
    }
    for options, crop in crops.items():
        assert loaded(name, "timm", *options).train.eval_crop_pct == crop, options
    asked = loaded(name, "timm", "--train.eval_crop_pct=published")
    assert [c.reason for c in asked.choices if c.option == "train.eval_crop_pct"] == [
        "timm's configuration of convnext_tiny"
    ]


def test_explain_says_who_states_the_values_and_where_the_recipe_differs(capsys):
    from fastft.cli import main

    assert explain(loaded("ViT-L-14", "laion2b_s32b_b82k")).images == Preprocessing(
        HALF, HALF, "bicubic", 1.0, "shortest", "open_clip's configuration of ViT-L-14, laion2b_s32b_b82k"
    )
    assert main(["explain", "final_b16", "--model.arch=timm/convnext_tiny", "--model.weights=timm"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "cropped to 0.95 along each side (from timm's configuration of convnext_tiny)" in out
    assert "train.eval_crop_pct is 1, published is 0.95 (--train.eval_crop_pct=published)" in out
    assert main(["explain", "final_b16"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "evaluated on the central square (from OpenAI's CLIP)" in out and "published is" not in out


OPEN_CLIP = {"preprocess_cfg": {"mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": "squash"}}
TIMM = {"mean": HALF, "std": HALF, "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "squash"}
TRANSFORMERS = {
    "image_mean": HALF, "image_std": HALF, "resample": 2, "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
}  # fmt: skip
FOLDERS = {
    "open_clip": ({"open_clip_config.json": OPEN_CLIP}, (1.0, "squash")),
    "timm": ({"config.json": {"architecture": "vit_base_patch16_224", "pretrained_cfg": TIMM}}, (0.9, "squash")),
    "older timm": ({"config.json": {"architecture": "vit_base_patch16_224", **TIMM}}, (0.9, "squash")),
    "transformers": (
        {"config.json": {"model_type": "clip"}, "preprocessor_config.json": TRANSFORMERS},
        (0.875, "shortest"),
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_a_file_in_it_and_a_repository_of_the_hub_state_their_values(kind, tmp_path, monkeypatch):
    files, (crop_pct, resize) = FOLDERS[kind]
    for name, config in files.items():
        (tmp_path / name).write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, file)

    def cached(name: str, revision: str, file: str) -> Path | None:
        assert (name, revision) == ("org/model", "main")
        return tmp_path / file if (tmp_path / file).exists() else None

    monkeypatch.setattr("fastft.recipe.published.download", cached)
    for weights in (tmp_path, file, "hf-hub:org/model@main"):
        found = published_preprocessing("ViT-B-16", str(weights))
        got = found.mean, found.std, found.interpolation, found.crop_pct, found.resize
        assert got == (HALF, HALF, "bilinear", crop_pct, resize), weights
        assert str(tmp_path if weights == file else weights) in found.source


def test_a_checkpoint_and_an_export_state_the_values_of_their_run(tmp_path):
    recipe = loaded("ViT-B-16", "laion2b_s34b_b88k", "--augment.mean=0.1,0.2,0.3", "--train.eval_crop_pct=0.9")
    (tmp_path / "step").mkdir()
    for path in (tmp_path / "step/raw.safetensors", tmp_path / "export.safetensors"):
        images = {"mean": [0.1, 0.2, 0.3], "std": CLIP_STD, "crop_pct": 0.9}
        header = {"images": json.dumps(images)} if path.name == "export.safetensors" else None
        save_file({"x": np.zeros(1, np.float32)}, path, header)
    (tmp_path / "step/state.json").write_text(json.dumps({"recipe": recipe.as_dict()}))
    for path in (tmp_path / "step/raw.safetensors", tmp_path / "export.safetensors"):
        found = published_preprocessing("ViT-B-16", str(path))
        assert (found.mean, found.std, found.crop_pct) == ((0.1, 0.2, 0.3), CLIP_STD, 0.9)


def test_what_nobody_states_is_clips_and_says_so(tmp_path):
    torch.save({}, tmp_path / "mine.pt")
    for weights in (str(tmp_path / "mine.pt"), "random"):
        found = published_preprocessing("ViT-B-16", weights)
        assert found.mean == CLIP_MEAN and found.source == f"OpenAI's CLIP, because nothing is stated for {weights}"
    assert published_preprocessing("timm/convnext_tiny", str(tmp_path / "mine.pt")).crop_pct == 0.95


def test_a_value_that_fastft_does_not_have_is_one_line(tmp_path, refused):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"interpolation": "lanczos"}}))
    message = refused(["explain", "final_b16", f"--model.weights={tmp_path}"])
    assert "augment.interpolation is 'lanczos'. It must be one of bicubic, bilinear" in message
    assert str(tmp_path) in message
