"""The normalisation, resizing and cropping that are published with weights."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import expand_home, read_regular
from fastft.recipe.constants import BICUBIC, BILINEAR, CLIP_MEAN, CLIP_STD, SHORTEST, SQUASH, TIMM
from fastft.recipe.hub import CONFIG, HUB, OPEN_CLIP_CONFIG, download
from fastft.recipe.open_clip_files import open_clip_tags

MAX_BYTES = 256 << 20  # a checkpoint's state holds class names
STATE = "state.json"  # beside a checkpoint's weights, with their run's recipe
PREPROCESSOR = "preprocessor_config.json"  # the name that transformers uses
OPENAI = "openai"
RESIZE_MODES = {"shortest": SHORTEST, "center": SHORTEST, "squash": SQUASH}  # open_clip's and timm's words
RESAMPLE = {2: BILINEAR, 3: BICUBIC}  # Pillow's numbers, in transformers' files

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the model's input, as published with weights. The options that adopt the values check them.

    Attributes:
        mean, std: per channel, for pixels in 0..1.
        interpolation: "bicubic" or "bilinear", both antialiased.
        crop_pct: for evaluation, the centre crop as a fraction of the resized side or sides.
        resize: for evaluation, "shortest" resizes the short side, "squash" resizes the image to a square.
        source: where the values are stated, in words. Values that are not stated there are CLIP's.
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = BICUBIC
    crop_pct: float = 1.0
    resize: str = SHORTEST
    source: str = "OpenAI's CLIP"

    def in_words(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        square = "the whole image squashed to a square" if self.resize == SQUASH else "the central square"
        part = "" if self.crop_pct == 1 else f", cropped to {self.crop_pct:g} along each side"
        return f"mean {mean}, standard deviation {std}, {self.interpolation}, evaluated on {square}{part}"


def published_preprocessing(arch: str, weights: str) -> Preprocessing:
    """Return what is published for `model.weights`, or else for `model.arch`, or else CLIP's values.

    The values are stated by open_clip for its tags, by timm for its models, by the configuration in a folder, beside a file
    or in a hub repository, by an export's header, and by the recipe in a checkpoint. The weights are not read, and nothing
    is downloaded except a hub repository's configuration that the hub's cache does not have. A run directory states nothing:
    `with_run_weights` names the checkpoint that it stands for.
    """
    for stated, source in _statements(arch, weights):
        if stated:
            return _preprocessing(stated, source)
    nothing = "" if weights == OPENAI else f", because nothing is stated for {weights}"
    return Preprocessing(source=Preprocessing.source + nothing)


def _statements(arch: str, weights: str) -> Iterator[tuple[Values, str]]:
    """Yield what is stated, from the weights to the architecture. Values are empty where nothing is stated."""
    path = expand_home(weights)
    if weights.startswith(TIMM):
        yield _of_timm(weights.removeprefix(TIMM))
    elif weights.startswith(HUB):
        yield _of_hub(weights)
    elif path.is_dir():
        yield _of_folder(path)
    elif path.is_file():
        yield _of_checkpoint(path)
        yield _of_header(path)
        yield _of_folder(path.parent)
    if arch.startswith(TIMM):
        name = arch.removeprefix(TIMM)
        yield _of_timm(f"{name.partition('.')[0]}.{weights}")
        yield _of_timm(name)
    elif arch.endswith(".json"):
        yield _part(_read(Path(arch)), "preprocess_cfg"), f"preprocess_cfg of {arch}"
    elif weights not in ("random", OPENAI):  # importing the tags takes a second
        yield open_clip_tags().get_pretrained_cfg(arch, weights), f"open_clip's configuration of {arch}, {weights}"


def _of_timm(name: str) -> tuple[Values, str]:
    import timm  # takes seconds

    with suppress(RuntimeError):  # no such tag
        if (config := timm.get_pretrained_cfg(name)) is not None:
            return vars(config), f"timm's configuration of {name}"
    return {}, ""


def _of_hub(weights: str) -> tuple[Values, str]:
    name, _, revision = weights.removeprefix(HUB).partition("@")
    with suppress(UserError):  # refused where the weights are fetched
        for file in (OPEN_CLIP_CONFIG, CONFIG):
            if (path := download(name, revision, file)) is not None:
                if file == CONFIG and "model_type" in _read(path):
                    download(name, revision, PREPROCESSOR)
                stated, source = _of_folder(path.parent)
                return stated, source.replace(str(path.parent), weights)
    return {}, ""


def _of_folder(folder: Path) -> tuple[Values, str]:
    """Return what configurations in a folder state, as open_clip, timm or transformers write them."""
    if stated := _part(_read(folder / OPEN_CLIP_CONFIG), "preprocess_cfg"):
        return stated, f"preprocess_cfg of {folder}/{OPEN_CLIP_CONFIG}"
    config = _read(folder / CONFIG)
    if "architecture" in config:
        return _part(config, "pretrained_cfg") or config, f"pretrained_cfg of {folder}/{CONFIG}"
    return _of_transformers(_read(folder / PREPROCESSOR)), f"{folder}/{PREPROCESSOR}"


def _of_transformers(config: Values) -> Values:
    """Return a CLIPImageProcessor's values under timm's names."""
    if "image_mean" not in config:
        return {}
    size, crop = config.get("size"), config.get("crop_size")
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    crop = crop.get("height") if isinstance(crop, dict) else crop
    short_side = size.get("shortest_edge")
    stated = {
        "mean": config["image_mean"],
        "std": config.get("image_std"),
        "crop_mode": "center" if short_side else "squash",
    }
    if "resample" in config:
        stated["interpolation"] = RESAMPLE.get(config["resample"], config["resample"])
    if isinstance(short_side, int) and isinstance(crop, int) and config.get("do_center_crop", True):
        stated["crop_pct"] = crop / max(1, short_side)
    return stated


def _of_checkpoint(weights: Path) -> tuple[Values, str]:
    """Return what the recipe beside a checkpoint's weights says."""
    recipe = _part(_read(weights.with_name(STATE)), "recipe")
    augment, train = _part(recipe, "augment"), _part(recipe, "train")
    if not augment:
        return {}, ""
    stated = {
        "mean": augment.get("mean"), "std": augment.get("std"), "interpolation": train.get("eval_interpolation"),
        "crop_pct": train.get("eval_crop_pct"), "resize_mode": train.get("eval_resize"),
    }  # fmt: skip
    return stated, f"the recipe of {weights.parent}"


