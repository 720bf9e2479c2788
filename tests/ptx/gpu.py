"""Stands in for the GPU under ``fastft.augment.cuda.CudaAugment``, which makes its launches as on a real one.

    gpu = SimulatedGpu()
    images = gpu.augment(policy, size, torch.float16, packed, offsets, plan)
    assert not gpu.findings

Kernels and their arguments are the product's: the kernels are compiled to PTX and executed, a torch tensor on the
CPU is a tensor in device memory. Inputs (what the caller gives and what the CudaAugment keeps between batches)
are read-only; everything else that it allocates is uninitialised.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numba import typeof
from numba.cuda.cudadrv.nvrtc import get_supported_ccs
from torch import Tensor

from fastft.augment import cuda as backend
from fastft.augment.cuda_compile import compile_to_ptx
from fastft.augment.policies import AugmentPolicy
from tests.ptx.launch import Argument, Array, Finding, launch
from tests.ptx.memory import Allocation, Memory
from tests.ptx.program import Program

# V100's sm_70, or with CUDA 13, which PyPI's torch brings and which has no V100, the oldest that it has
OLDEST = max((7, 0), min(get_supported_ccs()))


class Kernel(NamedTuple):
    """A kernel as ``CudaAugment`` asks for it."""

    function: Callable[..., None]
    signature: tuple[Any, ...]
    bounds: tuple[int, int]


@cache
def compiled(kernel: Kernel, arch: tuple[int, int] = OLDEST) -> Program:
    """Raises ``PtxError`` for PTX that is not understood."""
    return Program(compile_to_ptx(*kernel, arch))


class _DeviceTensor(NamedTuple):
    bytes: np.ndarray  # of the host's tensor
    allocation: Allocation
    is_input: bool


@dataclass
class SimulatedGpu:
    arch: tuple[int, int] = OLDEST
    order: np.ndarray | None = None  # of the threads of a block
    launches: list[list[Finding]] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        return [finding for found in self.launches for finding in found]

    def augment(
        self,
        policy: AugmentPolicy,
        size: int,
        dtype: torch.dtype,
        packed: np.ndarray,
        offsets: np.ndarray,
        plan: np.ndarray,
        filled: np.ndarray | None = None,
    ) -> np.ndarray:
        """CudaAugment's images, (B, size, size, 3) in the storage of the dtype.

        filled: bool per byte of ``packed``, False where nothing may be read.
        """
        self.device = Memory()
        self.tensors: dict[int, _DeviceTensor] = {}  # by host address
        inputs = [torch.from_numpy(a) for a in (packed, offsets, plan.view(np.uint8))]
        with contextlib.ExitStack() as stack:
            for target, name, value in self._patches():
                stack.enter_context(mock.patch.object(target, name, value))
            self.is_set_up = False
            augment = backend.CudaAugment(policy, size, dtype, torch.device("cpu"))
            self.is_set_up = True
            for tensor in inputs:
                self._place(tensor, is_input=True)
            if filled is not None:
                place = self.tensors[inputs[0].data_ptr()].allocation
                self.device.mark_uninitialised(place, ~filled)
            images = augment(*inputs)
        assert images.dtype == dtype and images.is_contiguous(memory_format=torch.channels_last)
        storage = torch.float32 if dtype == torch.float32 else torch.uint16
        return images.permute(0, 2, 3, 1).view(storage).numpy()

    def _patches(self) -> list[tuple[Any, str, Any]]:
        devices = {0: contextlib.nullcontext()}
        return [
            (backend, "cuda", SimpleNamespace(gpus=devices, external_stream=lambda number: number)),
            (backend, "compiled", lambda *given: _Launcher(self, Kernel(*given[:3]))),  # without the device
            (backend, "from_address", self._array),
            (torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0)),
            (torch.cuda, "current_device", lambda: 0),
        ]

    def _place(self, tensor: Tensor, *, is_input: bool = False) -> np.ndarray:
        """The tensor's bytes; device memory for them, if there is none yet."""
        address = tensor.data_ptr()
        if address not in self.tensors:
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            allocation = self.device.allocate(
                f"tensor {len(self.tensors)}", data.size, content=data if is_input else None, read_only=is_input
            )
            self.tensors[address] = _DeviceTensor(data, allocation, is_input)
        return self.tensors[address].bytes

    def _array(self, address: int, nbytes: int, owner: Tensor) -> np.ndarray:
        """Stands for cuda.from_address. What is there before the first launch, such as tables, is read only."""
        assert address == owner.data_ptr()
        return self._place(owner, is_input=not self.is_set_up)[:nbytes]

    def run(self, kernel: Kernel, grid: Any, block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        """Executes a launch and brings the tensors up to date."""
        assert tuple(typeof(argument) for argument in arguments) == kernel.signature
        given: list[Argument] = [self._argument(argument) for argument in arguments]
        grid = grid if isinstance(grid, tuple) else (grid,)
        program = compiled(kernel, self.arch)
        self.launches.append(launch(program, self.device, grid, block, given, order=self.order))
        for tensor in self.tensors.values():
            if not tensor.is_input:
                tensor.bytes[:] = self.device.bytes(tensor.allocation)

    def _argument(self, argument: Any) -> Argument:
        if not isinstance(argument, np.ndarray):
            return int(argument)
        allocation = self.tensors[argument.ctypes.data].allocation
        return Array(allocation, argument.shape, argument.strides, argument.itemsize)


class _Launcher:
    """kernel[grid, block, stream](*arguments)"""

    def __init__(self, gpu: SimulatedGpu, kernel: Kernel) -> None:
        self.gpu, self.kernel = gpu, kernel

    def __getitem__(self, configuration: tuple[Any, tuple[int, ...], int]) -> Callable[..., None]:
        grid, block, _ = configuration
        return lambda *arguments: self.gpu.run(self.kernel, grid, block, arguments)
