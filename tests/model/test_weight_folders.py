"""Folders that open_clip, timm and transformers write themselves load, on disk and from the hub's cache."""

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from open_clip.push_to_hf_hub import save_for_hf as save_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.model import Tower, load_tower_weights
from fastft.model.arch import load_open_clip_arch
from fastft.model.recipe_model import build_model
from fastft.model.weight_files import INDEX, open_weight_folder
from fastft.photos.prepare import prepare_data
from fastft.recipe import load_recipe
from fastft.recipe.hub import hub_failure

SIZE = 32
CLIP = {
    "embed_dim": 32, "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}  # fmt: skip
SIGLIP = CLIP | {
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit3", "timm_model_pretrained": False, "timm_pool": "map",
        "timm_proj": "none",
    },
    "embed_dim": 96,
}  # fmt: skip
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
NO_TOKENIZER = SimpleNamespace(save_pretrained=lambda folder: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`clip`, `vision`, `sharded` of transformers, `open_clip`, `siglip` of open_clip, `timm` of timm."""
    transformers = pytest.importorskip("transformers")
    root, vision = tmp_path_factory.mktemp("folders"), {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE,
        "patch_size": 8,
    }  # fmt: skip
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
        "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    clip = transformers.CLIPModel(config)
    clip.save_pretrained(root / "clip")
    clip.save_pretrained(root / "sharded", max_shard_size="100KB")
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)).save_pretrained(root / "vision")
    for name, model_config in (("open_clip", CLIP), ("siglip", SIGLIP)):
        (root / f"{name}-config.json").write_text(json.dumps(model_config))
        open_clip.add_model_config(root / f"{name}-config.json")
        model = open_clip.create_model(f"{name}-config")
        save_open_clip(model, NO_TOKENIZER, model_config, root / name)
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=5), root / "timm", safe_serialization=True)
    return root


def own_tower(folders: Path) -> Tower:
    return Tower(load_open_clip_arch(str(folders / "open_clip-config.json"))).eval()


def timm_recipe(name: str, weights: object, size: int = SIZE):
    flags = {"model.arch": f"timm/{name}", "model.weights": weights, "model.image_size": size, "data.num_classes": 3}
    return load_recipe("final_b16", [f"--{key}={value}" for key, value in flags.items()])


def transformers_features(folder: Path, kind: str) -> torch.Tensor:
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder)
    tower = model.vision_model if kind == "CLIPModel" else model
    return tower(pixel_values=IMAGES).last_hidden_state  # of the last block, before its LayerNorm


@pytest.mark.parametrize(
    ("name", "kind"), [("clip", "CLIPModel"), ("sharded", "CLIPModel"), ("vision", "CLIPVisionModel")]
)
def test_transformers_clip_gives_equal_features(folders, name, kind):
    tower = own_tower(folders)
    load_tower_weights(tower, str(folders / name), "tiny")
    with torch.no_grad():
        torch.testing.assert_close(tower(IMAGES), transformers_features(folders / name, kind), rtol=1e-4, atol=1e-5)
    assert (folders / "sharded" / INDEX).exists()


def test_a_file_of_transformers_loads_without_its_folder(folders, tmp_path):
    shutil.copy(folders / "clip" / "model.safetensors", tmp_path / "weights.safetensors")
    from_file, from_folder = own_tower(folders), own_tower(folders)
    load_tower_weights(from_file, str(tmp_path / "weights.safetensors"), "tiny")
    load_tower_weights(from_folder, str(folders / "clip"), "tiny")
    assert torch.equal(from_file(IMAGES), from_folder(IMAGES))


def test_open_clips_hub_format_gives_equal_features(folders):
    theirs = open_clip.create_model("open_clip-config").eval()
    theirs.load_state_dict(load_file(folders / "open_clip" / "open_clip_model.safetensors"))
    # the hub's configuration
    arch = load_open_clip_arch(str(folders / "open_clip" / "open_clip_config.json"))
    tower = Tower(arch).eval()
    load_tower_weights(tower, str(folders / "open_clip"), "tiny")
    with torch.no_grad():
        pooled = theirs.visual.ln_post(tower(IMAGES))[:, 0] @ theirs.visual.proj
        torch.testing.assert_close(pooled, theirs.encode_image(IMAGES), rtol=1e-4, atol=1e-5)


def test_open_clips_timm_tower_goes_through_timm_with_equal_features(folders):
    theirs = open_clip.create_model("siglip-config").eval()
    theirs.load_state_dict(load_file(folders / "siglip" / "open_clip_model.safetensors"))
    model = build_model(timm_recipe("test_vit3", folders / "siglip", size=160)).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(model.pooled(images), theirs.encode_image(images), rtol=1e-4, atol=1e-5)


def test_timms_hub_format_is_interpolated_and_gets_a_new_head(folders):
    model = build_model(timm_recipe("test_vit", folders / "timm", size=64))
    theirs = timm.create_model(f"local-dir:{folders / 'timm'}", pretrained=True, num_classes=3, img_size=64)
    ours, state = model.visual.trunk.state_dict(), theirs.state_dict()
    assert ours.keys() == state.keys()
    assert [k for k in ours if not torch.equal(ours[k], state[k])] == ["head.weight"]
    assert ours["head.weight"].abs().max() < 1e-3, "times head_init_scale"


def in_hub_cache(folder: Path, cache: Path, name: str) -> None:
    """The layout in which huggingface_hub keeps a downloaded repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["clip", "sharded", "vision", "open_clip"])
