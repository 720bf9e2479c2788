"""Scores of the finished trainings of a study, one JSON line each, kept with the results.

A study can continue from them on another machine without checkpoints, and write its page without training again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastft.machine.facts import cpu_name
from fastft.run.metrics import Predictions


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
        return next((run for run in self._lines()[1:] if values.items() <= run.items()), None)

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


def pack(found: Predictions) -> str:
    """One bit per image, 1 if it is classified correctly, as hexadecimal text."""
    return np.packbits(found.right_N).tobytes().hex()


def unpack(hits: str, n: int) -> np.ndarray:
    """Return the bits of `pack` as bool (n,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(hits), np.uint8))[:n].astype(bool)


def tune_correct(scores: Mapping[str, Any], weights: str) -> int:
    """Return the number of correctly classified tune images after the last epoch. weights: "raw" or "ema"."""
    hits = scores["points"][-1][f"tune_{weights}"]
    return int(unpack(hits, 4 * len(hits)).sum())


def most_correct(runs: Iterable[Mapping[str, Any]], weights: str) -> Mapping[str, Any]:
    """Return the scores with the most correct tune images; of several, those of the smallest learning rate."""
    return max(runs, key=lambda run: (tune_correct(run, weights), -float(run["options"]["optim.lr"])))


def shown_error(errors: Mapping[str, Any]) -> float:
    """Return the standard error over seeds, or with one seed that over images: `seed_error`, `image_error`."""
    return float(errors["image_error"] if errors["seed_error"] is None else errors["seed_error"])


def format_gain(points: float, errors: Mapping[str, Any]) -> str:
    """Return a difference in points with its `shown_error`, such as '+1.2 ± 0.3'."""
    return f"{points:+.1f} ± {shown_error(errors):.1f}"
