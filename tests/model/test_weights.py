"""Weights load from every published format, and anything else is refused."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from beton_tools.base.errors import UserError
from fastft.model import Tower, load_arch, load_tower_weights

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    """The configuration of a tiny CLIP, which open_clip knows as `tiny-clip`."""
    path = tmp_path_factory.mktemp("arch") / "tiny-clip.json"
    path.write_text(json.dumps({"embed_dim": 32, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(path)
    return str(path)


@pytest.fixture(scope="module")
def clip(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return open_clip.create_model("tiny-clip")


def other_arch(folder, quick_gelu: bool = True, **vision: object) -> str:
    """A configuration with other values in its vision_cfg."""
    path = folder / "other.json"
    path.write_text(json.dumps({"embed_dim": 32, "quick_gelu": quick_gelu, "vision_cfg": VISION | vision}))
    return str(path)


def write(clip: torch.nn.Module, form: str, folder) -> str:
    """The same CLIP as a file of the given form."""
    path = folder / {
        "openai": "ViT-B-32.pt",
        "openai traced": "ViT-B-32.pt",
        "bin": "open_clip_pytorch_model.bin",
        "legacy": "before_zip.pt",
        "training": "epoch_32.pt",
    }.get(form, "open_clip_model.safetensors")
    state = clip.state_dict()
    # a TorchScript archive with half-precision weights, as OpenAI publishes them
    if form.startswith("openai"):
        shell = Shell({f"visual.{name}": value.half() for name, value in clip.visual.state_dict().items()})
        traced = form == "openai traced"
        torch.jit.save(torch.jit.trace(shell, torch.ones(1)) if traced else torch.jit.script(shell), str(path))
    elif form == "bin":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "training":
        torch.save({"epoch": 32, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        half = form == "safetensors fp16"
        save_file({k: v.half() if half else v.contiguous() for k, v in state.items()}, str(path))
    return str(path)


class Shell(torch.nn.Module):
    """Scriptable holder of parameters under CLIP's names."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        for name, value in state.items():
            *path, leaf = name.split(".")
            owner: torch.nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, torch.nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, torch.nn.Parameter(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    "form", ["openai", "openai traced", "bin", "legacy", "training", "safetensors", "safetensors fp16"]
)
def test_every_published_format_loads(clip, name, form, tmp_path):
    tower = Tower(load_arch(name))
    load_tower_weights(tower, write(clip, form, tmp_path), name)
    half = form.startswith("openai") or form.endswith("fp16")
    for key, value in tower.state_dict().items():
        want = clip.visual.state_dict()[key]
        assert torch.equal(value, want.half().float() if half else want), key


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("missing.pt", r"missing\.pt: cannot be read \(No such file or directory\)"),
        ("~nobody-here/w.pt", "cannot be read"),
        ("laion999", "neither a file nor a pretrained tag"),
    ],
)
def test_unknown_weights_are_named(weights, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        load_tower_weights(Tower(load_arch("ViT-B-32")), weights, "ViT-B-32")


def test_weights_of_another_architecture_are_refused(clip, tmp_path):
    path = write(clip, "bin", tmp_path)
    arch = other_arch(tmp_path, layers=3)
    with pytest.raises(UserError, match="width 64, patch 8 and 2 blocks"):
        load_tower_weights(Tower(load_arch(arch)), path, arch)


def test_openais_files_require_quick_gelu(clip, tmp_path):
    arch = other_arch(tmp_path, quick_gelu=False)
    with pytest.raises(UserError, match="quickgelu"):
        load_tower_weights(Tower(load_arch(arch)), write(clip, "openai", tmp_path), arch)


def test_another_mlp_width_is_one_line(clip, tmp_path):
    arch = other_arch(tmp_path, mlp_ratio=2.0)
    with pytest.raises(UserError, match=r"mlp\.c_fc\.bias is \(256,\) in the file, \(128,\) in the model"):
        load_tower_weights(Tower(load_arch(arch)), write(clip, "safetensors", tmp_path), arch)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("ViT-B-16-quikgelu", 224, "Did you mean 'ViT-B-16-quickgelu'"),
        ("RN50", 224, "not a plain CLIP ViT"),
        ("ViT-B-16-quickgelu", 230, "Use 224 or 240$"),
        ("ViT-B-16-quickgelu", 8, "Use 16$"),
    ],
)
def test_what_is_no_tower_is_refused_with_the_nearest(arch, size, message):
    with pytest.raises(UserError, match=message):
        load_arch(arch).at(size)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_with_nan_or_inf_are_refused_before_the_training_fails(name, clip, tmp_path, value):
    state = {key: tensor.clone() for key, tensor in clip.state_dict().items()}
    state["visual.conv1.weight"][3, 0, 0, 0] = value
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        UserError, match=r"broken\.safetensors .*conv1\.weight contains NaN or Inf. Check model\.weights"
    ):
        load_tower_weights(Tower(load_arch(name)), str(tmp_path / "broken.safetensors"), name)
