"""The tensors of a training step as a checkpoint stores them: weights, EMA, and the optimiser's state by parameter name."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastft.run.checkpoint import Checkpoint, Forms, check_tensors, forms
from fastft.train.step import Step

ADAMW_STATE = ("exp_avg", "exp_avg_sq")  # shaped as the parameter; `step` is a scalar


def step_tensors(step: Step) -> dict[str, dict[str, Tensor]]:
    """Every tensor that a run continues from, by file stem and name; not copied."""
    tensors = {"model": step.model.state_dict(), "optimizer": optimizer_tensors(step.optimizer)}
    if step.ema is not None:
        tensors["ema"] = step.ema.module.state_dict()
    return tensors


def stems(step: Step) -> tuple[str, ...]:
    """The file stems of `step_tensors`."""
    return ("model", "optimizer") if step.ema is None else ("model", "optimizer", "ema")


def load_step_tensors(step: Step, checkpoint: Checkpoint) -> None:
    """Inverse of `step_tensors`; loads either everything or nothing.

    Raises:
        Damaged: an entry is missing, superfluous, or has another shape or dtype.
    """
    modules = {"model": step.model} | ({} if step.ema is None else {"ema": step.ema.module})
    expected = {stem: forms(module.state_dict()) for stem, module in modules.items()}
    expected["optimizer"] = _optimizer_forms(step.optimizer)
    for stem, form in expected.items():
        check_tensors(checkpoint.tensors[stem], form, checkpoint.path, f"{stem}.safetensors")
    for stem, module in modules.items():
        module.load_state_dict(checkpoint.tensors[stem])
    load_optimizer_tensors(step.optimizer, checkpoint.tensors["optimizer"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every state tensor of the optimiser as `<parameter name>/<state name>`; groups carry their `names`."""
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def init_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW the state that it makes in its first step, so that a checkpoint of step 0 has what all others have."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in ADAMW_STATE}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, state_name = key.rpartition("/")
        by_name.setdefault(name, {})[state_name] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            optimizer.state[parameter] = {k: _placed(v, parameter) for k, v in by_name[name].items()}


def _optimizer_forms(optimizer: torch.optim.Optimizer) -> Forms:
    """Shapes and dtypes of `optimizer_tensors` after any step: every step updates every parameter of the optimiser."""
    found: Forms = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found |= {f"{name}/{key}": (parameter.shape, parameter.dtype) for key in ADAMW_STATE}
            found[f"{name}/step"] = (torch.Size(), torch.float32)
    return found


def _placed(value: Tensor, parameter: Tensor) -> Tensor:
    """A state tensor on the parameter's device and, if it has its shape, in its memory format, which fused AdamW needs."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
