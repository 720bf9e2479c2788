"""Cost of a run so far from its log, and extrapolated to its end."""

from statistics import median
from typing import Any

from fastft.files.run_directory import Line, Run


def run_cost(run: Run, gpus: int | None, price: float | None) -> dict[str, Any] | None:
    """Device-hours and money; None if nothing is logged yet.

    Keys: device, devices, devices_known, price, rows. A row: what, wall_seconds, hours (of all devices),
    money, extrapolated. Start is the wait for a process's first batch; it and checkpoints count where
    the log tells them apart. What a process does before that is not logged.
    """
    if not run.intervals:
        return None
    world = run.machine.get("world_size")
    devices = int(gpus or world or 1)
    parts = {
        "start": sum(map(start_seconds, run.intervals)),
        "training": sum(training_seconds(run)),
        "evaluation": sum(e["seconds"] for e in run.evaluations),
        "checkpoints": sum(c["seconds"] for c in run.checkpoints),
    }
    parts = {name: seconds for name, seconds in parts.items() if seconds}
    so_far = sum(parts.values())
    rows = [_row(name, seconds, devices, price) for name, seconds in parts.items()]
    rows.append(_row("so far", so_far, devices, price))
    left = seconds_left(run)
    if left > 0:
        rows.append(_row("at the end", so_far + left, devices, price, extrapolated=True))
    return {
        "device": run.machine.get("device", "device"),
        "devices": devices,
        "devices_known": gpus is not None or world is not None,
        "price": price,
        "rows": rows,
    }


def training_seconds(run: Run) -> list[float]:
    """Seconds of every logged interval: images over rate, which excludes the start."""
    batch = run.recipe.optim.batch_size
    return [
        steps * batch / i["images_per_second"]
        for steps, i in zip(run.interval_steps, run.intervals, strict=True)
    ]


def start_seconds(interval: Line) -> float:
    return float(interval.get("split", {}).get("start", 0.0))


def seconds_left(run: Run) -> float:
    """Estimated seconds of the remaining steps and evaluations, at the median pace so far."""
    pace = median(s / n for s, n in zip(training_seconds(run), run.interval_steps, strict=True))
    training = max(0, run.total_steps - run.steps) * pace
    if not run.evaluations:
        return training
    left = run.recipe.evaluations - len(run.evaluations)
    return training + max(0, left) * median(e["seconds"] for e in run.evaluations)


def _row(
    what: str, seconds: float, devices: int, price: float | None, extrapolated: bool = False
) -> dict[str, Any]:
    hours = seconds * devices / 3600
    money = None if price is None else hours * price
    return {
        "what": what,
        "wall_seconds": seconds,
        "hours": hours,
        "money": money,
        "extrapolated": extrapolated,
    }
