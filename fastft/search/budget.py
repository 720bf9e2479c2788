"""The time budget of a search, over all its resumes."""

import json
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

from beton_tools.base.atomic import write_text
from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document, Numbers, check
from fastft.search.results import writing
from fastft.train.distributed import World

SAVE_SECONDS = 15.0  # of a training, at most, are forgotten if the process is killed


class Budget:
    """Seconds that each training has taken, in `tune.json`, and whether another one fits.

    limit: seconds; math.inf without a budget. keys: the trainings of this search; `tune.json` also keeps those of other searches
    in the same folder, such as one of other images, whose time is not counted. Clocks differ between processes: the main
    process decides for all.
    """

    def __init__(self, path: Path, limit: float, world: World, keys: Collection[str]):
        self.limit, self._path, self._world, self._keys = limit, path, world, keys
        self._seconds: dict[str, float] = _read(path)
        self._finished: dict[str, int] = {}  # epochs by key

    @property
    def spent(self) -> float:
        return sum(seconds for key, seconds in self._seconds.items() if key in self._keys)

    @property
    def left(self) -> float:
        """Seconds, the same in all processes."""
        return self._world.broadcast(self.limit - self.spent)

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        """Add the time of the block to the training `key`, also if it is interrupted."""
        began, before = time.monotonic(), self._seconds.get(key, 0.0)
        ended = threading.Event()

        def save() -> None:
            self._seconds[key] = before + time.monotonic() - began
            if self._world.is_main:
                write_text(self._path, json.dumps({"seconds": self._seconds}, indent=1))

        def save_repeatedly() -> None:
            while not ended.wait(SAVE_SECONDS):
                with suppress(OSError):  # such as a full disk: the end of the block says so
                    save()

        saver = threading.Thread(target=save_repeatedly, daemon=True)
        saver.start()
        try:
            yield
        finally:
            ended.set()
            saver.join()
            with writing(self._path):
                save()

    def finished(self, key: str, epochs: int) -> None:
        """Record a complete training: later estimates are based on the longest ones."""
        if key in self._seconds:
            self._finished[key] = epochs

    def estimate(self, key: str, epochs: int) -> float | None:
        """Seconds that a training still takes; None before any training is complete."""
        if not self._finished:
            return None
        longest = max(self._finished.values())
        rates = [self._seconds[k] / e for k, e in self._finished.items() if e == longest]
        return max(0.0, median(rates) * epochs - self._seconds.get(key, 0.0))

    def fits(self, key: str, epochs: int, reserve: int) -> bool:
        """True if a training fits; the same answer in all processes.

        reserve: epochs of a later training that must still fit, unless it does not fit in any case.
        """
        need = self.estimate(key, epochs)
        if need is None:
            return self.left > 0
        later = self.estimate("", reserve) or 0.0
        if self.spent + later > self.limit:
            later = 0.0
        return self._world.broadcast(self.spent + need + later <= self.limit)


class _Spent(Document):
    seconds: Numbers


def _read(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        check(path.name, document, _Spent)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; delete it, which forgets the time spent") from None
    return document["seconds"]
