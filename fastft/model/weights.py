"""Pretrained weights into the tower: open_clip tags, OpenAI .pt, open_clip .bin / .pt, safetensors.

Local files are never unpickled beyond tensors (`weights_only=True`); OpenAI's TorchScript archives are read by torch.jit.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from beton_tools.errors import UserError
from fastft.model.arch import Arch
from fastft.model.tower import Tower

UNUSED = ("ln_post.", "proj")  # tower weights that fine-tuning drops
PREFIXES = ("module.", "model.", "_orig_mod.")  # wrappers that training scripts leave in names


def load_tower_weights(tower: Tower, weights: str, arch_name: str) -> None:
    """Fill `tower` from an open_clip pretrained tag or a local file; positions are interpolated to the tower's grid.

    Raises:
        UserError: unknown tag or file, download impossible, or weights of another architecture.
    """
    state = read_visual_state(weights, arch_name)
    state = {name: value.float() for name, value in state.items() if not name.startswith(UNUSED)}
    _check_same_tower(tower, state, weights, arch_name)
    state["positional_embedding"] = interpolate_positions(state["positional_embedding"], tower.arch)
    own = tower.state_dict()
    odd = [name for name, value in state.items() if name in own and value.shape != own[name].shape]
    if odd:
        raise UserError(
            f"weights {weights} do not fit {arch_name}: {odd[0]} is {tuple(state[odd[0]].shape)} there, "
            f"{tuple(own[odd[0]].shape)} here; check model.arch"
        )
    missing, unexpected = tower.load_state_dict(state, strict=False)
    added = [
        n for n in missing if ".rel_pos_bias." not in n and ".ls_" not in n
    ]  # additions of the recipe start fresh
    if added or unexpected:
        raise UserError(
            f"weights {weights} do not fit {arch_name}: missing {added[:3]}, unexpected {unexpected[:3]}; check model.arch"
        )


def read_visual_state(weights: str, arch_name: str) -> dict[str, Tensor]:
    """The image tower's tensors under open_clip's names, without the `visual.` prefix."""
    path = _as_file(weights)
    state = _read_tag(weights, arch_name) if path is None else _read_file(path)
    for prefix in PREFIXES:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    visual = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
    visual = visual or state
    if "positional_embedding" not in visual or "conv1.weight" not in visual:
        raise UserError(
            f"{weights} holds no CLIP image tower (no visual.conv1.weight); use OpenAI or open_clip weights"
        )
    return visual


def interpolate_positions(positions_ND: Tensor, arch: Arch) -> Tensor:
    """Positions on the tower's grid; bicubic, align_corners=False, class position unchanged (as the reference)."""
    if positions_ND.shape[0] == arch.tokens:
        return positions_ND
    old = int((positions_ND.shape[0] - 1) ** 0.5)
    if old * old != positions_ND.shape[0] - 1:
        raise UserError(
            f"weights hold {positions_ND.shape[0]} positions, which is not a square grid and a class token"
        )
    grid = positions_ND[1:].float().T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(arch.grid, arch.grid), mode="bicubic", align_corners=False)
    return torch.cat([positions_ND[:1].float(), grid.flatten(2)[0].T])


def _as_file(weights: str) -> Path | None:
    """The file that is meant, also one that is missing; None for a tag."""
    path = Path(weights).expanduser()
    return path if path.suffix or path.exists() else None


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own; all mean: not a readable weights file
        raise UserError(f"weights file {path} cannot be read: {str(error).splitlines()[0]}") from None
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"weights file {path} holds no state dict")
    return loaded


def _is_torchscript(path: Path) -> bool:
    """OpenAI's .pt files are TorchScript archives: zip files with a constants.pkl of their own."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _wants_quick_gelu(weights: str, arch_name: str) -> bool:
    """By what open_clip says of a tag; of files, OpenAI's own are known by their form."""
    if (path := _as_file(weights)) is not None:
        return path.is_file() and _is_torchscript(path)
    import open_clip

    return bool(open_clip.get_pretrained_cfg(arch_name, weights).get("quick_gelu"))


def _read_tag(tag: str, arch_name: str) -> dict[str, Tensor]:
    import open_clip  # takes seconds: only where its hub is asked

    known = open_clip.list_pretrained_tags_by_model(arch_name)
    if tag not in known:
        raise UserError(
            f"model.weights '{tag}' is neither a file nor a pretrained tag of {arch_name}; tags: {', '.join(known) or 'none'}"
        )
    try:
        path = open_clip.download_pretrained(open_clip.get_pretrained_cfg(arch_name, tag))
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"weights '{tag}' of {arch_name} could not be downloaded ({first_line}); "
            "download them elsewhere and set model.weights to the file"
        ) from None
    return _read_file(Path(path))


def _check_same_tower(tower: Tower, state: dict[str, Tensor], weights: str, arch_name: str) -> None:
    arch = tower.arch
    if _wants_quick_gelu(weights, arch_name) and not arch.quick_gelu:
        raise UserError(
            f"weights {weights} were trained with QuickGELU; set model.arch to the name that ends in -quickgelu"
        )
    width, _, patch, _ = state["conv1.weight"].shape
    layers = len({name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")})
    found, wanted = (width, patch, layers), (arch.width, arch.patch_size, arch.layers)
    if found != wanted:
        raise UserError(
            f"weights {weights} are of width {width}, patch {patch}, {layers} blocks; model.arch has {wanted[0]}, "
            f"{wanted[1]}, {wanted[2]}: use the arch that they belong to"
        )
