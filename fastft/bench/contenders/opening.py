"""In a contender's process: building a loader for a very long file."""

import time
from dataclasses import replace
from typing import Any

from fastft.bench.child import Arm
from fastft.bench.contenders.measuring import found, used_mb
from fastft.bench.contenders.task import Task


def opening(file: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> dict[str, Arm]:
    """Measure the seconds to build the loader, and the MB that it holds afterwards.

    The task's files are "beton" and the small file "warm", for which imports and compiled code are loaded beforehand.
    """
    loader, asked = found(file, name), Task(**task)
    loader.make(replace(asked, files={"beton": asked.files["warm"]}), **options)

    def run() -> dict[str, float]:
        before, began = used_mb(), time.perf_counter()
        built = loader.make(asked, **options)
        seconds = time.perf_counter() - began
        figures = {"count": 0, "seconds": seconds, "memory_mb": max(used_mb() - before, 0.0)}
        del built  # kept alive until the memory has been measured
        return figures

    return {"open": run}
