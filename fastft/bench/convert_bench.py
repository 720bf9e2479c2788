"""Conversion speed compared with FFCV's own writer, which decodes and re-encodes every image."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from beton_tools.base.names import Names
from fastft.bench.child import Arm
from fastft.bench.dataset import MAX_SIDE, ORIGINAL
from fastft.bench.harness import Options
from fastft.bench.measure import CPU, CPU_RATE, WALL, WALL_RATE, Figure, Plan, Row, Variant, entered
from fastft.bench.task import Entry, Task, Work
from fastft.bench.ways import build

SIDES: dict[str, int | None] = {"kept": None, f"at most {MAX_SIDE} px": MAX_SIDE}
REPEAT = 2  # passes over the images, so that a round is long compared with its start


def speed(options: Options) -> Iterator[Variant]:
    """Convert on all cores. CPU time includes all worker processes."""
    folder = options.workspace.beton(ORIGINAL).parent  # writes the class folders too
    files = {"folder": str(folder / "originals"), "scratch": str(folder)}
    task = Task(Work.CONVERT, files, 0, 0, options.threads, 1 if options.quick else REPEAT)
    common = {"images": options.images * task.repeat, "workers": options.threads}
    yield Variant(entered(options, task, by_side, ours=__name__), {}, common, options.threads)


ABOUT = "Original JPEGs in class folders to a .beton, by image size."
ARMS = {side: {"size": side} for side in SIDES}
PLANS = (
    Plan("convert.speed", 200, [
        Figure(
            "convert.speed", "Conversion", WALL_RATE, WALL, ABOUT, arms=ARMS,
            rows=[Row("convert, sizes kept", "FFCV DatasetWriter", {"size": "kept"})],
        ),
        Figure("convert.core", "Conversion, CPU time", CPU_RATE, CPU, ABOUT, arms=ARMS),
    ], speed),
)  # fmt: skip

# in the contender's process ------------------------------------------------------------------------------------------


def by_side(**given: Any) -> dict[str, Arm]:
    """Return an arm for each limit of the images' size."""
    convert = build(**given)
    return {name: partial(convert, side) for name, side in SIDES.items()}


def ours(task: Task, lossless: bool) -> Callable[[int | None], int]:
    from beton_tools.sources import open_source
    from beton_tools.write.writer import WriteOptions, write_beton

    one = open_source(task.files["folder"])
    names, labels = Names.of(list(one.names) * task.repeat), np.tile(one.labels, task.repeat)
    source, path = replace(one, names=names, labels=labels), Path(task.files["scratch"]) / f"ours-{lossless}.beton"

    def run(side: int | None) -> int:
        write_beton(path, source, WriteOptions(max_resolution=side, workers=task.threads, lossless=lossless))
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink()
        return len(source.labels)

    return run


ENTRIES = (
    Entry("fastft", "fastft", ours, {Work.CONVERT: ()}, {"lossless": True}),
    Entry(
        "fastft, re-encoding", "fastft", ours, {Work.CONVERT: ("decodes and encodes every image",)}, {"lossless": False}
    ),
)
