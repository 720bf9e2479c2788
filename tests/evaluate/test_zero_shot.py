"""`fastft zeroshot` gives the logits of open_clip's own zero-shot classifier, and a head that a run starts from."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from beton_tools.base.errors import UserError
from beton_tools.read.manifest import Manifest
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.augment.recipe_policy import build_policy
from fastft.cli import main
from fastft.data.loader import EvalLoader
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.evaluate.trained import load_trained
from fastft.evaluate.zero_shot import find_names, read_prompts
from fastft.export import FORMATS, export_checkpoint
from fastft.model.recipe_model import build_model
from fastft.recipe import Recipe, load_recipe
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from tests.train.runs import differing, end, flags, run
from tests.written import SMALL_CLIP, write_clip

CPU = torch.device("cpu")
TOKEN = {"model__pool": "token", "schedule__epochs": "1", "schedule__warmup_epochs": "0"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `write_clip`."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


@pytest.fixture(scope="module")
def clip_options(tiny: dict[str, str], clip_folder: Path) -> dict[str, str]:
    names = {"model.arch": "clip.json", "model.weights": "clip.safetensors"}
    return tiny | {option: str(clip_folder / name) for option, name in names.items()}


def command(options: dict[str, str], *arguments: str) -> list[str]:
    chosen = ("model.arch", "model.weights", "model.image_size", "train.amp", "data.val")
    return ["zeroshot", "final_b16", "--device=cpu", *(f"--{k}={options[k]}" for k in chosen), *arguments]


@pytest.fixture(scope="module")
def head(clip_options: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    assert main(command(clip_options, "--templates=simple", f"--out={path}")) == 0
    return path


def open_clips_logits(folder: Path, data: str, names: list[str]) -> torch.Tensor:
    """Logits by open_clip alone: its model from its configuration, its tokenizer, templates and classifier."""
    clip = open_clip.CLIP(**SMALL_CLIP).eval()
    clip.load_state_dict(load_file(folder / "clip.safetensors"))
    weights_DK = open_clip.build_zero_shot_classifier(
        clip, open_clip.SimpleTokenizer(), names, open_clip.SIMPLE_IMAGENET_TEMPLATES
    )
    with EvalLoader(data, "none", 32, batch_size=32) as loader, torch.no_grad():
        images = torch.cat([batch.images.clone() for batch in loader])
        return clip.logit_scale.exp() * clip.encode_image(images, normalize=True) @ weights_DK


def with_head(options: dict[str, str], head: Path, **changes: str) -> Recipe:
    values = options | {"model.pool": "token", "model.head": str(head)} | changes
    return load_recipe("final_b16", [f"--{k}={v}" for k, v in values.items()])


def test_logits_are_those_of_open_clips_zero_shot_classifier(clip_options, clip_folder, head):
    want = open_clips_logits(clip_folder, clip_options["data.val"], ["astronaut", "coffee"])
    recipe = with_head(clip_options, head)
    model, policy = build_model(recipe).eval(), build_policy(recipe)
    with EvalLoader(clip_options["data.val"], policy, 32, batch_size=32) as loader, torch.no_grad():
        got = torch.cat([model(batch.images) for batch in loader])
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_folder_of_transformers_gives_its_logits(clip_options, tmp_path):
    transformers = pytest.importorskip("transformers")
    vision, text = SMALL_CLIP["vision_cfg"], SMALL_CLIP["text_cfg"]
    common = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=common | {
            "hidden_size": text["width"], "intermediate_size": 4 * text["width"], "vocab_size": text["vocab_size"],
            "bos_token_id": 49406, "eos_token_id": 49407,
        },
        vision_config=common | {
            "hidden_size": vision["width"], "intermediate_size": 4 * vision["width"], "image_size": 32, "patch_size": 8,
        },
        projection_dim=SMALL_CLIP["embed_dim"],
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "clip")
    head, templates = tmp_path / "head.safetensors", tmp_path / "templates.txt"
    templates.write_text("a photo of a {}.\n")
    options = clip_options | {"model.weights": str(tmp_path / "clip")}
    assert main(command(options, f"--templates={templates}", f"--out={head}")) == 0
    recipe = with_head(options, head)
    tokens = open_clip.SimpleTokenizer()(["a photo of a astronaut.", "a photo of a coffee."])
    images = torch.rand(3, 3, 32, 32) * 4 - 2
    with torch.no_grad():
        want = theirs(input_ids=tokens, pixel_values=images).logits_per_image
        torch.testing.assert_close(build_model(recipe).eval()(images), want, rtol=1e-4, atol=1e-4)


def test_the_printed_accuracy_is_that_of_open_clips_logits(clip_options, clip_folder, capsys):
    names = clip_folder / "names.txt"
    names.write_text("space suit\ncup of coffee\n")
    assert main(command(clip_options, "--templates=simple", f"--names={names}", "--json")) == 0
    scores = json.loads(capsys.readouterr().out)
    logits = open_clips_logits(clip_folder, clip_options["data.val"], ["space suit", "cup of coffee"])
    labels = torch.tensor([0] * 10 + [1] * 10)
    assert scores["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert scores["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


@pytest.fixture(scope="module")
def trained(clip_options: dict[str, str], head: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run of one epoch from the head, and its result."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, run(clip_options, folder, model__head=str(head), **TOKEN)


def test_a_run_starts_from_the_head_and_trains_the_projection(
    clip_options: dict[str, str], clip_folder: Path, head: Path, trained: tuple[Path, dict], tmp_path: Path
) -> None:
    # a learning rate of 0 keeps what the run starts from
    still = TOKEN | {"model__head": str(head), "optim__lr": "0", "schedule__min_lr": "0"}
    run(clip_options, tmp_path / "still", **still)
    (path,) = list_checkpoints(tmp_path / "still" / "checkpoints", "best")
    found = read_checkpoint(path).tensors["model"]
    clip, stored = load_file(clip_folder / "clip.safetensors"), load_file(head)
    for name in ("head.weight", "head.bias"):
        assert torch.equal(found[name], stored[name])
    for name in ("visual.proj", "visual.ln_post.weight", "visual.class_embedding"):
        assert torch.equal(found[name], clip[name])
    weights = load_trained(trained[0], CPU, "raw").model.state_dict()
    assert not torch.equal(weights["visual.proj"], clip["visual.proj"])
    assert weights["head.weight"].shape == (2, 24)


def test_a_resumed_run_is_bit_equal_and_does_not_need_the_heads_file_again(clip_options, head, tmp_path):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(head.read_bytes())
    two = TOKEN | {"model__head": str(mine), "schedule__epochs": "2", "model__drop_path": "0.2"}
    run(clip_options, tmp_path / "whole", **two)
    run(clip_options, tmp_path / "resumed", schedule__stop_epoch="1", **two)
    mine.unlink()
    run(clip_options, tmp_path / "resumed", **two)
    assert differing(end(tmp_path / "whole"), end(tmp_path / "resumed")) == []


def test_the_embedding_is_also_trained_in_half_precision_and_by_a_probe(clip_options, tmp_path):
    run(clip_options, tmp_path / "half", train__amp="bf16", train__half_residual="on", **TOKEN)
    run(clip_options, tmp_path / "probe", model__head_init="probe", **TOKEN)
    for name in ("half", "probe"):
        weights = load_trained(tmp_path / name, CPU, "raw").model.state_dict()
        assert weights["visual.proj"].dtype == torch.float32 and weights["visual.proj"].isfinite().all()


def test_ln_post_and_proj_are_trained_with_the_top_block_and_frozen_in_a_linear_probe(clip_options):
    for layers, trained in (("0", False), ("1", True), ("none", True)):
        options = clip_options | {"model.pool": "token", "model.trainable_layers": layers}
        model = build_model(load_recipe("final_b16", [f"--{k}={v}" for k, v in options.items()]))
        assert {model.visual.proj.requires_grad, model.visual.ln_post.weight.requires_grad} == {trained}
        assert model.head.weight.requires_grad


def test_a_finished_run_is_evaluated_and_exported(trained, tmp_path):
    folder, result = trained
    scores = evaluate_checkpoint(folder, None, "cpu", weights="raw")
    assert scores.top1 == pytest.approx(result["last"]["raw"]["top1"])
    model, images = load_trained(folder, CPU).model, torch.rand(3, 3, 32, 32) * 4 - 2
    for format, out in (("open_clip", "out"), ("safetensors", "out.safetensors"), ("onnx", "out.onnx")):
        export_checkpoint(folder, format, tmp_path / out, temperature=False)
        with torch.no_grad():
            torch.testing.assert_close(
                FORMATS[format].load(tmp_path / out)(images), model(images), rtol=1e-4, atol=1e-4
            )
    with pytest.raises(UserError, match="no embedding of length 1"):
        export_checkpoint(folder, "timm", tmp_path / "timm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.pool": "patches"}, "is for --model.pool=token, but the recipe has patches"),
        ({"model.head": "nowhere.safetensors"}, "nowhere.safetensors: cannot be read"),
        ({"model.head": "README.md"}, "README.md is not a .safetensors file that fastft zeroshot wrote"),
        ({"model.head_init": "probe"}, "model.head and model.head_init=probe both set the head"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_in_one_line(clip_options, head, tmp_path, refused, changes, message):
    options = clip_options | {"model.pool": "token", "model.head": str(head)} | changes
    assert message in refused(["train", "final_b16", *flags(options, tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_head_of_other_classes_or_of_other_tensors_is_refused(clip_options, head, tmp_path, refused):
    with safe_open(head, framework="pt") as file:
        header = file.metadata()
    tensors, other = load_file(head), tmp_path / "other.safetensors"
    options = clip_options | {"model.pool": "token", "model.head": str(other)}
    for classes, bias, message in (
        (["coffee", "astronaut"], tensors["head.bias"], "has other classes: "),
        (["coffee"], tensors["head.bias"], "weight, bias and class names do not match"),
        (["astronaut", "coffee"], torch.zeros(3), "weight, bias and class names do not match"),
    ):
        save_file(tensors | {"head.bias": bias}, other, header | {"classes": json.dumps(classes)})
        assert message in refused(["train", "final_b16", *flags(options, tmp_path / "run")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--templates=clip"], "clip: cannot be read"),
        (["--names=MANIFEST.in"], "MANIFEST.in has 1 class names"),
        (["--data=nowhere.beton"], "nowhere.beton: cannot be read"),
        (["--out=head.pt"], "name that ends in .safetensors"),
        (["--model.weights=random"], "knows no class names"),
        (["--model.arch=ViT-H-14-CLIPA"], "pools tokens by 'avg'"),
        (
            ["--model.arch=timm/test_vit"],
            "timm/test_vit is another kind: its image tower is timm's test_vit. Use a ViT by",
        ),
        (
            ["--model.arch=ViT-B-16-SigLIP2"],
            "its image tower is timm's vit_base_patch16_siglip_224. Use a ViT by OpenAI",
        ),
        (["--model.arch=ViT-B-16-SigLIP", "--data=nowhere.beton"], "its image tower is timm's"),  # before data are read
        (["--model.arch=EVA02-B-16"], "its image tower is timm's eva02_base_patch16_clip_224"),
        (["--model.arch=PE-Core-B-16"], "its image tower is timm's vit_pe_core_base_patch16_224"),
        (["--model.arch=ViT-H-14-worldwide"], "takes its texts through transformers (facebook/xlm-v-base)"),
    ],
)
def test_bad_input_is_one_line(clip_options, refused, arguments, message):
    assert message in refused(command(clip_options, *arguments))


def test_weights_without_a_text_tower_or_a_projection_are_refused(clip_options, clip_folder, tmp_path, refused):
    state = load_file(clip_folder / "clip.safetensors")
    path = tmp_path / "visual.safetensors"
    for kept, message in (("visual.", "holds no CLIP text tower"), ("visual.t", "holds no CLIP image tower")):
        save_file({name: value for name, value in state.items() if name.startswith(kept)}, path)
        assert message in refused(command(clip_options | {"model.weights": str(path)}))
    save_file({name: value for name, value in state.items() if name != "visual.proj"}, path)
    assert "have no proj, which --model.pool=token needs" in refused(
        command(clip_options | {"model.weights": str(path)})
    )


def test_imagenets_classes_have_open_clips_names_also_in_a_subset(tmp_path):
    """Label 0 of a subset need not be class 0 of ImageNet."""
    for wnid in ("n01443537", "n02012849", "n03126707"):
        (tmp_path / "images" / wnid).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images" / wnid / "a.png")
    convert_folder(tmp_path / "images", tmp_path / "a.beton", WriteOptions(workers=0))
    names, _ = find_names(tmp_path / "a.beton", Manifest.of_beton(tmp_path / "a.beton"))
    assert names == ["goldfish", "crane bird", "construction crane"]
    assert names[0] == open_clip.IMAGENET_CLASSNAMES[1]

    (tmp_path / "images" / "n01443537").rename(tmp_path / "images" / "hot_dog")
    convert_folder(tmp_path / "images", tmp_path / "b.beton", WriteOptions(workers=0))
    assert find_names(tmp_path / "b.beton", Manifest.of_beton(tmp_path / "b.beton"))[0][0] == "hot dog"


def test_templates_are_open_clips_or_the_lines_of_a_file(tmp_path, tiny):
    data, classes = Path(tiny["data.val"]), ["astronaut", "coffee"]
    manifest = Manifest.of_beton(data)
    assert len(read_prompts(data, classes, manifest, None, "openai").templates) == 80
    mine = tmp_path / "mine.txt"
    mine.write_text("\ufeffa photo of a {}.\na {{drawing}} of {}\n\n", encoding="utf-8")  # Notepad's byte order mark
    found = read_prompts(data, classes, manifest, None, str(mine)).templates
    assert [template("{0}cup") for template in found] == ["a photo of a {0}cup.", "a {{drawing}} of {0}cup"]
    mine.write_text("a photo\n")
    with pytest.raises(UserError, match="once, where the class name goes"):
        read_prompts(data, classes, manifest, None, str(mine))


def test_a_file_without_class_names_needs_them(tmp_path, tiny):
    bare = tmp_path / "bare.beton"
    shutil.copy(tiny["data.val"], bare)
    with pytest.raises(UserError, match=r"has no class names\. Give --names"):
        read_prompts(bare, ["class 0", "class 1"], None, None, "simple")
