"""In a contender's process: building a loader for a very long file."""

import time
from typing import Any

from fastft.bench.child import Arm
from fastft.bench.contenders.measuring import found, used_mb
from fastft.bench.contenders.task import Task


def opening(file: str, name: str, task: dict[str, Any], options: dict[str, Any]) -> dict[str, Arm]:
    """Seconds to build the loader, and the MB that it holds afterwards, beyond what its imports hold."""
    if file == "ours":
        pass
    else:
        import ffcv.fields.decoders
        import ffcv.loader
        import ffcv.transforms  # noqa: F401
    loader = found(file, name)

    def run() -> dict[str, float]:
        before, began = used_mb(), time.perf_counter()
        built = loader.make(Task(**task), **options)
        seconds = time.perf_counter() - began
        figures = {"count": 0, "seconds": seconds, "memory_mb": max(used_mb() - before, 0.0)}
        del built  # alive until the memory was measured
        return figures

    return {"open": run}
