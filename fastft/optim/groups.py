"""Parameter groups: layer-wise lr decay and which parameters take weight decay (paper section 2.1, reference facts 2)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Layered(Protocol):
    """A model that knows the layers of its parameters, such as `fastft.model.interface.ImageClassifier`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def layer_id(self, name: str) -> int: ...

    def takes_weight_decay(self, name: str, parameter: nn.Parameter) -> bool: ...


@dataclass(frozen=True)
class Group:
    """Trainable parameters that share a layer and a weight decay.

    layer_id: 0 embeddings, 1 to layers blocks, layers + 1 head; lr_scale: layer_decay ** (layers + 1 - layer_id).
    """

    layer_id: int
    lr_scale: float
    weight_decay: float
    names: tuple[str, ...]
    parameters: int  # trainable scalars


def layer_groups(model: Layered, layers: int, layer_decay: float, weight_decay: float) -> list[Group]:
    """Groups of the trainable parameters by layer, from the embeddings up; with weight decay before without."""
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


def optimizer_groups(model: nn.Module, groups: Iterable[Group]) -> list[dict[str, Any]]:
    """The groups in the form of `torch.optim`, with `lr_scale` for the schedule and `names` for checkpoints."""
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
