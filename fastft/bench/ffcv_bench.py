"""fastft's decoder and augmentation as operations in stock FFCV's Loader, compared with FFCV's own operations."""

from collections.abc import Iterator
from dataclasses import replace

from fastft.bench.contenders.ffcv import DECODER, NORMALISED, OPERATIONS, STOCK
from fastft.bench.harness import Contender, Options
from fastft.bench.loader_bench import common, loader_task
from fastft.bench.measure import CPU, CPU_RATE, LOADER, Figure, Plan, Row, Variant, enter, enter_as
from fastft.bench.ours import ENTRIES as OUR_ENTRIES
from fastft.bench.task import CROP, RECIPE, Entry, Task, peer_module
from fastft.machine.bench_result import OURS

UINT8 = "crop and flip, uint8"


def loader(options: Options) -> Iterator[Variant]:
    task = loader_task(options, CROP)
    for title, work, ours, other in (
        (UINT8, CROP, DECODER, STOCK),
        ("crop, flip, normalise", CROP, OPERATIONS, NORMALISED),
        ("whole recipe", RECIPE, OPERATIONS, OUR_ENTRIES[0]),
    ):
        asked = replace(task, work=work)
        yield Variant([in_ffcv(ours, asked), beside(other, asked)], {"work": title}, common(task, options))


def in_ffcv(entry: Entry, task: Task) -> Contender:
    """Return fastft's operations in FFCV's Loader under the name for which ratios are taken."""
    return enter_as(enter(peer_module("ffcv"), entry, task), OURS, "its operations in FFCV's Loader")


def beside(entry: Entry, task: Task) -> Contender:
    ours = entry is OUR_ENTRIES[0]
    made = enter(LOADER if ours else peer_module("ffcv"), entry, task)
    return enter_as(made, "fastft's own loader") if ours else made


PLANS = (
    Plan("ffcv.loader", 60, [Figure(
        "ffcv.loader", "FFCV's Loader with fastft's operations", CPU_RATE, CPU,
        about="FFCV's Loader with fastft's operations and with FFCV's own, one worker.",
        rows=[Row("FFCV's Loader, fastft's decoder", "stock FFCV", {"work": UINT8})],
    )], loader),
)  # fmt: skip
