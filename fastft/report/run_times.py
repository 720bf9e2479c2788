"""Numbers from a run's log: cost so far and at the end, and where the time went."""

import json
from statistics import median
from typing import Any

from beton_tools.base.user_files import read_user_text
from fastft.cost.bottleneck import LOADER_PARTS, LOOP_PARTS, diagnose, shares
from fastft.run import profile
from fastft.run.run_directory import Run

MOST_OPERATIONS = 10
MAX_PROFILE_BYTES = 16 << 20


def run_cost(run: Run, price: float | None) -> dict[str, Any] | None:
    """Return device-hours and money, or None if nothing is logged yet.

    Keys: device, devices, price, rows. A row has: what, wall_seconds, hours (for all devices together), money,
    extrapolated. Set-up reads weights and opens files in each process. Head is fitting the head, its evaluation, and choosing
    size and augmentation. Start is the wait for a process's first batch. Import and conversion are not logged.
    """
    if not run.intervals:
        return None
    device, devices = run.machine.device or "device", run.machine.world_size
    parts = {
        "set-up": sum(s.seconds for s in run.log.start),
        "head": run.baseline.seconds if run.baseline else 0.0,
        "start": part_seconds(run).get("start", 0.0),
        "training": sum(training_seconds(run)),
        "evaluation": sum(e.seconds for e in run.evaluations),
        "checkpoints": sum(c.seconds for c in run.log.checkpoint),
    }
    parts = {name: seconds for name, seconds in parts.items() if seconds}
    so_far = sum(parts.values())
    rows = [_row(name, seconds, devices, price) for name, seconds in parts.items()]
    rows.append(_row("so far", so_far, devices, price))
    if not run.stopped and (left := seconds_left(run)) > 0:
        rows.append(_row("at the end", so_far + left, devices, price, extrapolated=True))
    return {"device": device, "devices": devices, "price": price, "rows": rows}


def training_seconds(run: Run) -> list[float]:
    """Return the seconds in every logged interval: images over rate, which excludes the start."""
    batch = run.recipe.optim.batch_size
    return [steps * batch / i.images_per_second for steps, i in zip(run.interval_steps, run.intervals, strict=True)]


def seconds_left(run: Run) -> float:
    """Return the seconds for the remaining steps, as the log's last line says, and for the remaining evaluations."""
    training = run.intervals[-1].seconds_left
    if not run.evaluations:
        return training
    left = run.recipe.evaluations - len(run.evaluations)
    return training + max(0, left) * median(e.seconds for e in run.evaluations)


def _row(what: str, seconds: float, devices: int, price: float | None, extrapolated: bool = False) -> dict[str, Any]:
    hours = seconds * devices / 3600
    money = None if price is None else hours * price
    return {"what": what, "wall_seconds": seconds, "hours": hours, "money": money, "extrapolated": extrapolated}


def time_split(run: Run) -> dict[str, Any] | None:
    """Return the parts of the loop and the loader, and the bottleneck. Returns None if no interval has a split.

    The parts are rows as `shares` gives them.
    """
    seconds = part_seconds(run)
    if not seconds:
        return None
    parts = {"loop": shares(seconds, LOOP_PARTS), "loader": shares(seconds, LOADER_PARTS)}
    return {**parts, "diagnosis": diagnose(seconds)}


def part_seconds(run: Run) -> dict[str, float]:
    """Return the logging process's seconds by part of the loop and the loader; empty if no interval has a split."""
    splits = [interval.split for interval in run.intervals if interval.split]
    if not splits:
        return {}
    seconds = {part: sum(s.get(part, 0.0) for s in splits) for part in LOOP_PARTS + LOADER_PARTS}
    seconds["eval"] = sum(e.seconds for e in run.evaluations)
    seconds["checkpoint"] = sum(c.seconds for c in run.log.checkpoint)
    return seconds


def profiled(run: Run) -> dict[str, Any] | None:
    """Return the profile of some steps (`train.profile`), or None without one.

    It has the steps, rows (name, calls, seconds, share) for the longest operations, and the files to link.
    """
    folder = run.folder / profile.FOLDER
    if not (folder / profile.OPERATIONS).is_file():
        return None
    stored = json.loads(read_user_text(folder / profile.OPERATIONS, MAX_PROFILE_BYTES, "a profile of fastft train"))
    total = sum(row["seconds"] for row in stored["operations"]) or 1.0
    rows = [row | {"share": row["seconds"] / total} for row in stored["operations"][:MOST_OPERATIONS]]
    files = [name for name in (profile.TRACE, profile.MEMORY) if (folder / name).is_file()]
    return {"steps": stored["steps"], "rows": rows, "files": [f"{profile.FOLDER}/{name}" for name in files]}
