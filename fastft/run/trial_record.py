"""`step_trials.json` of a run directory: candidates of the training step that ended the process while they were tried.

A kernel that writes to memory that is not its own can end the process, or leave a GPU that no longer answers. So a candidate is
written down before it is tried, and the next start of the run finds it there.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beton_tools.base.atomic import write_text
from fastft.machine.exits import GpuLost
from fastft.run.run_directory import read_json

FILE = "step_trials.json"


class TrialRecord:
    """ended: the candidates, by name, that have ended an earlier process of this run."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError: the file cannot be read."""
        self.path = folder / FILE
        self.ended: tuple[str, ...] = tuple(read_json(self.path, list[str], "delete it and run the same command again"))

    @contextmanager
    def trying(self, candidate: str) -> Iterator[None]:
        """Keep the candidate in the file while the block runs, and for good if the process ends in it or the GPU is lost."""
        self._write((*self.ended, candidate))
        try:
            yield
        except GpuLost:
            raise
        except BaseException:
            self._write(self.ended)
            raise
        self._write(self.ended)

    def _write(self, candidates: tuple[str, ...]) -> None:
        if candidates:
            write_text(self.path, json.dumps(candidates))
        else:
            self.path.unlink(missing_ok=True)
