"""Time split of a run, summed over the 'train' lines of its log, so that interruptions do not distort it.

The 'split' lines are not used: each covers only the process that ended its epoch.
"""

import json
from contextlib import suppress
from typing import Any

from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from fastft.cost.bottleneck import GPU_COUNTS, LOADER_PARTS, LOOP_PARTS, diagnose, loader_needs, shares
from fastft.run.run_directory import Run
from fastft.train import profile

MOST_OPERATIONS = 10
MAX_BYTES = 16 << 20


def time_split(run: Run) -> dict[str, Any] | None:
    """Parts of the loop and the loader, bottleneck, and loader needs of GPUs; None if no interval has a split.

    Keys: loop, loader (rows as `shares` gives them), diagnosis, per_core (images/s of one core of the loader),
    counts (of GPUs), needs (as `loader_needs` gives them; empty without the architecture's file).
    """
    seconds = part_seconds(run)
    if not seconds:
        return None
    # the log covers one process's threads; on a GPU, augment and copy run on the device
    busy = sum(seconds[part] for part in (("decode",) if _on_gpu(run) else ("decode", "augment")))
    per_core = images_of_process(run) / busy if busy else None
    return {
        "loop": shares(seconds, LOOP_PARTS),
        "loader": shares(seconds, LOADER_PARTS),
        "diagnosis": diagnose(seconds),
        "per_core": per_core,
        "counts": GPU_COUNTS,
        "needs": _needs(run, per_core),
    }


def _needs(run: Run, per_core: float | None) -> list[dict[str, Any]]:
    with suppress(UserError):  # the architecture's file is not on this machine
        return loader_needs(run.recipe, per_core)
    return []


def part_seconds(run: Run) -> dict[str, float]:
    """Seconds of the logging process by part of the loop and of the loader; empty if no interval has a split."""
    splits = [interval["split"] for interval in run.intervals if interval.get("split")]
    if not splits:
        return {}
    seconds = {part: sum(s.get(part, 0.0) for s in splits) for part in LOOP_PARTS + LOADER_PARTS}
    seconds["eval"] = sum(e["seconds"] for e in run.evaluations)
    seconds["checkpoint"] = sum(c["seconds"] for c in run.checkpoints)
    return seconds


def images_of_process(run: Run) -> float:
    """Images of the logging process in the intervals that have a split."""
    steps = zip(run.intervals, run.interval_steps, strict=True)
    per_process = (n / _world_size(run, interval["step"]) for interval, n in steps if interval.get("split"))
    return run.recipe.optim.batch_size * sum(per_process)


def _world_size(run: Run, step: int) -> int:
    """World size at this step: that of the last start before it."""
    before = [start for start in run.starts if start["step"] < step]
    return int(before[-1].get("world_size", 1)) if before else 1


def _on_gpu(run: Run) -> bool:
    return run.machine.get("device_type") == "cuda"


def profiled(run: Run) -> dict[str, Any] | None:
    """The profile of some steps (`train.profile`): steps, rows (name, calls, seconds, share) of the longest operations, and the
    files to link. None without one.
    """
    folder = run.folder / profile.FOLDER
    if not (folder / profile.OPERATIONS).is_file():
        return None
    found = json.loads(read_user_text(folder / profile.OPERATIONS, MAX_BYTES, "a profile of fastft train"))
    total = sum(row["seconds"] for row in found["operations"]) or 1.0
    rows = [row | {"share": row["seconds"] / total} for row in found["operations"][:MOST_OPERATIONS]]
    files = [name for name in (profile.TRACE, profile.MEMORY) if (folder / name).is_file()]
    return {"steps": found["steps"], "rows": rows, "files": [f"{profile.FOLDER}/{name}" for name in files]}
