"""An exported model gives the checkpoint's logits in the library that it is for."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.evaluate.trained import load_trained
from fastft.export import FORMATS, command, export_checkpoint, to_onnx, to_open_clip
from fastft.model import build_classifier, load_arch, load_tower_weights
from fastft.recipe.constants import EXPORT_FORMATS
from tests.written import make_checkpoint

OUTS = {"timm": "out", "open_clip": "out", "safetensors": "out.safetensors", "onnx": "out.onnx"}
CLIP = {"quick_gelu": True}
DINO = {"no_ln_pre": True, "ls_init_value": 1e-5, "norm_kwargs": {"eps": 1e-6}}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("tower", "pool"), [(CLIP, "patches"), (CLIP, "class"), (DINO, "patches")], ids=["clip", "class", "dinov2"]
)
def test_the_target_library_gives_the_same_logits(tmp_path, format, tower, pool):
    checkpoint = make_checkpoint(tmp_path, dict(tower), model__pool=pool)
    out = tmp_path / OUTS[format]
    done = export_checkpoint(tmp_path / "run", format, out)
    images = torch.rand(5, 3, 32, 32) * 4 - 2
    with torch.no_grad():
        want = load_trained(checkpoint, torch.device("cpu")).model(images)
        got = FORMATS[format].load(out)(images)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert done.max_difference < 1e-4 and done.max_logit > 0.1
    assert not list(tmp_path.glob(".partial*"))


def test_added_layer_scale_is_exported(tmp_path):
    make_checkpoint(tmp_path, dict(CLIP), model__layer_scale=1.0)
    for format in ("timm", "open_clip"):
        assert export_checkpoint(tmp_path / "run", format, tmp_path / format).max_difference < 1e-4


def test_relative_position_bias_is_refused_by_formats_without_it(tmp_path):
    make_checkpoint(tmp_path, dict(CLIP), model__rel_pos_bias=True)
    for format in ("timm", "open_clip"):
        with pytest.raises(UserError, match="no relative position bias; export to safetensors or onnx"):
            export_checkpoint(tmp_path / "run", format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for format in ("safetensors", "onnx"):
        assert export_checkpoint(tmp_path / "run", format, tmp_path / OUTS[format]).max_difference < 1e-4


@pytest.mark.parametrize("arch", [None, "timm/test_vit"])
def test_a_head_of_class_token_and_patches_is_refused_by_formats_without_it(tmp_path, arch):
    own = {"model__image_size": 160, "model__arch": arch, "model__freeze_conv1": False} if arch else {}
    checkpoint = make_checkpoint(tmp_path, dict(CLIP), model__pool="class+patches", **own)
    for format in ("timm", "open_clip"):
        with pytest.raises(UserError, match=r"export (to|timm's)"):
            export_checkpoint(tmp_path / "run", format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    size = load_trained(checkpoint, torch.device("cpu")).recipe.model.image_size
    images = torch.rand(2, 3, size, size)
    for format in ("safetensors", "onnx"):
        export_checkpoint(tmp_path / "run", format, tmp_path / OUTS[format])
        with torch.no_grad():
            want = load_trained(checkpoint, torch.device("cpu")).model(images)
            torch.testing.assert_close(
                FORMATS[format].load(tmp_path / OUTS[format])(images), want, rtol=1e-4, atol=1e-4
            )


def test_an_export_with_wrong_logits_is_deleted(tmp_path, monkeypatch):
    make_checkpoint(tmp_path, dict(CLIP))

    def damaged(path: Path) -> torch.nn.Module:
        state = load_file(path / "model.safetensors")
        state["norm.bias"] += 0.5
        save_file(state, path / "model.safetensors")
        return command.to_timm.load(path)

    monkeypatch.setitem(
        FORMATS, "timm", command.Format(command.to_timm.write, damaged, command.to_timm.usage, folder=True)
    )
    with pytest.raises(UserError, match="other logits"):
        export_checkpoint(tmp_path / "run", "timm", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arch.json", "run"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys, full_disk):
    make_checkpoint(tmp_path, dict(CLIP))
    out = tmp_path / "a.safetensors"
    with full_disk(1000):
        assert main(["export", str(tmp_path / "run"), "--format", "safetensors", "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"fastft export: {out} cannot be written (")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["arch.json", "run"]


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="/file is not a directory"):
        export_checkpoint(tmp_path / "no run", "onnx", tmp_path / "file/a.onnx")


def test_timm_preprocesses_images_as_our_evaluation_does(tmp_path):
    import timm

    make_checkpoint(tmp_path, dict(CLIP), train__eval_crop_pct=0.875)
    export_checkpoint(tmp_path / "run", "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    # 32 / 0.875 = 36.57, floored
    assert "short side resized to 36 px" in (tmp_path / "out/README.md").read_text()
    shown = tuple(config[key] for key in ("input_size", "interpolation", "crop_pct"))
    assert shown == ((3, 32, 32), "bicubic", 0.875)
    assert config["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert model.pretrained_cfg["label_names"] == list("abcdefg")


def test_an_open_clip_export_can_be_fine_tuned_again(tmp_path):
    checkpoint = make_checkpoint(tmp_path, dict(CLIP))
    export_checkpoint(tmp_path / "run", "open_clip", tmp_path / "out")
    arch = load_arch(str(tmp_path / "out" / to_open_clip.CONFIG))
    model = build_classifier(arch, 3)
    load_tower_weights(model.visual, str(tmp_path / "out" / to_open_clip.WEIGHTS), "exported")
    trained = load_trained(checkpoint, torch.device("cpu")).model
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.visual(images), trained.visual(images))


def test_the_card_has_model_accuracy_and_loading_code(tmp_path, capsys):
    assert tuple(FORMATS) == EXPORT_FORMATS
    make_checkpoint(tmp_path, dict(CLIP))
    out = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "run"), "--format", "onnx", "--out", str(out)]) == 0
    assert "logits differ by" in capsys.readouterr().out
    card = (tmp_path / "model.onnx.md").read_text()
    facts = (
        "61.250",
        "7 classes",
        "a, b, c",
        "optim.lr | 0.0006",
        "onnxruntime.InferenceSession",
        "bicubic",
        "val.beton",
    )
    assert all(fact in card for fact in facts)
    assert str(tmp_path) not in card  # where it was trained is nobody else's business


@pytest.mark.parametrize(
    ("format", "out", "message"),
    [("onnx", "model.pt", r"ends in \.onnx"), ("safetensors", "model", r"ends in \.safetensors")],
)
def test_an_unsuitable_file_name_is_refused(tmp_path, format, out, message):
    with pytest.raises(UserError, match=message):
        export_checkpoint(tmp_path / "run", format, tmp_path / out)


@pytest.mark.parametrize(
    ("format", "taken"),
    [("safetensors", "own.safetensors"), ("safetensors", "own.safetensors.md"), ("timm", "own"), ("timm", "own/README.md")],
)  # fmt: skip
def test_files_of_the_user_are_replaced_only_if_asked(tmp_path, format, taken, refused):
    make_checkpoint(tmp_path, dict(CLIP))
    place = tmp_path / taken
    if taken == "own":
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
    out = tmp_path / taken.split("/")[0].removesuffix(".md")
    command = ["export", str(tmp_path / "run"), "--format", format, "--out", str(out)]
    assert "exists; replace it with --overwrite, or give another --out" in refused(command)
    assert place.is_dir() or place.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert FORMATS[format].load(out)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert (place / "notes.txt").read_text() == "mine" if taken == "own" else place.read_bytes()[:4] != b"mine"
    assert not list(tmp_path.glob(".partial*"))


def test_the_working_directory_is_a_place(tmp_path, monkeypatch):
    make_checkpoint(tmp_path, dict(CLIP))
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    assert main(["export", "../run", "--format", "timm", "--out", ".", "--overwrite"]) == 0
    assert FORMATS["timm"].load(tmp_path / "own")(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize("name", ["own.safetensors", "own.safetensors.md"])
def test_a_link_is_never_written_through(tmp_path, name, capsys):
    make_checkpoint(tmp_path, dict(CLIP))
    (tmp_path / "target").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "target")
    out = str(tmp_path / "own.safetensors")
    command = ["export", str(tmp_path / "run"), "--format", "safetensors", "--out", out]
    for flags in ([], ["--overwrite"]):
        assert main([*command, *flags]) == 2
    assert (tmp_path / "target").read_text() == "mine" and (tmp_path / name).is_symlink()


def test_a_safetensors_export_is_self_contained(tmp_path):
    checkpoint = make_checkpoint(tmp_path, dict(DINO))
    trained = load_trained(checkpoint, torch.device("cpu")).model
    export_checkpoint(tmp_path / "run", "safetensors", tmp_path / "out.safetensors")
    (tmp_path / "arch.json").unlink()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(FORMATS["safetensors"].load(tmp_path / "out.safetensors")(images), trained(images))
    assert str(tmp_path).encode() not in (tmp_path / "out.safetensors").read_bytes()


def test_tensors_of_a_large_onnx_model_stay_in_the_files_beside_it(tmp_path, monkeypatch):
    """torch writes them so above 2 GiB, of which a single file cannot be saved."""

    def export(model, args, path, **options):
        weight = onnx.numpy_helper.from_array(np.ones(512, np.float32), "w")
        graph = onnx.helper.make_graph([], "g", [], [], [weight])
        onnx.save(onnx.helper.make_model(graph), path, save_as_external_data=True, location="w.bin", size_threshold=0)

    monkeypatch.setattr(torch.onnx, "export", export)
    recipe = SimpleNamespace(model=SimpleNamespace(image_size=32))
    to_onnx.write(
        SimpleNamespace(recipe=recipe, model=None, temperature_record={"multi_label": True}), tmp_path / "m.onnx"
    )
    made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert made.metadata_props[0].key == "multi_label"
    assert made.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
