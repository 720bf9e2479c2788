"""Parameter groups: layer-wise learning-rate decay, and which parameters take weight decay (paper section 2.1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Group:
    """Trainable parameters that share a layer and a weight decay.

    layer_id: 0 for embeddings, 1 to `layers` for blocks, layers + 1 for the head.
    lr_scale: layer_decay ** (layers + 1 - layer_id).
    """

    layer_id: int
    lr_scale: float
    weight_decay: float
    names: tuple[str, ...]
    parameters: int  # trainable scalars


def layer_groups(model: Any, layers: int, layer_decay: float, weight_decay: float) -> list[Group]:
    """Group the trainable parameters by layer, from the embeddings up.

    In each layer, the group with weight decay comes first.

    Args:
        model: a model with `layer_id` and `takes_weight_decay`, such as `fastft.model.ImageClassifier`.
    """
    members: dict[tuple[int, bool], list[str]] = {}
    sizes: dict[tuple[int, bool], int] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = (model.layer_id(name), not model.takes_weight_decay(name, parameter))
        members.setdefault(key, []).append(name)
        sizes[key] = sizes.get(key, 0) + parameter.numel()
    return [
        Group(
            layer_id=layer,
            lr_scale=layer_decay ** (layers + 1 - layer),
            weight_decay=0.0 if exempt else weight_decay,
            names=tuple(members[layer, exempt]),
            parameters=sizes[layer, exempt],
        )
        for layer, exempt in sorted(members)
    ]


def optimizer_groups(model: nn.Module, groups: Iterable[Group]) -> list[dict[str, object]]:
    """Return the groups as `torch.optim` expects them, with `lr_scale` for the schedule and `names` for checkpoints."""
    parameters = dict(model.named_parameters())
    return [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "lr_scale": group.lr_scale,
            "names": list(group.names),
        }
        for group in groups
    ]
