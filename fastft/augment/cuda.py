"""The CUDA back end: two launches per batch, from packed bytes on the device to normalised channels-last images.

    augment = CudaAugment(policy, size, torch.float16, device)
    images = augment(packed, offsets, plan)  # all are CUDA tensors. images: (B, 3, size, size), channels last

It runs on torch's current stream, reads and writes torch tensors without copies, and waits for nothing. It uses
torch's memory: after the first batches, torch's cache serves every request. The bytes equal those from the CPU back
end, except where the device's sine and cosine give a rotation matrix another last digit.

You need numba-cuda (the extra cuda12 or cuda13) and an NVIDIA GPU with compute capability 7.0 or more. No image
side may be above MOST_SHRINK times `size`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import cuda, float32, int64, uint8, uint16
from torch import Tensor

from beton_tools.base.errors import UserError
from beton_tools.base.pixels import CHANNELS
from fastft.augment.cpu import normalise_table
from fastft.augment.cuda_compile import PLAN_ARRAY, no_fma
from fastft.augment.cuda_ops import AUGMIX_BUFFERS, OPS_THREADS, PLAIN_BUFFERS, ops_kernel
from fastft.augment.cuda_resize import INNER, OUTER, RESIZE_THREADS, resize_kernel
from fastft.augment.erase import DTYPES, FLOAT32
from fastft.augment.plan import PLAN_DTYPE
from fastft.augment.policies import AugmentPolicy, AugMix
from fastft.augment.rng import HALF_NORMAL

RESIZE_SIGNATURE = (uint8[::1], int64[::1], PLAN_ARRAY, int64, uint8[:, ::1])
RESIZE_BOUNDS = (RESIZE_THREADS[0] * RESIZE_THREADS[1], 2)  # threads per block, blocks that an SM should hold
OPS_BOUNDS = (OPS_THREADS[0] * OPS_THREADS[1], 1)


def ops_signature(dtype: int) -> tuple[Any, ...]:
    """Return the argument types for `ops_kernel` when it writes `erase.DTYPES[dtype]`."""
    storage = float32 if dtype == FLOAT32 else uint16
    shared = (PLAN_ARRAY, int64, uint8[:, :, ::1], float32[:, ::1], uint8[::1])
    return (*shared, storage[::1], float32[::1], int64, storage[:, ::1])


class CudaAugment:
    """Carries out one policy's plans on one device.

    Raises:
        UserError: the dtype is not supported.
    """

    def __init__(self, policy: AugmentPolicy, size: int, dtype: torch.dtype, device: torch.device) -> None:
        name = str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise UserError(f"augmentation writes {', '.join(DTYPES)}, not {name}")
        self.size, self.dtype, self.code = size, dtype, DTYPES.index(name)
        self.device = torch.device(device.type, torch.cuda.current_device() if device.index is None else device.index)
        self.buffers = AUGMIX_BUFFERS if isinstance(policy.auto_augment, AugMix) else PLAIN_BUFFERS
        table = normalise_table(policy.mean, policy.std, self.code)
        self.storage = table.dtype
        constants = np.array(policy.fill, np.uint8), table, HALF_NORMAL
        with cuda.gpus[self.device.index]:
            self._resize = compiled(resize_kernel, RESIZE_SIGNATURE, RESIZE_BOUNDS, self.device.index)
            self._ops = compiled(ops_kernel, ops_signature(self.code), OPS_BOUNDS, self.device.index)
            self.constants = [
                device_array(torch.from_numpy(array.view(np.uint8)).to(self.device), array.dtype, array.shape)
                for array in constants
            ]

    def at(self, size: int) -> CudaAugment:
        """Return the same augmentation for another image size, with the same compiled kernels."""
        other = copy(self)
        other.size = size
        return other

    def __call__(self, packed: Tensor, offsets: Tensor, plan: Tensor) -> Tensor:
        """Return images (B, 3, size, size) in the dtype, channels last.

        Args:
            packed: uint8.
            offsets: int64. Region b (resize.source_region) begins at offsets[b].
            plan: the plan's rows as uint8.
        """
        batch = len(plan) // PLAN_DTYPE.itemsize
        length = CHANNELS * self.size * self.size
        shape = (batch, length) if self.buffers == AUGMIX_BUFFERS else (1, 1)
        buffers = torch.empty((self.buffers, batch, length), dtype=torch.uint8, device=self.device)
        mixed = torch.empty(shape, dtype=torch.float32, device=self.device)
        out = torch.empty((batch, self.size, self.size, CHANNELS), dtype=self.dtype, device=self.device)
        if batch == 0:  # launching no blocks is an error
            return out.permute(0, 3, 1, 2)
        with cuda.gpus[self.device.index]:
            stream = cuda.external_stream(torch.cuda.current_stream(self.device).cuda_stream)
            rows = device_array(plan, PLAN_DTYPE, (batch,))
            images = device_array(buffers, np.uint8, buffers.shape)
            tiles = -(-self.size // INNER) * -(-self.size // OUTER)
            self._resize[(tiles, batch), RESIZE_THREADS, stream](
                device_array(packed, np.uint8, packed.shape),
                device_array(offsets, np.int64, offsets.shape),
                rows,
                self.size,
                device_array(buffers, np.uint8, (batch, length)),
            )
            self._ops[batch, OPS_THREADS, stream](
                rows,
                self.size,
                images,
                device_array(mixed, np.float32, shape),
                *self.constants,
                self.code,
                device_array(out, self.storage, (batch, length)),
            )
        return out.permute(0, 3, 1, 2)


@cache
def compiled(kernel: Callable[..., None], signature: tuple[Any, ...], bounds: tuple[int, int], device: int) -> Any:
    """Compile the kernel for the current device, which has number `device`.

    Calling the result with other argument types is then an error, and does not compile again. Link-time optimisation
    is off, because it would fuse the operations that `no_fma` keeps apart.
    """
    dispatcher: Any = cuda.jit(kernel, lto=False, launch_bounds=bounds)
    with no_fma():
        dispatcher.compile(signature)
    dispatcher.disable_compile()
    return dispatcher


def device_array(tensor: Tensor, dtype: Any, shape: tuple[int, ...]) -> Any:
    """View the beginning of a contiguous CUDA tensor's memory as a Numba array. Nothing is copied or waited for."""
    dtype = np.dtype(dtype)
    nbytes = dtype.itemsize * int(np.prod(shape))
    return from_address(tensor.data_ptr(), nbytes, tensor).view(dtype).reshape(shape)


def from_address(address: int, nbytes: int, owner: Any) -> Any:
    """View bytes in device memory as a Numba array. `owner` keeps them alive."""
    description = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}
    return cuda.from_cuda_array_interface(description, owner=owner)
