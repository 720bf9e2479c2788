"""Runs a program over a grid of thread blocks and reports what was wrong.

Blocks run one after the other; the threads of a block one after the other up to the next barrier. No result may
depend on that order: accesses without a barrier between them are findings (races), and ``order`` may be any.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tests.ptx import memory
from tests.ptx.emitter import CONTEXT
from tests.ptx.memory import Allocation, Memory
from tests.ptx.program import Program
from tests.ptx.translate import EXITED, START

DIVERGENT_BARRIER = "divergent barrier"
LOCAL_GUARD = 64  # bytes, at least, between the local memory of two threads


class Finding(NamedTuple):
    """Something that a kernel must not do."""

    problem: str  # one of memory.PROBLEMS, DIVERGENT_BARRIER
    line: int  # of the PTX
    text: str
    detail: str

    def __str__(self) -> str:
        return f"{self.problem} at line {self.line} `{self.text}`: {self.detail}"


class Array(NamedTuple):
    """An array argument: where it lies and how Numba describes it."""

    allocation: Allocation
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int


Argument = Array | int


def parameters(arguments: Iterable[Argument]) -> list[int]:
    """Arguments as numba-cuda passes them: of an array meminfo, parent, items, item size, address, shape, strides."""
    values: list[int] = []
    for argument in arguments:
        if isinstance(argument, int):
            values.append(argument)
        else:
            items = int(np.prod(argument.shape))
            start = argument.allocation.address
            values += [0, 0, items, argument.itemsize, start, *argument.shape, *argument.strides]
    return values


def launch(
    program: Program,
    device: Memory,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Argument],
    *,
    order: np.ndarray | None = None,
) -> list[Finding]:
    """Runs the grid. Ends at the first finding that is fatal.

    order: in which the threads of a block run (int32).
    """
    with device.temporary():
        execution = _Execution(program, device, [*grid, 1, 1][:3], [*block, 1, 1][:3], arguments)
        execution.order = np.arange(execution.threads, dtype=np.int32) if order is None else order
        for number in range(int(np.prod(grid))):
            if not execution.run_block(number):
                break
        return execution.findings + execution.logged()


class _Execution:
    """A launch under way."""

    def __init__(
        self, program: Program, device: Memory, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Argument]
    ) -> None:
        self.program, self.device, self.grid = program, device, grid
        self.threads = int(np.prod(block))
        self.findings: list[Finding] = []
        self.interval = 1
        self.log = np.zeros((len(program.sites), len(memory.PROBLEMS), memory.LOG_WORDS), np.int64)
        self.frames = np.zeros(self.threads * program.frame_size + 1, np.uint8)
        self.parameters = np.array([value % (1 << 64) for value in parameters(arguments)], np.uint64)
        if len(self.parameters) != program.parameter_count:
            raise ValueError(f"{len(self.parameters)} parameters given, {program.parameter_count} taken")
        self.context = np.zeros(len(CONTEXT), np.int64)
        self._place_variables()
        self._place_local_memory()
        device.forget_accesses()
        self.set_context(
            data=device.data.ctypes.data - memory.BASE,
            records=device.records.ctypes.data,
            end=device.end,
            log=self.log.ctypes.data,
            parameters=self.parameters.ctypes.data,
            symbols=self.symbols.ctypes.data,
            frames=self.frames.ctypes.data,
            frame_size=program.frame_size,
        )
        for axis, size, count in zip("xyz", block, grid, strict=True):
            self.set_context(**{f"ntid.{axis}": size, f"nctaid.{axis}": count})

    def set_context(self, **values: int) -> None:
        for name, value in values.items():
            self.context[CONTEXT.index(name)] = value

    def _place_variables(self) -> None:
        """Variables of the module, with their contents."""
        self.renewed, addresses = [], []  # what every block finds uninitialised
        for variable in self.program.variables:
            allocation = self.device.allocate(
                variable.name,
                variable.size,
                space=variable.space,
                align=max(variable.align, 16),
                content=variable.content,
                read_only=variable.content is not None,
            )
            addresses.append(allocation.address)
            if variable.space == "shared":
                self.renewed.append(allocation)
        self.symbols = np.array(addresses, np.int64)

    def _place_local_memory(self) -> None:
        """A piece for every thread, with unallocated bytes behind it."""
        size = self.program.local_size
        stride = -(-(size + LOCAL_GUARD) // LOCAL_GUARD) * LOCAL_GUARD if size else 0
        allocation = self.device.allocate("local memory", self.threads * stride, space="local")
        self.device.state(allocation).reshape(self.threads, stride)[:, size:] = memory.NOT_ALLOCATED
        self.set_context(local=allocation.address, local_stride=stride)
        self.renewed.append(allocation)

    def run_block(self, number: int) -> bool:
        """False: the launch has ended."""
        for allocation in self.renewed:
            self.device.renew(allocation)
        place = np.unravel_index(number, self.grid[::-1])[::-1]
        self.set_context(first_interval=self.interval)
        self.set_context(**{f"ctaid.{axis}": int(at) for axis, at in zip("xyz", place, strict=True)})
        resume = np.full(self.threads, START, np.int32)
        while (resume != EXITED).any():
            memory.check_limits(self.threads, self.interval)
            self.set_context(interval=self.interval)
            if self.program.run_interval(self.context, self.order, resume):
                return False
            self._check_barrier(resume, number)
            self.interval += 1
        return True

    def _check_barrier(self, resume: np.ndarray, number: int) -> None:
        """All threads of a block must wait at the same barrier, or all have exited."""
        where = np.unique(resume)
        if len(where) > 1:
            ins = self.program.sites[self.program.barriers[where[-1] - 1]]
            self.findings.append(Finding(DIVERGENT_BARRIER, ins.line, ins.text, f"block {number}"))

    def logged(self) -> list[Finding]:
        found = []
        for site, problem in np.argwhere(self.log[..., memory.COUNT] > 0).tolist():
            count, offset = self.log[site, problem].tolist()
            ins, detail = self.program.sites[site], f"{self.device.locate(offset)} ({count} times)"
            found.append(Finding(memory.PROBLEMS[problem], ins.line, ins.text, detail))
        return found
