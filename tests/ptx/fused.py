"""Stands in for the GPU under ``torch.ops.fastft``: within, the fused kernels' PTX is executed for tensors on the CPU."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numba.cuda.dispatcher
import numpy as np
import torch
from numba import cuda
from torch import Tensor

from fastft.model import fused, fused_kernels
from fastft.model.fused_kernels import SIGNATURES, kernels, launch_bounds
from tests.ptx.gpu import OLDEST
from tests.ptx.launch import Finding, launch
from tests.ptx.memory import Allocation, Memory
from tests.ptx.program import Program


def fused_ptx(operation: str, width: int, dtype: torch.dtype, arch: tuple[int, int]) -> str:
    """Compiled as ``fused_kernels`` does on a GPU."""
    function, device = kernels(width, dtype)[operation], SimpleNamespace(compute_capability=arch)
    with mock.patch.object(numba.cuda.dispatcher, "get_current_device", lambda: device):
        ptx, _ = cuda.compile_ptx(function, SIGNATURES[operation], cc=arch, launch_bounds=launch_bounds(width))
    return str(ptx)


@cache
def program(operation: str, width: int, dtype: torch.dtype, arch: tuple[int, int]) -> Program:
    """An assembler may fuse products and sums, which these kernels allow; executed, each is rounded."""
    ptx = re.sub(r"\b(add|sub|mul)\.f32", r"\1.rn.f32", fused_ptx(operation, width, dtype, arch))
    return Program(ptx)


def _execute(runs: list[list[Finding]], arch: tuple[int, int], operation: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The launch that the product makes; outputs are uninitialised before."""
    outputs = fused.OPERATIONS[operation][1](*arguments)
    device, places = Memory(), {}
    for tensor in (*arguments, *outputs):
        if isinstance(tensor, Tensor):
            given = all(tensor is not output for output in outputs)
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            content = data if given else None
            places[tensor.data_ptr()] = device.allocate("tensor", data.size, content=content, read_only=given)

    def compiled(operation: str, width: int, dtype: torch.dtype, device_index: int) -> _Launcher:
        return _Launcher(partial(run, program(operation, width, dtype, arch)))

    def run(code: Program, grid: Any, threads: int, values: tuple[Any, ...]) -> None:
        *pointers, last = values
        addresses = [places[pointer].address for pointer in pointers]
        number = int(np.float32(last).view(np.uint32)) if isinstance(last, float) else last
        runs.append(
            launch(code, device, grid if isinstance(grid, tuple) else (grid,), (threads,), [*addresses, number])
        )

    with mock.patch.object(fused_kernels, "_compiled", compiled):
        fused_kernels.launch(operation, arguments, outputs)
    for tensor in outputs:
        place: Allocation = places[tensor.data_ptr()]
        tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(device.bytes(place).copy()))
    return outputs


class _Launcher:
    """kernel[grid, threads, stream](*values)"""

    def __init__(self, run: Callable[[Any, int, tuple[Any, ...]], None]) -> None:
        self.run = run

    def __getitem__(self, configuration: tuple[Any, int, Any]) -> Callable[..., None]:
        grid, threads, _ = configuration
        return lambda *values: self.run(grid, threads, values)


@contextlib.contextmanager
def executed_kernels(arch: tuple[int, int] = OLDEST, blocks: int = 3) -> Iterator[list[list[Finding]]]:
    """Yields what each launch did wrong. blocks: of threads that share rows."""
    runs: list[list[Finding]] = []
    library = torch.library.Library("fastft", "IMPL")
    for operation in fused.OPERATIONS:
        library.impl(operation, partial(_execute, runs, arch, operation), "CPU")
    with (
        mock.patch.object(fused, "BLOCKS", blocks),
        mock.patch.object(cuda, "gpus", {-1: contextlib.nullcontext()}),
        mock.patch.object(cuda, "external_stream", lambda number: number),
        mock.patch.object(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0)),
    ):
        yield runs
    library._destroy()
