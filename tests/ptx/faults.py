"""Repeats recorded launches with one deliberate fault each, to show that the checks find faults.

A fault is a number for one instruction of the PTX (see ``program.Program``). Launches are repeated one thread
block at a time, from the memory that the launch began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

import numpy as np

from tests.ptx import memory
from tests.ptx.gpu import Launch, compiled
from tests.ptx.launch import DIVERGENT_BARRIER, NO_LIMIT, Run, launch
from tests.ptx.opcodes import is_float
from tests.ptx.parser import Opcode
from tests.ptx.program import Program

NOT_REACHED, NO_EFFECT, OTHER_BYTES = "not reached", "no effect", "other bytes"
MOST_TRIALS = 6  # thread blocks that a fault is tried in; a removed barrier in all of them
PATIENCE = 50  # times the visits without the fault: more is endless
EVERY_THREAD = 1 << 20
RACE = memory.PROBLEMS[memory.RACE]
PRIORITY = DIVERGENT_BARRIER, RACE  # of several findings, the one that names the cause


class Fault(Enum):
    """The kinds, each with the numbers that make it."""

    REMOVED = "barrier removed", (EVERY_THREAD,)
    SKIPPED = "barrier skipped by one thread", (1,)
    SHIFTED = "access shifted by an item, up or down", (1, -1)
    BOUND = "comparison with a bound one higher or lower", (1, -1)

    def sites(self, program: Program) -> list[int]:
        """Instructions that can have the fault."""
        if self in (Fault.REMOVED, Fault.SKIPPED):
            return program.barriers
        suitable = _is_access if self is Fault.SHIFTED else _is_bound
        return [number for number, site in enumerate(program.sites) if suitable(site.instruction.opcode)]

    def numbers(self, program: Program, site: int) -> Iterator[np.ndarray]:
        for amount in self.value[1]:
            faults = np.zeros(len(program.sites), np.int64)
            faults[site] = amount
            yield faults


def _is_access(op: Opcode) -> bool:
    return op.name in ("ld", "st", "atom", "red") and "param" not in op.modifiers


def _is_bound(op: Opcode) -> bool:
    return op.name == "setp" and not is_float(op.types[0]) and op.modifiers[0] in ("lt", "le", "gt", "ge")


class Trial:
    """One thread block of a recorded launch, and what it does without a fault."""

    def __init__(self, recorded: Launch, program: Program, block: int) -> None:
        self.recorded, self.program, self.block = recorded, program, block
        self.original = self._repeat(np.zeros(len(program.sites), np.int64))
        if self.original.findings:
            raise ValueError(f"the launch itself is faulty: {self.original.findings[0]}")
        self.changed, self.values = self._changes()

    def _repeat(self, faults: np.ndarray, most_visits: int = NO_LIMIT) -> Run:
        given, device = self.recorded, self.recorded.device
        device.data[: len(given.data)], device.records[: len(given.records)] = given.data, given.records
        return launch(
            self.program,
            device,
            given.grid,
            given.block,
            given.arguments,
            blocks=[self.block],
            faults=faults,
            most_visits=most_visits,
        )

    def _changes(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and values of the bytes that the last repetition changed."""
        before = self.recorded.data
        after = self.recorded.device.data[: len(before)]
        changed = np.flatnonzero(after != before)
        return changed, after[changed]

    def outcome(self, faults: np.ndarray) -> str:
        """A finding's problem (by PRIORITY), OTHER_BYTES or NO_EFFECT."""
        run = self._repeat(faults, PATIENCE * (int(self.original.visits.max()) + self.recorded.threads))
        if run.findings:
            found = {finding.problem for finding in run.findings}
            return next((problem for problem in PRIORITY if problem in found), run.findings[0].problem)
        same = all(map(np.array_equal, self._changes(), (self.changed, self.values)))
        return NO_EFFECT if same else OTHER_BYTES


class Rehearsal:
    """Recorded launches of one kernel."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        (kernel,) = {recorded.kernel for recorded in launches}
        self.program = compiled(kernel, faults=True)
        trials = [
            Trial(recorded, self.program, block)
            for recorded in launches
            for block in range(int(np.prod(recorded.grid)))
        ]
        self.trials = sorted(trials, key=lambda trial: trial.original.instructions)

    def outcome(self, fault: Fault, site: int) -> str:
        """How a fault is found: a problem, OTHER_BYTES, or else NO_EFFECT or NOT_REACHED."""
        place = self.program.sites[site].block
        reaching = [trial for trial in self.trials if trial.original.visits[place]]
        most = len(reaching) if fault is Fault.REMOVED else min(MOST_TRIALS, len(reaching))
        found = NOT_REACHED
        for number in np.linspace(0, len(reaching) - 1, most, dtype=int):
            for faults in fault.numbers(self.program, site):
                found = reaching[number].outcome(faults)
                if found != NO_EFFECT:
                    return found
        return found
