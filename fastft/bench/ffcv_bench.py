"""fastft's decoder and augmentation as operations in stock FFCV's Loader, compared with FFCV's own operations."""

from collections.abc import Iterator
from dataclasses import replace

from fastft.bench.contenders.ffcv import DECODER, NORMALISED, OPERATIONS, STOCK
from fastft.bench.harness import Options
from fastft.bench.loader_bench import common, loader_task
from fastft.bench.measure import CPU, CPU_RATE, LOADER, Figure, Plan, Row, Variant, enter, enter_as
from fastft.bench.ours import ENTRIES as OUR_ENTRIES
from fastft.bench.task import Work, peer_module
from fastft.machine.bench_result import OURS

FFCV = peer_module("ffcv")
UINT8 = "crop and flip, uint8"


def loader(options: Options) -> Iterator[Variant]:
    """Run fastft's operations in FFCV's Loader under the name for which ratios are taken."""
    task, (own,) = loader_task(options, Work.CROP), OUR_ENTRIES
    for title, work, ours, other in (
        (UINT8, Work.CROP, DECODER, STOCK),
        ("crop, flip, normalise", Work.CROP, OPERATIONS, NORMALISED),
        ("whole recipe", Work.RECIPE, OPERATIONS, None),
    ):
        asked = replace(task, work=work)
        in_ffcv = enter_as(enter(FFCV, ours, asked), OURS, "its operations in FFCV's Loader")
        beside = enter(FFCV, other, asked) if other else enter_as(enter(LOADER, own, asked), "fastft's own loader")
        yield Variant([in_ffcv, beside], {"work": title}, common(task, options))


PLANS = (
    Plan("ffcv.loader", 60, [Figure(
        "ffcv.loader", "FFCV's Loader with fastft's operations", CPU_RATE, CPU,
        about="FFCV's Loader with fastft's operations and with FFCV's own, one worker.",
        rows=[Row("FFCV's Loader, fastft's decoder", "stock FFCV", {"work": UINT8})],
    )], loader),
)  # fmt: skip
