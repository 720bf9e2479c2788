"""What each finished training of a study named correctly: one JSON line per training, kept with the results.

So a study continues on another machine or day without its checkpoints, and its page is made without training again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastft.inference.logits import FileLogits
from fastft.machine.facts import cpu_name


class ScoredRuns:
    """A file of scores whose first line is the setting that all its trainings share. Several processes may add lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, setting: Mapping[str, Any]) -> None:
        """Start the file, or check that it is of this setting.

        Raises:
            SystemExit: its trainings have another setting.
        """
        if self.path.exists():
            if self.setting() != setting:
                raise SystemExit(f"{self.path} has the setting {self.setting()}; give another --out")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._append(setting)

    def setting(self) -> dict[str, Any]:
        return self._lines()[0]

    def all(self) -> list[dict[str, Any]]:
        """Every training's scores, sorted by what they are of, so that the order of finishing changes no figure."""
        return sorted(self._lines()[1:], key=lambda line: json.dumps(line, sort_keys=True))

    def find(self, **values: Any) -> dict[str, Any] | None:
        """The scores that have these values."""
        return next((run for run in self.all() if values.items() <= run.items()), None)

    def add(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Append the scores of a training, with the CPU that it ran on."""
        complete = dict(scores) | {"cpu": cpu_name()}
        self._append(complete)
        return complete

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            raise SystemExit(f"{self.path}: no run is finished yet")
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pack(found: FileLogits) -> str:
    """Which images were named correctly, as packed bits in hexadecimal."""
    return np.packbits(found.logits_NK.argmax(axis=1) == found.labels_N).tobytes().hex()


def unpack(hits: str, n: int) -> np.ndarray:
    """bool (n,)"""
    return np.unpackbits(np.frombuffer(bytes.fromhex(hits), np.uint8))[:n].astype(bool)
