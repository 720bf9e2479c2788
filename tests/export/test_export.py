"""An exported model gives the checkpoint's logits in the library that it is for, and says what it does to an image."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fastft
from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.evaluate.predictor import Predictor, read_image
from fastft.evaluate.trained import load_trained
from fastft.export import FORMATS, command, export_checkpoint, to_onnx, to_open_clip
from fastft.export.preprocessing import preprocessing_code
from fastft.model import build_classifier, load_arch, load_tower_weights
from fastft.recipe import load_recipe
from fastft.recipe.constants import EXPORT_FORMATS
from fastft.recipe.published import published_preprocessing
from tests.written import make_checkpoint

OUTS = {"timm": "out", "open_clip": "out", "safetensors": "out.safetensors", "onnx": "out.onnx", "torch": "out.pt2"}
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
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    trained = load_trained(checkpoint, torch.device("cpu"))
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (trained.recipe.augment.mean, trained.recipe.augment.std)
    )
    images = (pixels / 255 - mean) / std
    with torch.no_grad():
        want = trained.model(images)
        got = FORMATS[format].load(out)(pixels if format == "torch" else images)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want.softmax(1) if format == "torch" else want, rtol=1e-4, atol=1e-4)
    assert done.max_difference < 1e-4 and done.largest > 0.1
    assert not list(tmp_path.glob(".partial*"))


def test_added_layer_scale_is_exported(tmp_path):
    make_checkpoint(tmp_path, dict(CLIP), model__layer_scale=1.0)
    for format in ("timm", "open_clip"):
        assert export_checkpoint(tmp_path / "run", format, tmp_path / format).max_difference < 1e-4


def test_relative_position_bias_is_refused_by_formats_without_it(tmp_path):
    make_checkpoint(tmp_path, dict(CLIP), model__rel_pos_bias=True)
    for format in ("timm", "open_clip"):
        with pytest.raises(UserError, match=r"no relative position bias\. Export to safetensors or onnx"):
            export_checkpoint(tmp_path / "run", format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for format in ("safetensors", "onnx", "torch"):
        assert export_checkpoint(tmp_path / "run", format, tmp_path / OUTS[format]).max_difference < 1e-4


@pytest.mark.parametrize("pool", ["class+patches", "attention"])
@pytest.mark.parametrize("arch", [None, "timm/test_vit"])
def test_a_head_that_only_fastft_builds_is_refused_by_formats_without_it(tmp_path, arch, pool):
    own = {"model__image_size": 160, "model__arch": arch, "model__freeze_conv1": False} if arch else {}
    checkpoint = make_checkpoint(tmp_path, dict(CLIP), model__pool=pool, **own)
    for format in ("timm", "open_clip"):
        with pytest.raises(UserError, match=r"Export (to|timm's)"):
            export_checkpoint(tmp_path / "run", format, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    size = load_trained(checkpoint, torch.device("cpu")).recipe.model.image_size
    images = torch.rand(2, 3, size, size)
    assert export_checkpoint(tmp_path / "run", "torch", tmp_path / OUTS["torch"]).max_difference < 1e-4
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
        FORMATS,
        "timm",
        command.Format(command.to_timm.write, damaged, command.to_timm.usage, folder=True, library="timm"),
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


@pytest.mark.parametrize("format", ["timm", "open_clip", "safetensors"])
def test_an_export_states_how_its_images_are_evaluated(tmp_path, format):
    evaluated = {
        "train__eval_resize": "squash",
        "train__eval_interpolation": "bilinear",
        "augment__mean": "0.1,0.2,0.3",
    }
    make_checkpoint(tmp_path, dict(CLIP), **evaluated)
    out = tmp_path / ("out.safetensors" if format == "safetensors" else "out")
    export_checkpoint(tmp_path / "run", format, out)
    stated = published_preprocessing("ViT-B-16", str(out))
    assert (stated.mean, stated.interpolation, stated.resize) == ((0.1, 0.2, 0.3), "bilinear", "squash")


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
    assert "Its logits differ from fastft's by at most" in capsys.readouterr().out
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
    assert "exists. Give another path, or replace it with --overwrite" in refused(command)
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
    make_checkpoint(tmp_path, dict(CLIP))
    to_onnx.write(load_trained(tmp_path / "run", torch.device("cpu")), tmp_path / "m.onnx")
    made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert "classes" in {prop.key for prop in made.metadata_props}
    assert made.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL


# without fastft ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, photographs) -> list[Path]:
    """Landscape and portrait, one whose long side is not a whole number, turned by Exif, transparent, grey, CMYK, tiny."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    coffee, cat = (Image.fromarray(photographs[name]) for name in ("coffee", "chelsea"))
    turned = Image.Exif()
    turned[0x0112] = 6
    coffee.resize((201, 133)).save(folder / "a.jpg", quality=95)
    cat.resize((67, 131)).save(folder / "b.jpg", quality=90, exif=turned)
    glass = cat.resize((90, 70)).convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize((90, 70)))
    glass.save(folder / "c.png")
    coffee.convert("L").resize((50, 80)).save(folder / "d.png")
    coffee.convert("CMYK").resize((99, 64)).save(folder / "e.jpg")
    cat.resize((17, 23)).quantize(32).save(folder / "f.png")
    return sorted(folder.iterdir())


