"""`step_trials.json` in a run directory: ways to compute a step that ended the process while they were tried.

A kernel that writes to foreign memory can end the process, or leave a GPU that no longer answers. So a candidate is
written down before it is tried, and the run's next start finds it there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beton_tools.base.typed_json import Document
from fastft.machine.exits import GpuLost
from fastft.run.json_files import read_document, write_document

FILE = "step_trials.json"


class _Ended(Document):
    candidates: list[str]


class TrialRecord:
    """The candidates that ended one of this run's earlier processes. ended: their names."""

    def __init__(self, folder: Path) -> None:
        """Read the record. Raises UserError if the file cannot be read."""
        self.path = folder / FILE
        stored = read_document(self.path, _Ended, "delete it and run the same command again")
        self.ended: tuple[str, ...] = () if stored is None else tuple(stored.candidates)

    @contextmanager
    def trying(self, candidate: str) -> Iterator[None]:
        """Keep the candidate in the file while the block runs. It stays there if the process ends or the GPU is lost."""
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
            write_document(self.path, _Ended(candidates=list(candidates)))
        else:
            self.path.unlink(missing_ok=True)