def _of_header(weights: Path) -> tuple[Values, str]:
    """Return what the header in fastft's export to safetensors states."""
    if weights.suffix != ".safetensors":
        return {}, ""
    with suppress(OSError, SafetensorError, ValueError, RecursionError):
        with safe_open(weights, framework="np") as file:
            stated = json.loads((file.metadata() or {}).get("images", "{}"))
        return stated if isinstance(stated, dict) else {}, f"the header of {weights}"
    return {}, ""


def _preprocessing(stated: Values, source: str) -> Preprocessing:
    known = {key: value for key, value in stated.items() if value is not None}
    values: dict[str, Any] = {key: _per_channel(known[key]) for key in ("mean", "std") if key in known}
    if "interpolation" in known:
        # where training draws the interpolation at random, timm and open_clip evaluate with bicubic
        values["interpolation"] = BICUBIC if known["interpolation"] == "random" else known["interpolation"]
    if "crop_pct" in known:
        values["crop_pct"] = known["crop_pct"]
    mode = known.get("resize_mode", known.get("crop_mode"))
    if mode is not None:
        values["resize"] = RESIZE_MODES.get(mode, mode) if isinstance(mode, str) else mode
    return Preprocessing(**values, source=source)


def _per_channel(value: Any) -> Any:
    """Return three numbers for a single one, as open_clip does. The option that adopts the value refuses anything else."""
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,) * 3 if isinstance(value, int | float) else value


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object. A missing or damaged file states nothing. It is refused later, when the model is built."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_regular(path, MAX_BYTES).decode("utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _part(config: Values, key: str) -> dict[str, Any]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}
