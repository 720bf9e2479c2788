"""Options and findings of a benchmark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from beton_tools.base.errors import UserError
from fastft.bench.dataset import Workspace
from fastft.bench.harness import Contender
from fastft.recipe import Recipe
from fastft.recipe.constants import PEERS

# A benchmark is a module with `run(options)`, which yields measures (docs/bench-schema.md) and notes as they come.
Findings = Iterator[dict[str, Any] | str]


@dataclass(frozen=True)
class Options:
    """Options of all benchmarks. `quick` is for tests: it runs every path once, with meaningless figures."""

    workspace: Workspace
    rounds: int
    threads: int  # all cores of this process
    quick: bool = False
    peers: tuple[str, ...] = PEERS
    recipe: Recipe | None = None  # for e2e

    @property
    def images(self) -> int:
        return len(self.workspace.images.paths)

    def wanted(self, contenders: dict[str, list[Contender]]) -> list[Contender]:
        """fastft's contenders, and those whose library is in `peers`."""
        return [c for who, group in contenders.items() if who == "fastft" or who in self.peers for c in group]

    def thread_counts(self) -> list[int]:
        """Powers of two below `threads`, and `threads`."""
        powers = [1 << k for k in range(self.threads.bit_length()) if 1 << k < self.threads]
        return [*powers, self.threads]


def parse_peers(text: str) -> tuple[str, ...]:
    """Peer names from "ffcv,timm", "all" or "none"."""
    if text in ("all", "none"):
        return PEERS if text == "all" else ()
    names: Sequence[str] = text.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise UserError(f"there is no peer {unknown[0]!r}; choose from {', '.join(PEERS)}, all or none")
    return tuple(names)