def test_the_hubs_cache_is_used_without_a_network(folders, offline, name):
    in_hub_cache(folders / name, offline, "some/clip")
    hub, local = own_tower(folders), own_tower(folders)
    load_tower_weights(hub, "hf-hub:some/clip", "tiny")
    load_tower_weights(local, str(folders / name), "tiny")
    assert torch.equal(hub(IMAGES), local(IMAGES))


@pytest.mark.parametrize("weights", ["timm", "r160_in1k"])
def test_timms_pretrained_weights_get_a_new_head_also_for_as_many_classes(tmp_path, offline, weights):
    theirs = timm.create_model("test_vit")
    timm.models.save_for_hf(theirs, tmp_path / "saved", safe_serialization=True)
    in_hub_cache(tmp_path / "saved", offline, "timm/test_vit.r160_in1k")
    recipe = timm_recipe("test_vit", weights, size=160).with_option("data.num_classes", 1000)
    ours = build_model(recipe).visual.trunk.state_dict()
    different = [key for key, value in theirs.state_dict().items() if not torch.equal(ours[key], value)]
    assert different == ["head.weight"]


def test_a_hub_that_cannot_be_reached_is_one_line(offline):
    for recipe in (timm_recipe("test_vit", "hf-hub:some/model"), timm_recipe("test_vit", "timm")):
        with pytest.raises(UserError, match=r"could not be downloaded \(.+\). Download (it|them) elsewhere") as refused:
            build_model(recipe)
        assert "\n" not in str(refused.value)


