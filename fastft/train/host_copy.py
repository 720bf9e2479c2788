"""Copies of tensors in host memory, so that training can go on while they are written to disk."""

from collections.abc import Mapping

import torch
from torch import Tensor

TensorGroups = Mapping[str, Mapping[str, Tensor]]


class HostCopy:
    """Host buffers for named tensors, allocated by the first copy and reused; page-locked for tensors of a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def take(self, groups: TensorGroups) -> dict[str, dict[str, Tensor]]:
        """Contiguous copies, valid until the next call; waits for the device."""
        copies = {
            group: {name: self._copy((group, name), tensor.detach()) for name, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
        devices = {
            tensor.device for tensors in groups.values() for tensor in tensors.values() if tensor.is_cuda
        }
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copies

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(tensor, non_blocking=True)
