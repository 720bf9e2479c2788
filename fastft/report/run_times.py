"""Numbers from a run's log: cost so far and at the end, and where the time went."""

from statistics import median
from typing import NamedTuple

from fastft.cost.bottleneck import LOADER_PARTS, LOOP_PARTS, Diagnosis, Part, diagnose, shares
from fastft.run import profile
from fastft.run.json_files import read_document
from fastft.run.run_directory import Run

MOST_OPERATIONS = 10


class CostRow(NamedTuple):
    """The time of one activity. hours, money: for all devices together. extrapolated: it includes remaining steps."""

    what: str
    wall_seconds: float
    hours: float
    money: float | None
    extrapolated: bool = False


class RunCost(NamedTuple):
    """Device-hours and money of a run. price: per device-hour. so_far: one of the rows."""

    device: str
    devices: int
    price: float | None
    rows: list[CostRow]
    so_far: CostRow


class TimeSplit(NamedTuple):
    """Where the time of the training loop and of the loader's threads went."""

    loop: list[Part]
    loader: list[Part]
    diagnosis: Diagnosis | None


class Profile(NamedTuple):
    """The longest operations in some steps, and the seconds of all. files: to link."""

    steps: int
    operations: list[profile.Operation]
    seconds: float
    files: list[str]


def run_cost(run: Run, price: float | None) -> RunCost | None:
    """Return device-hours and money, or None if nothing is logged yet.

    Set-up reads weights and opens files in each process. Head is fitting the head, its evaluation, and choosing
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

    def row(what: str, seconds: float, extrapolated: bool = False) -> CostRow:
        hours = seconds * devices / 3600
        return CostRow(what, seconds, hours, None if price is None else hours * price, extrapolated)

    total = sum(parts.values())
    so_far, left = row("so far", total), 0.0 if run.stopped else seconds_left(run)
    ending = [row("at the end", total + left, extrapolated=True)] if left > 0 else []
    return RunCost(
        device, devices, price, [*(row(*part) for part in parts.items() if part[1]), so_far, *ending], so_far
    )


def training_seconds(run: Run) -> list[float]:
    """Return the seconds in every logged interval: images over rate, which excludes the start."""
    batch = run.recipe.optim.batch_size
    return [steps * batch / i.images_per_second for steps, i in zip(run.interval_steps, run.intervals, strict=True)]


def seconds_left(run: Run) -> float:
    """Return the seconds for the remaining steps, as the log's last line says, and for the remaining evaluations."""
    training = run.intervals[-1].seconds_left
    if not run.evaluations:
        return training
    left = run.recipe.evaluations_after(run.evaluations[-1].epoch + 1)
    return training + left * median(e.seconds for e in run.evaluations)


def time_split(run: Run) -> TimeSplit | None:
    """Return the parts of the loop and the loader, and the bottleneck. Returns None if no interval has a split."""
    seconds = part_seconds(run)
    if not seconds:
        return None
    return TimeSplit(shares(seconds, LOOP_PARTS), shares(seconds, LOADER_PARTS), diagnose(seconds))


def part_seconds(run: Run) -> dict[str, float]:
    """Return the logging process's seconds by part of the loop and the loader; empty if no interval has a split."""
    splits = [interval.split for interval in run.intervals if interval.split]
    if not splits:
        return {}
    seconds = {part: sum(s.get(part, 0.0) for s in splits) for part in LOOP_PARTS + LOADER_PARTS}
    seconds["eval"] = sum(e.seconds for e in run.evaluations)
    seconds["checkpoint"] = sum(c.seconds for c in run.log.checkpoint)
    return seconds


def profiled(run: Run) -> Profile | None:
    """Return the profile of some steps (`train.profile`), or None without one.

    Raises:
        UserError: the file cannot be read.
    """
    folder = run.folder / profile.FOLDER
    stored = read_document(folder / profile.OPERATIONS, profile.Operations, "delete it")
    if stored is None:
        return None
    total = sum(operation.seconds for operation in stored.operations) or 1.0
    files = [f"{profile.FOLDER}/{name}" for name in (profile.TRACE, profile.MEMORY) if (folder / name).is_file()]
    return Profile(stored.steps, stored.operations[:MOST_OPERATIONS], total, files)