def code_of(card: Path) -> str:
    return re.findall(r"```python\n(.*?)```", card.read_text(), re.S)[1]


@pytest.mark.parametrize(
    ("size", "share", "resize", "interpolation"),
    [(32, 0.76, "shortest", "bicubic"), (40, 1.0, "shortest", "bilinear"), (32, 0.9, "squash", "bilinear")],
)
def test_the_cards_preprocessing_gives_the_pixels_of_predict(tmp_path, pictures, size, share, resize, interpolation):
    options = {"model__image_size": size, "train__eval_crop_pct": share}
    evaluated = {"train__eval_resize": resize, "train__eval_interpolation": interpolation}
    make_checkpoint(tmp_path, {**CLIP, "image_size": size}, **options, **evaluated)
    export_checkpoint(tmp_path / "run", "safetensors", tmp_path / "a.safetensors")
    code = code_of(tmp_path / "a.safetensors.md")
    assert {line.split()[1].split(".")[0] for line in code.splitlines() if re.match("(from|import) ", line)} == {
        "numpy",
        "PIL",
    }
    exec(code, names := {})
    recipe = load_trained(tmp_path / "run", torch.device("cpu")).recipe
    for path in pictures:
        np.testing.assert_array_equal(names["preprocess"](path), read_image(path, recipe).tensor.numpy(), str(path))
        assert names["preprocess"](path).dtype == np.float32


