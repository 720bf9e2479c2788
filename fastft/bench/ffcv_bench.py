"""fastft's decoder and augmentation as operations in stock FFCV's Loader, compared with FFCV's own operations."""

from dataclasses import replace

from fastft.bench.contenders import ffcv, ours
from fastft.bench.contenders.registry import contender
from fastft.bench.contenders.task import CROP, RECIPE, Loader, Task
from fastft.bench.dataset import RESIZED
from fastft.bench.harness import Contender, Findings, Options, Planned, alternate, case, per_cpu_second
from fastft.bench.loader_bench import PER_CPU_SECOND, setting, task
from fastft.machine.bench_result import OURS, Measure

STOCK, NORMALISED, DECODER, OPERATIONS = ffcv.LOADERS


def loader(options: Options) -> Findings:
    cases = []
    asked = task(options, CROP)
    for title, work, chosen in (
        ("crop and flip, uint8", CROP, (DECODER, STOCK)),
        ("crop, flip, normalise", CROP, (OPERATIONS, NORMALISED)),
        ("whole recipe", RECIPE, (OPERATIONS, ours.LOADERS[0])),
    ):  # fmt: skip
        found = [_contender(one, replace(asked, work=work)) for one in chosen]
        rounds = alternate(found, options.rounds, 1)
        cases.append(case(rounds, "pass", per_cpu_second, {"work": title}))
    yield Measure(
        key="ffcv.loader", bench="ffcv", title="FFCV's Loader with fastft's operations", unit=PER_CPU_SECOND,
        about="FFCV's Loader with fastft's operations and with FFCV's own, one worker.", cases=cases,
        setting=setting(asked, RESIZED, options),
    )  # fmt: skip


def _contender(one: Loader, asked: Task) -> Contender:
    """Return the row. fastft's operations in FFCV's Loader get the name for which ratios are taken."""
    file = "ours" if one is ours.LOADERS[0] else "ffcv"
    made = contender(file, one, asked)
    if one in (DECODER, OPERATIONS):
        return replace(made, name=OURS, differences=("its operations in FFCV's Loader", *made.differences))
    return replace(made, name="fastft's own loader") if file == "ours" else made


MEASURES = (Planned("ffcv.loader", loader, 60),)
