"""A summary of what these tests executed, printed at the end of a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.ptx.launch import Run
from tests.ptx.program import Program


@dataclass
class Figures:
    images: int = 0  # compared with the CPU back end
    seconds: float = 0.0  # of processor time, compilation included
    instructions: int = 0
    lines: dict[Program, set[int]] = field(default_factory=dict)  # executed
    faults: dict[str, Counter[str]] = field(default_factory=dict)  # kind of fault: outcomes

    def add(self, images: int, seconds: float, runs: Iterable[Run]) -> None:
        self.images += images
        self.seconds += seconds
        for run in runs:
            self.instructions += run.instructions
            self.lines.setdefault(run.program, set()).update(run.lines)

    def summary(self) -> list[str]:
        rows = []
        if self.images:
            rows.append(
                f"{self.images:,} images, {self.instructions / 1e9:.1f} G instructions of PTX executed"
                f" in {self.seconds:.0f} s of processor time"
            )
        for program, lines in self.lines.items():
            every = set().union(*program.lines.values())
            rows.append(f"{program.title}: {len(lines):,} of {len(every):,} lines executed")
        for kind, outcomes in self.faults.items():
            total = sum(outcomes.values())
            rows.append(
                f"{kind}: {total} faults: " + ", ".join(f"{n} {what}" for what, n in outcomes.most_common())
            )
        return rows


FIGURES = Figures()