def test_an_onnx_file_states_its_classes_and_its_preprocessing(tmp_path):
    import onnxruntime

    make_checkpoint(tmp_path, dict(CLIP), train__eval_crop_pct=0.875)
    assert main(["export", str(tmp_path / "run"), "--format=onnx", f"--out={tmp_path / 'm.onnx'}"]) == 0
    meta = onnxruntime.InferenceSession(tmp_path / "m.onnx").get_modelmeta().custom_metadata_map
    stated = {key: json.loads(value) for key, value in meta.items()}
    assert stated["classes"] == list("abcdefg")
    assert (stated["image_size"], stated["resize_short_side"], stated["background"]) == (32, 36, "white")
    assert stated["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073)) and len(stated["std"]) == 3
    assert "truncated to whole pixels" in stated["preprocessing"]
    assert (stated["fastft"], stated["run"]["name"], stated["run"]["recipe"]) == (
        fastft.__version__,
        "run",
        "final_b16",
    )
    assert "Both licences apply" in stated["licence"]
    made = onnx.load(tmp_path / "m.onnx")
    assert (made.producer_name, made.producer_version) == ("fastft", fastft.__version__)


WITHOUT_FASTFT = """
import json
import sys
sys.modules["fastft"] = sys.modules["beton_tools"] = None  # importing them is an error
{code}
images = np.stack([preprocess(path) for path in sys.argv[1:]])
{usage}
{end}
print(json.dumps([classes, np.asarray(probabilities).tolist()]))
"""
# what follows the card's code; timm's card has no images, which its transform makes
SOFTMAX = "import torch; probabilities = torch.softmax(torch.as_tensor(logits), 1)"
TIMM = (
    "import torch; classes = model.pretrained_cfg['label_names']\nlogits = model(torch.from_numpy(images)).detach()\n"
)
ENDS = {
    "timm": TIMM + SOFTMAX,
    "open_clip": SOFTMAX,
    "onnx": SOFTMAX,
    "torch": "probabilities = probabilities.detach()",
}


@pytest.mark.slow
@pytest.mark.parametrize(("format", "pool"), [*((name, "patches") for name in ENDS), ("open_clip", "token")])
def test_the_code_of_the_card_gives_the_probabilities_of_predict_without_fastft(tmp_path, pictures, format, pool):
    scores = {"temperature": 1.75, "ece": 3.0, "ece_scaled": 1.0}
    make_checkpoint(tmp_path, dict(CLIP), scores, model__pool=pool, train__amp="fp32")
    out = tmp_path / OUTS[format]
    assert main(["export", str(tmp_path / "run"), f"--format={format}", f"--out={out}"]) == 0
    card = out / "README.md" if out.is_dir() else Path(f"{out}.md")
    usage = re.findall(r"```python\n(.*?)```", card.read_text(), re.S)[0]
    program = WITHOUT_FASTFT.format(code=code_of(card), usage=usage, end=ENDS[format])
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, pictures)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    classes, rows = json.loads(done.stdout)
    for row, prediction in zip(rows, Predictor(tmp_path / "run", "cpu").predict(pictures, topk=7), strict=True):
        assert sum(row) == pytest.approx(1)
        want = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        assert dict(zip(classes, row, strict=True)) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_the_card_imports_no_fastft_and_has_the_front_matter_of_the_hub(tmp_path, format):
    from huggingface_hub import ModelCard

    make_checkpoint(tmp_path, dict(CLIP))
    out = tmp_path / OUTS[format]
    export_checkpoint(tmp_path / "run", format, out)
    card = out / "README.md" if out.is_dir() else Path(f"{out}.md")
    assert not re.search(r"^\s*(from|import) (fastft|beton_tools)", card.read_text(), re.M)
    data = ModelCard.load(card).data
    assert (data.pipeline_tag, data.license, data.library_name) == (
        "image-classification",
        "other",
        FORMATS[format].library,
    )


@pytest.mark.parametrize("pool", ["patches", "token"])
def test_open_clip_builds_the_whole_export_from_its_folder(tmp_path, pool):
    """Its own functions for a folder: the model with every tensor, and the preprocessing at the model's size."""
    import open_clip

    checkpoint = make_checkpoint(tmp_path, dict(CLIP), model__pool=pool)
    export_checkpoint(tmp_path / "run", "open_clip", tmp_path / "out")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    images = torch.randn(2, 3, 32, 32)
    trained = load_trained(checkpoint, torch.device("cpu")).model
    head = load_file(tmp_path / "out/head.safetensors")
    with torch.no_grad():
        if pool == "token":
            got = torch.nn.functional.linear(
                model.encode_image(images, normalize=True), head["head.weight"], head["head.bias"]
            )
        else:
            got = model.encode_image(images) + head["head.bias"]
        torch.testing.assert_close(got, trained(images), rtol=1e-4, atol=1e-4)
    assert transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


@pytest.mark.parametrize("share", [1.0, 0.875])
def test_an_open_clip_export_says_where_open_clips_transform_shows_something_else(tmp_path, capfd, share):
    """open_clip's configuration has no place for a central crop."""
    make_checkpoint(tmp_path, dict(CLIP), train__eval_crop_pct=share)
    assert main(["export", str(tmp_path / "run"), "--format=open_clip", f"--out={tmp_path / 'out'}"]) == 0
    said = "open_clip's own transform does not crop to train.eval_crop_pct=0.875, so its predictions differ"
    assert (f"warning: {said}" in capfd.readouterr().err) == (share < 1)
    assert (said in (tmp_path / "out/README.md").read_text()) == (share < 1)


def test_the_page_about_deployment_shows_the_code_of_the_card():
    page = (Path(__file__).parents[2] / "docs/deploy.md").read_text()
    assert preprocessing_code(load_recipe("final_b16"), normalised=True) in page
