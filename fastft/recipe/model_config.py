"""The normalisation that a model states for itself."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from fastft.recipe.constants import TIMM

NORMALISATION = ("augment.mean", "augment.std")
MAX_CONFIG_BYTES = 1 << 20


def model_normalisation(arch: str, weights: str) -> tuple[Mapping[str, object], str]:
    """Return (values that a model states, mean and std among them; where they are stated).

    They come from the configuration of a timm model or timm weights, or from the `preprocess_cfg` of a .json file. They
    are empty for others, and for a file that cannot be read, which is refused where the model is built.
    """
    for name in (weights, arch):
        if name.startswith(TIMM):
            return _of_timm(name)
    return _of_file(arch) if arch.endswith(".json") else {}, f"preprocess_cfg of {arch}"


def _of_timm(arch: str) -> tuple[Mapping[str, object], str]:
    import timm  # takes seconds

    name = arch.removeprefix(TIMM)
    with suppress(RuntimeError):  # no such tag
        if (config := timm.get_pretrained_cfg(name)) is not None:
            return vars(config), f"timm's configuration of {name}"
    return {}, ""


def _of_file(arch: str) -> Mapping[str, object]:
    with suppress(UserError, ValueError, RecursionError, KeyError, TypeError):
        return dict(json.loads(read_user_text(Path(arch), MAX_CONFIG_BYTES, "a model configuration"))["preprocess_cfg"])
    return {}
