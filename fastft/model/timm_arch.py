"""timm models as towers: their numbers, from timm's registry and from the model on the meta device."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from beton_tools.base.errors import UserError
from fastft.model.arch import check_image_size
from fastft.model.timm_create import create_timm, layer_ids, pretrained_cfg
from fastft.recipe.constants import TIMM

MAX_IMAGE_SIZE = 8192  # as model.image_size: a mistake must not fill the memory


@dataclass(frozen=True)
class TimmArch:
    """A timm model at an image size. `timm` and `image_size` determine the other values."""

    timm: str  # timm's name, with or without a pretrained tag
    image_size: int
    patch_size: int  # pixels per token of the last stage; image sizes are multiples of it
    layers: int  # between stem and head, as timm's group_matcher numbers them
    width: int  # of the head's input
    parameters: int  # without the head

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    def at(self, image_size: int) -> "TimmArch":
        """The same model for another image size; timm interpolates or rebuilds what depends on it.

        Raises:
            UserError: not a multiple of the patch size, or a size that the model does not take.
        """
        check_image_size(image_size, self.patch_size)
        return self if image_size == self.image_size else measure(self.timm, image_size)


def load_timm_arch(name: str) -> TimmArch:
    """The architecture of 'timm/NAME' at the size of its pretrained weights. Raises UserError as `create_timm`."""
    model = name.removeprefix(TIMM)
    return measure(model, pretrained_cfg(model).input_size[-1])


@lru_cache(maxsize=64)
def measure(name: str, image_size: int) -> TimmArch:
    """The numbers of a model, counted on the meta device."""
    if image_size > MAX_IMAGE_SIZE:
        raise UserError(f"image size {image_size} is larger than {MAX_IMAGE_SIZE}; use a smaller one")
    with torch.device("meta"):
        trunk = create_timm(name, image_size, num_classes=2)
    head = trunk.get_classifier()
    counts = (sum(p.numel() for p in module.parameters()) for module in (trunk, head))
    return TimmArch(
        timm=name,
        image_size=image_size,
        patch_size=trunk.feature_info[-1]["reduction"],
        layers=max(layer_ids(trunk).values()) - 1,
        width=head.in_features,
        parameters=next(counts) - next(counts),
    )