def test_a_hub_that_does_not_answer_is_not_asked_again_and_nothing_is_created(offline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    hub_failure.cache_clear()
    for k in range(4):
        (tmp_path / f"photos/{k % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / f"photos/{k % 2}/{k}.png")
    began = time.monotonic()
    for weights in ("hf-hub:some/model", "openai"):
        recipe = load_recipe("photos", [f"--model.weights={weights}", f"--data.train={tmp_path / 'photos'}"])
        with pytest.raises(
            UserError, match=r"could not be downloaded \(http://127.0.0.1:9 does not answer: .+ refused\)"
        ):
            prepare_data(recipe, print, run=tmp_path / "run")
    assert time.monotonic() - began < 15 and not (tmp_path / "run").exists()
    hub_failure.cache_clear()


def random_clip(name: str, **changes: object) -> torch.nn.Module:
    """timm's model with random values everywhere: timm itself starts with norms of 1 and a class token of almost 0."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=11, **changes).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.to_empty(device="cpu").named_parameters():
        parameter.data.normal_("norm" in key and key.endswith("weight"), 0.02, generator=generator)
    return model


def timm_tokens(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Tokens after the last block."""
    found: list[torch.Tensor] = []
    model.blocks[-1].register_forward_hook(lambda _, __, out: found.append(out))
    model(images)
    return found[0]


@pytest.mark.parametrize(
    ("name", "arch", "size"),
    [
        ("vit_base_patch16_clip_224.laion2b_ft_in12k", "ViT-B-16", 224),
        pytest.param("vit_base_patch32_clip_quickgelu_224.openai", "ViT-B-32-quickgelu", 224, marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", "ViT-B-16", 384, marks=pytest.mark.slow),
        pytest.param("vit_large_patch14_clip_224.openai_ft_in12k", "ViT-L-14", 224, marks=pytest.mark.slow),
        pytest.param("vit_large_patch14_clip_336.laion2b_ft_in12k_in1k", "ViT-L-14", 336, marks=pytest.mark.slow),
    ],
)
def test_timms_clip_by_its_name_gives_the_own_tower_timms_tokens(tmp_path, offline, name, arch, size):
    theirs, images = random_clip(name), torch.randn(1, 3, size, size)
    timm.models.save_for_hf(theirs, tmp_path / "saved", safe_serialization=True)
    in_hub_cache(tmp_path / "saved", offline, timm.get_pretrained_cfg(name).hf_hub_id)
    tower = Tower(load_open_clip_arch(arch).at(size)).eval()
    load_tower_weights(tower, f"timm/{name}", arch)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), timm_tokens(theirs, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["file", "folder", "bin"])
def test_timms_format_of_a_large_clip_loads_from_files_and_folders(tmp_path, form):
    """With the shapes of L/14, two blocks and LayerScale."""
    theirs = random_clip("vit_large_patch14_clip_quickgelu_224", depth=2, img_size=28, init_values=0.5)
    vision = {"image_size": 28, "layers": 2, "width": 1024, "patch_size": 14, "ls_init_value": 1.0}
    (tmp_path / "l14.json").write_text(json.dumps({"embed_dim": 768, "quick_gelu": True, "vision_cfg": vision}))
    timm.models.save_for_hf(theirs, tmp_path / "saved", safe_serialization=form != "bin")
    path = tmp_path / "saved" / {"file": "model.safetensors", "bin": "pytorch_model.bin"}.get(form, "")
    tower = Tower(load_open_clip_arch(str(tmp_path / "l14.json")), layer_scale=1.0).eval()
    load_tower_weights(tower, str(path), "l14")
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(tower(images), timm_tokens(theirs, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "weights", "message"),
    [
        ("ViT-B-16", "dfn2b", "dfn2b were trained with QuickGELU. Set model.arch to the name that ends in -quickgelu"),
        ("ViT-B-16", "timm/vit_base_patch16_clip_224.openai", "were trained with QuickGELU"),
        ("ViT-L-14", "timm/vit_large_patch14_clip_quickgelu_224.metaclip_400m", "were trained with QuickGELU"),
        ("ViT-B-16-quickgelu", "timm/vit_base_patch16_clip_224.openai_ft_in12k", "were trained with GELU"),
        ("ViT-B-16", "timm/vit_base_patch16_clip_224.laion2b_ft_in12", "weights .* Did you mean 'timm/.*laion2b_ft_in12k'"),
        ("ViT-B-16", "timm/vit_base_patch16_siglip_224.webli", "not a plain CLIP ViT. Set --model.arch=timm/vit_base"),
        ("ViT-B-16", "opnai", "Did you mean 'openai'"),
    ],
)  # fmt: skip
def test_explain_and_cost_refuse_weights_of_the_other_gelu(arch, weights, message, capsys):
    flags = [f"--model.arch={arch}", f"--model.weights={weights}"]
    for command in (["explain", "final_b16"], ["cost", "final_b16", "--gpu=V100"]):
        assert main([*command, *flags]) == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("arch", "weights"),
    [("ViT-L-14", "timm/vit_large_patch14_clip_224.laion2b_ft_in12k"), ("ViT-B-16-quickgelu", "dfn2b"),
     ("ViT-L-14-quickgelu", "timm/vit_large_patch14_clip_224.openai")],
)  # fmt: skip
def test_explain_prices_weights_that_fit_without_a_network(offline, arch, weights, capsys):
    assert main(["explain", "final_b16", f"--model.arch={arch}", f"--model.weights={weights}", "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert explained["cost"]["gpu_hours"]["V100"] > 1
    assert explained["recipe"]["augment"]["mean"][0] == (0.5 if "laion2b" in weights else 0.48145466)


def converted(source: dict[str, torch.Tensor], form: str) -> dict:
    """A state dict as others publish it."""
    if form == "open_clip":
        return {f"visual.trunk.{k}": v for k, v in source.items()} | {
            "logit_scale": torch.ones(1),
            "text.x": torch.ones(2),
        }
    if form == "MAE":
        return {"model": source | {"mask_token": torch.ones(1, 1, 64), "decoder_blocks.0.weight": torch.ones(3)}}
    if form == "DDP":
        return {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in source.items()}}
    return source


@pytest.mark.parametrize("form", ["timm", "open_clip", "MAE", "DDP"])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_files_in_every_form_fill_the_trunk(tmp_path, name, form):
    size = {} if name == "test_convnext" else {"img_size": SIZE}
    theirs = timm.create_model(name, num_classes=11, **size)
    path = tmp_path / "weights.pt"
    torch.save(converted(theirs.state_dict(), form), path)
    model = build_model(timm_recipe(name, path)).eval()
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.pooled(IMAGES), theirs.forward_head(theirs.forward_features(IMAGES), pre_logits=True)
        )


def refusals(folders: Path) -> dict[str, tuple[str, str, str]]:
    """Case -> (model.arch, model.weights, message)."""
    own = str(folders / "open_clip-config.json")
    return {
        "timm folder, own tower": (own, f"{folders}/timm", "test_vit is not a plain CLIP ViT. Set --model.arch=timm/test_vit"),
        "siglip, own tower": (own, f"{folders}/siglip", "holds timm's test_vit3. Set --model.arch=timm/test_vit3"),
        "siglip arch": (f"{folders}/siglip-config.json", "random", "has timm's image tower. Set --model.arch=timm/test_vit3"),
        "another timm model": ("timm/test_vit", f"{folders}/siglip", "holds timm's test_vit3. Set --model.arch=timm/test_vit3"),
        "transformers, timm": ("timm/test_vit", f"{folders}/clip", "is a CLIP model from transformers. Set "
            "model.arch to open_clip's"),
        "not quick_gelu": (f"{folders}/gelu.json", f"{folders}/clip", "trained with QuickGELU"),
        "quick_gelu": (own, f"{folders}/trained-with-gelu", "trained with GELU. .* the name without -quickgelu"),
        "other heads": (f"{folders}/heads.json", f"{folders}/clip", "2 attention heads, .* has 4"),
        "no folder of weights": ("timm/test_vit", f"{folders}/empty", "is not a folder with open_clip_config.json"),
        "no weights in it": ("timm/test_vit", f"{folders}/bare", "holds no weights. Expected model.safetensors"),
        "a near tag": ("timm/test_vit", "r160_in1", "Did you mean 'r160_in1k'"),
        "a near open_clip tag": ("ViT-B-32-quickgelu", "opnai", "Did you mean 'openai'"),
        "no file": ("timm/test_vit", f"{folders}/none.pt", "none.pt"),
        "another width": ("timm/test_vit", f"{folders}/convnext.safetensors", "do not fit timm/test_vit"),
    }  # fmt: skip


CASES = list(refusals(Path()))


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_one_line_that_says_what_does(folders, case):
    gelu = CLIP | {"quick_gelu": False}
    heads = CLIP | {"vision_cfg": CLIP["vision_cfg"] | {"head_width": 16}}
    (folders / "gelu.json").write_text(json.dumps(gelu))
    (folders / "heads.json").write_text(json.dumps(heads))
    shutil.copytree(folders / "open_clip", folders / "trained-with-gelu", dirs_exist_ok=True)
    (folders / "trained-with-gelu" / "open_clip_config.json").write_text(json.dumps({"model_cfg": gelu}))
    (folders / "empty").mkdir(exist_ok=True)
    (folders / "bare").mkdir(exist_ok=True)
    shutil.copy(folders / "timm" / "config.json", folders / "bare")
    save_file(timm.create_model("test_convnext").state_dict(), folders / "convnext.safetensors")
    arch, weights, message = refusals(folders)[case]
    flags = [f"--model.arch={arch}", f"--model.weights={weights}", f"--model.image_size={SIZE}"]
    with pytest.raises(UserError, match=message) as refused:
        build_model(load_recipe("final_b16", flags))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [("[]", "must be a JSON object"), ("{", "not readable JSON"), ('{"model_type": "bert"}', "is not a folder with")],
)
def test_a_damaged_configuration_is_one_line(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        open_weight_folder(tmp_path)


def test_an_index_names_only_files_beside_it(folders, tmp_path):
    shutil.copytree(folders / "sharded", tmp_path / "hostile")
    (tmp_path / "hostile" / INDEX).write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="names no files beside it"):
        open_weight_folder(tmp_path / "hostile").read()


@pytest.mark.slow
def test_openai_weights_fill_timms_clip(tmp_path):
    """OpenAI's names, which timm converts."""
    clip = open_clip.create_model("ViT-B-32-quickgelu").eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    model = build_model(timm_recipe("vit_base_patch32_clip_quickgelu_224", tmp_path / "clip.pt", size=224)).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        want = clip.encode_image(images)
        torch.testing.assert_close(model.pooled(images) @ clip.visual.proj, want, rtol=1e-3, atol=1e-4)
