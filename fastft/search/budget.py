"""The time budget of a search, over all its resumes."""

import json
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from beton_tools.base.atomic import write_text
from beton_tools.base.typed_json import Document, Numbers
from fastft.run.run_directory import read_json
from fastft.search.results import writing
from fastft.train.distributed import World

SAVE_SECONDS = 15.0  # of a training, at most, are forgotten if the process is killed


class _Spent(Document):
    seconds: Numbers


class Budget:
    """Seconds that each training has taken, in `tune.json`, and how much of the limit is left.

    limit: seconds; math.inf without a budget. keys: the trainings of this search; `tune.json` also keeps those of other searches
    in the same folder, such as one of other images, whose time is not counted. Clocks differ between processes: the main
    process decides for all.
    """

    def __init__(self, path: Path, limit: float, world: World, keys: Collection[str]):
        self.limit, self._path, self._world, self._keys = limit, path, world, keys
        stored = read_json(path, _Spent, "delete it, which forgets the time spent")
        self._seconds: dict[str, float] = stored.get("seconds", {})

    @property
    def spent(self) -> float:
        return sum(seconds for key, seconds in self._seconds.items() if key in self._keys)

    def left(self, share: float = 1.0) -> float:
        """Seconds that are left of a share of the limit, the same in all processes."""
        return self._world.broadcast(share * self.limit - self.spent)

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
