"""Tables for docs/measurements/photos.md, which tables.py makes from results/photo_sets.jsonl and results/photos.jsonl.

Each line is a run with one seed: method, image size, epochs, CPU seconds, and `right`, which has 0 or 1 for every test
image (with the loop's last weights, or our EMA). `probe` is the accuracy in percent of the linear probe from which our
run started. A linear probe has 0 epochs. A soup has one run's epochs and the seconds of both runs.

photo_augmentation.jsonl has the losses that decide about augmentation, by photo_augmentation.py, and photo_start.jsonl
what the rise of the loss at the start of a run buys, by photo_start.py.

photo_sets.jsonl is what photo_runs.py wrote. `images` (training, test) and `classes` describe the set, `policy` is the
augmentation that a method chose (a head: its features). The runs in photos.jsonl are older. There, `set` is a title, `judge`
marks the sets that informed no value, and `values` says whether fastft's runs had the values of today.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise
from statistics import fmean
from typing import Any

import numpy as np
from photo_sets import SETS
from records import RISK, Row, facts, lines, points, told_apart_from

from beton_tools.base.console import markdown_table as markdown
from fastft.choose.budget import CAUTION
from fastft.run.chosen_weights import FEW_STEPS

LOOP_SECONDS = "fastft schedule.epochs=26"  # in about the loop's time: the loop trains 2.6 times for 10 epochs
TWENTY = "fastft schedule.epochs=20"  # in less than that time
# title -> two methods of photo_runs.py. "earlier values": fastft when the learning rate fell below 100 steps.
TRIED_RATE = {"learning rate 5e-4 instead of 3.5e-4 in 70 steps": ("earlier values", "fastft")}
# Set by hand, it does what "fastft" does by itself now where augmentation is left out.
SAME = {"fastft augment.ratio_min=1 augment.ratio_max=1": "fastft"}
TRIED_CENTRE = {"square in the centre instead of 3:4 to 4:3, squeezed": ("squeezed", "fastft")}
TRIED_LONGER = {"learning rate 3e-4 instead of 5e-4 in 20 epochs": (TWENTY, TWENTY + " optim.lr=3e-4")}
TRIED_PARTS = {
    "patch embedding trained": ("fastft", "fastft model.freeze_conv1=false"),
    "class token beside the mean patch token": ("fastft", "fastft model.pool=class+patches"),
}
# methods of photo_runs.py: without augmentation, and with what `photos` takes unless it hides the classes
AUGMENTED = (
    "fastft augment.policy=none augment.scale_min=1",
    "fastft augment.policy=rand-m9-mstd0.5-inc1 augment.scale_min=0.5",
)
TIMES = "90s", "180s", "360s"
# methods of photo_runs.py, which counts CPU seconds
BUDGETS = tuple(f"fastft schedule.budget={time}" for time in TIMES)
BUDGET = BUDGETS[1]  # takes less time than the loops
# the runs of budgets before today's rule was chosen, which informed it
EARLIER_BUDGETS = "earlier budget", *(f"earlier rule, budget {time}" for time in ("150s", "180s", "240s"))
DECIDED = 60, 300  # steps, and how many are too many, of the trainings that a budget decides about
MULTIPLES = 0, 0.25, 0.5, 0.75, 1, 1.5, 2
# words in the titles of photos.jsonl -> the set in photo_sets.py with images of the same source
DRAWN_FROM = {"stamps": "stamps", "Clip Art": "clipart", "CIFAR": "cifar", "solar cells": "cells"}
STEPS = 1, 20, 40, 60, 85, 130, 300, 700, 4000  # limits of the rows of `gains_by_steps`
# examples/timm_baseline.py computes in bf16 where the processor can, which the rows do not record
PRECISION = "fastft ran in fp32, and the loop in bf16 where the processor has it."
SMALL_BATCH, SMALL_SETS = 32, 6_000  # the recipe's batch size, and from how many images it is twice as large
EARLIER_RATE = 100  # steps below which the learning rate of the runs in photos.jsonl was lower than today's
OWN = "fastft", TWENTY, LOOP_SECONDS, *EARLIER_BUDGETS
# Methods of photo_runs.py that are stronger opponents, in fastft's precision. The loops have short trials and a long final:
# two trials of 3 epochs on four fifths of the images and 21 epochs, or four trials at two sizes and 16. Either takes about 26
# epochs of the smaller size, as the plain loop does (2 * 10 * 0.8 + 10). The head chooses between three image sizes.
HONEST = (
    "opponent trial-epochs=3 epochs=21 flips= precision=fp32",
    "opponent trial-epochs=3 epochs=16 flips= precision=fp32 image-sizes=42+84",
    "head image-sizes=42+84+126",
)
BESIDE = ("head", "opponent")  # methods of photo_runs.py that fastft is compared with
FEWEST_SETS = 3  # for a standard error over sets
WAYS = {"ours": "fastft, same size", "soup": "fastft, same size, average of two", "auto": "fastft, `auto`"}
LONG = ("soup", "auto")  # ways that were measured beside the loop's long runs
Seeds = Mapping[int, Mapping[str, Any]]  # the runs on one set with one method


def shown(gain: float, error: float, datasets: int | None = None) -> str:
    """Format points with their standard error, in bold if they are told apart from 0.

    datasets: from how many the error of a mean over datasets is. A few estimate it roughly, so their limit is higher.
    """
    limit = told_apart_from(_most_gains(), math.inf if datasets is None else datasets - 1)
    return points(gain, error, abs(gain) > limit * error)


@cache
def _most_gains() -> int:
    """Return how many gains the largest table has, which is `stronger`."""
    return 4 * len(_judges(*HONEST, TWENTY, LOOP_SECONDS, BUDGET))


def bold() -> str:
    """Say which gains are in bold."""
    gains, limit = _most_gains(), told_apart_from(_most_gains())
    return (
        "Gains in bold are told apart from 0. The limit is higher than the usual two standard errors, because the largest table "
        f"has {gains} gains: if all of them were really 0, the chance that any is in bold would be about {100 * RISK:.0f} % "
        f"(Bonferroni). It is {limit:.1f} standard errors in a row, and follows Student's t in a mean over datasets."
    )


def headline(ours: str) -> str:
    """Make a row for every set of photo_sets.py: head, loop, fastft and its gains, with the error of a mean over sets.

    ours: the method of fastft.
    """
    runs = _runs(*BESIDE, ours)
    rows = [
        [_title(name, of_set), *map(_short, of_set), *(shown(*gain) for gain in _gains(*of_set))]
        for name, of_set in runs.items()
    ]
    rows += [[f"mean of {title}", "", "", "", *gains] for title, gains in _means(runs).items()]
    head = ["dataset", "best linear head", "timm loop", "fastft", "gain over the loop", "gain over the head"]
    return markdown(head, rows)


def setting(ours: str) -> str:
    """Say where and when the runs of `headline` were made, and where fastft is below another method."""
    sets = _runs(*BESIDE, ours)
    runs = [row for methods in sets.values() for seeds in methods for row in seeds.values()]
    processor, date, commit, seed = facts(runs, "processor", "date", "commit", "seed")
    gains = {name: _gains(*methods) for name, methods in sets.items()}
    loop, fastft = (fmean(_seconds(methods[k]) for methods in sets.values()) for k in (1, 2))
    behind = [
        f"{SETS[name].title} (the {other})" for name, pair in gains.items()
        for other, (gain, _) in zip(("loop", "head"), pair, strict=True) if gain < 0
    ]  # fmt: skip
    return (
        f"{processor}, one thread, {date}, commit {commit}, seed {seed}. "
        f"{PRECISION} The loop takes {loop:.0f} s on average, including its two trials, and fastft {fastft:.0f} s. "
        f"fastft is behind on: {', '.join(behind) or 'none'}."
    )


def shorter(ours: str) -> str:
    """State the mean time and gain of a method that takes less time than the one in the table."""
    sets = _runs(*BESIDE, ours)
    seconds = fmean(_seconds(of_set[-1]) for of_set in sets.values())
    gain = shown(*_over_loop(sets))
    return f"This took {seconds:.0f} s on average and gained {gain} points over the loop ({len(sets)} datasets)."


def stronger() -> str:
    """Compare fastft with stronger opponents, on the sets that informed no value."""
    rows, columns = [], []
    sets = _judges(*HONEST, TWENTY, LOOP_SECONDS, BUDGET)
    for name, (trials, sizes, head, twenty, longer, budget) in sets.items():
        gains = _gain(twenty, trials), _gain(longer, trials), _gain(budget, sizes), _gain(budget, head)
        rows.append([SETS[name].title, *map(_short, (trials, sizes, head)), *(shown(*gain) for gain in gains)])
        columns.append(gains)
    rows.append(["mean", *[""] * 3, *(shown(*_over_sets(column)) for column in zip(*columns, strict=True))])
    titles = [
        "dataset", "loop, short trials", "loop, 42 or 84 px", "head, 42 to 126 px", "20 epochs over the loop at 42 px",
        "26 epochs over it", "budget over the loop at 42 or 84 px", "budget over the head",
    ]  # fmt: skip
    return markdown(titles, rows)


def stronger_setting() -> str:
    """Say where and when the stronger opponents were measured, and how much faster fastft was there than in the other tables."""
    sets = _judges(*HONEST, LOOP_SECONDS)
    opponents = [row for seeds in chain(*(runs[:-1] for runs in sets.values())) for row in seeds.values()]
    processor, date, commit, seed = facts(opponents, "processor", "date", "commit", "seed")
    trials, sizes, head = (fmean(_seconds(runs[k]) for runs in sets.values()) for k in range(3))
    same_day = [runs[-1] for runs in sets.values() if {0, 1} <= runs[-1].keys()]
    faster = fmean(ours[1]["cpu"] / ours[0]["cpu"] for ours in same_day)
    return (
        f"The opponents: {processor}, one thread, {date}, commit {commit}, seed {seed}. They took {trials:.0f}, {sizes:.0f} and "
        f"{head:.0f} s on average. This machine was faster than the ones in the other tables: here, fastft's 26 epochs took "
        f"{faster:.2f} times as long ({len(same_day)} datasets)."
    )


def budgets() -> str:
    """Compare budgets under the rule of today: what more time gains, and the gain over the loop that tries two sizes."""
    rows, judged = [], []
    for name, (short, middle, long) in _runs(*BUDGETS).items():
        more, most = _gain_of_time(middle, short), _gain_of_time(long, middle)
        loop = _runs(HONEST[1]).get(name, [None])[0]
        over = None if loop is None else _gain(middle, loop)
        if SETS[name].judge and over is not None:
            judged.append((more, most, over))
        precision = {str(row["precision"]) for runs in (short, middle, long, loop or {}) for row in runs.values()}
        gains = "" if loop is None or over is None else f"{shown(*over)} ({_short(loop)})"
        title = SETS[name].title + " *" * SETS[name].judge
        cells = (_figure(runs) for runs in (short, middle, long))
        rows.append([title, *cells, shown(*more), shown(*most), gains, ", ".join(sorted(precision))])
    means = [shown(*_over_sets(column)) for column in zip(*judged, strict=True)]
    rows.append([f"mean of the {len(judged)} datasets with *", *[""] * 3, *means, ""])
    head = ["dataset", *TIMES, "180s over 90s", "360s over 180s", "180s over the loop at 42 or 84 px", "precision"]
    return markdown(head, rows)


def _gain_of_time(longer: Seeds, shorter: Seeds) -> tuple[float, float]:
    """Compare two budgets by the seeds that both have, because a seed decides how images are divided for cross-validation."""
    both = longer.keys() & shorter.keys()
    return _gain({seed: longer[seed] for seed in both}, {seed: shorter[seed] for seed in both})


def budgets_worst() -> str:
    """Say where more time cost accuracy on the sets of `budgets`: those with * and the others."""
    return " ".join(
        _cost_of_time(judge, words) for judge, words in ((True, "On the datasets with *"), (False, "On the others"))
    )


def _cost_of_time(judge: bool, words: str) -> str:
    gains = {
        f"{SETS[name].title}, {after} instead of {before}": _gain_of_time(longer, shorter)
        for name, runs in _runs(*BUDGETS).items() if SETS[name].judge == judge
        for (before, shorter), (after, longer) in pairwise(zip(TIMES, runs, strict=True))
    }  # fmt: skip
    lost = [f"{where}: {shown(*pair)} points" for where, pair in gains.items() if pair[0] < 0]
    where = f" ({'; '.join(lost)})" if lost else ""
    return f"{words}, more time cost accuracy in {len(lost) or 'none'} of {len(gains)} comparisons{where}."


def budgets_setting() -> str:
    """Say where and when the runs of `budgets` were made, and how long they took."""
    runs = [row for of_set in _runs(*BUDGETS).values() for seeds in of_set for row in seeds.values()]
    processor, date, commit, seed = facts(runs, "processor", "date", "commit", "seed")
    seconds = (
        f"{fmean(_seconds(of_set[k]) for of_set in _runs(*BUDGETS).values()):.0f} s" for k in range(len(BUDGETS))
    )
    return (
        f"{processor}, one thread, {date}, commit {commit}, seed {seed}. The runs took {', '.join(seconds)} on average."
    )


def budgets_stopped() -> str:
    """Say on how many sets the longest budget stopped at its probe, and where we have a better training run."""
    stopped = {n: r[-1] for n, r in _runs(*BUDGETS).items() if not any(row["epochs"] for row in r[-1].values())}
    better = []
    for name, probe in stopped.items():
        own = [row for row in lines("photo_sets") if row["set"] == name and row["epochs"] and "probe" in row]
        best = max(own, key=_top1, default=None)
        if best is not None and fmean(best["right"]) > _right(probe).mean():
            better.append(f"{SETS[name].title}: {_figure(probe)} instead of {_figure({0: best})}")
    return (
        f"With {TIMES[-1]}, fastft stopped at a linear probe on {len(stopped)} of these datasets. "
        f"We have a better training run on {len(better) or 'none'} of them{' (' + '; '.join(better) + ')' if better else ''}."
    )


def budgets_undecided() -> str:
    """Say where one seed stopped at its probe and the other trained, with the same budget, and what each reached."""
    differ = []
    for name, of_set in _runs(*BUDGETS).items():
        for time, seeds in zip(TIMES, of_set, strict=True):
            probes, trained = (
                {seed: row for seed, row in seeds.items() if bool(row["epochs"]) == is_trained}
                for is_trained in (False, True)
            )
            if probes and trained:
                reached = (f"{100 * _right(runs).mean():.1f}" for runs in (probes, trained))
                differ.append(f"{SETS[name].title}, {time}: {' and '.join(reached)}")
    return f"The probe's accuracy and that of the trained model: {'; '.join(differ)}."


def heads() -> str:
    """Compare the linear probe that a run starts from, and is compared with, with the best of the four linear heads."""
    gains = [
        (fmean(row["probe"] for row in ours.values()) - 100 * float(_right(cheap).mean()), 0.0)
        for cheap, ours in _runs("head", "fastft").values()
    ]
    return (
        f"On these {len(gains)} datasets, the linear probe's top-1 minus the best linear head's top-1 is "
        f"{shown(*_over_sets(gains))} points on average."
    )


def tried(changes: Mapping[str, tuple[str, str]]) -> str:
    """Make a row for every set on which a change was tried, and one for the mean where there are enough sets."""
    rows = []
    for title, methods in changes.items():
        pairs = _runs(*methods)
        gains = [_gain(after, before) for before, after in pairs.values()]
        rows += [
            [title, SETS[name].title, *map(_short, pair), shown(*gain)]
            for (name, pair), gain in zip(pairs.items(), gains, strict=True)
        ]
        if len(gains) >= FEWEST_SETS:
            rows.append([title, f"mean of {len(gains)} datasets", "", "", shown(*_over_sets(gains))])
    return markdown(["change", "dataset", "without", "with", "gain"], rows)


def augmentation() -> str:
    """Make a row for every set: what is left of a probe's knowledge, and what augmentation gains where it was trained."""
    rows, trained = [], _runs(*AUGMENTED)
    for row in sorted(lines("photo_augmentation"), key=lambda row: row["kept"]):
        pair = trained.get(row["set"])
        cells = ["", "", ""] if pair is None else [*map(_short, pair), shown(*_gain(*reversed(pair)))]
        losses = (f"{row[key]:.2f}" for key in ("class_shares", "plain", "augmented"))
        rows.append([SETS[row["set"]].title, *losses, f"{100 * row['kept']:.0f} %", *cells])
    head = ["dataset", "guessing", "unchanged", "augmented", "what is left", "trained without", "trained with", "gain"]
    return markdown(head, rows)


def start() -> str:
    """Make a row for every set and learning rate: the loss at the start, accuracy, and how far the features have moved."""
    columns = {
        "dataset": lambda r: SETS[r["set"]].title, "learning rate": lambda r: r["lr"],
        "highest loss": lambda r: f"{r['highest']:.1f}", "last loss": lambda r: f"{r['last']:.2f}",
        "linear probe": lambda r: f"{r['probe']:.1f}", "after training": lambda r: f"{r['trained']:.1f}",
        "new head on the features": lambda r: f"{r['new_head']:.1f}",
        "cosine to the features before": lambda r: f"{r['cosine']:.2f}",
    }  # fmt: skip
    return markdown(list(columns), [[cell(row) for cell in columns.values()] for row in lines("photo_start")])


def resized() -> str:
    """Make a row for every run that is evaluated at a larger size: accuracy at the size in training and at that one."""
    rows: list[list[str]] = []
    gains: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(lines("photo_sets"), key=lambda row: (row["image_size"], list(SETS).index(row["set"]))):
        if "evaluated_size" not in row or row["method"].startswith("fastft train."):  # ten epochs: with twenty, too
            continue
        before, after, made = row["unresized"], _top1(row), SETS[row["set"]]
        sizes = f"{row['image_size']} and {row['evaluated_size']}"
        gains.setdefault(sizes, []).append((after - before, 0.0))
        cells = str(row["epochs"]), sizes, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"
        rows.append([made.title + " *" * made.judge, *cells])
    for sizes, of_sizes in gains.items():
        rows.append([f"mean of {len(of_sizes)} datasets", "", sizes, "", "", shown(*_over_sets(of_sizes))])
    head = [
        "dataset",
        "epochs",
        "pixels in training and evaluation",
        "evaluated at the smaller",
        "at the larger",
        "gain",
    ]
    return markdown(head, rows)


def gains_by_steps() -> str:
    """Tabulate the mean part of a linear probe's errors that training removes, by the number of steps."""
    rows = []
    for low, high in pairwise(STEPS):
        parts = [part for found in _removed(low, high).values() for part in found]
        rows.append([f"{low:,} to {high - 1:,}", str(len(parts)), f"{100 * fmean(parts):.0f} %"])
    return markdown(["steps", "datasets and image sizes", "part of the probe's errors that training removes"], rows)


def _removed(low: int, high: int) -> dict[str, list[float]]:
    """Return the parts of a probe's errors that trainings of `low` to `high` - 1 steps removed, for each source of sets."""
    same: dict[tuple[str, int, int], list[Row]] = {}
    for row in _informing():
        if low <= _steps(row) < high:
            same.setdefault((row["set"], row["image_size"], _steps(row)), []).append(row)
    found: dict[str, list[float]] = {}
    for (name, *_), runs in same.items():
        probe, top1 = fmean(r["probe"] for r in runs), fmean(map(_top1, runs))
        found.setdefault(_source(name), []).append((top1 - probe) / (100 - probe))
    return found


def _source(name: str) -> str:
    """Return the set of photo_sets.py that has the images of a set, whose name in photos.jsonl is a title."""
    return name if name in SETS else next(key for words, key in DRAWN_FROM.items() if words in name)


def spread() -> str:
    """Tabulate, for each source, the part of a probe's errors that training removes, with the spread over sources."""
    parts = {name: fmean(found) for name, found in _removed(*DECIDED).items()}
    rows = [[SETS[name].title, f"{100 * part:.0f} %"] for name, part in parts.items()]
    mean, deviation = _mean_and_deviation(parts.values())
    rows.append(["mean, standard deviation", f"{100 * mean:.0f} %, {100 * deviation:.0f} points"])
    return markdown(["source", f"part that {DECIDED[0]} to {DECIDED[1] - 1} steps remove"], rows)


def _mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return fmean(found), float(np.std(found, ddof=1))


def caution() -> str:
    """Tabulate what each multiple of the spread costs where a training is compared with the best probe at a larger size.

    Mean and spread are those of the other sources.
    """
    rows = []
    for multiple in MULTIPLES:
        lost, timid, harmful = zip(*(_lost(name, multiple) for name in _compared_sets()), strict=True)
        rows.append([f"{multiple:g}", f"{fmean(lost):.1f}", f"{max(timid):.1f}", f"{max(harmful):.1f}"])
    head = [
        "multiple",
        "points lost, mean over datasets",
        "most points lost by preferring a probe",
        "by preferring a training run",
    ]
    return markdown(head, rows)


def caution_sets() -> str:
    """Say which sets `caution` is about."""
    sets = [SETS[name].title for name in _compared_sets()]
    trainings = sum(len(_trainings(name)) for name in _compared_sets())
    return f"{len(sets)} datasets, {trainings} training runs with {DECIDED[0]} to {DECIDED[1] - 1} steps: {', '.join(sets)}."


def caution_judged() -> str:
    """Say in how many runs, on the sets that judge it, another multiple of the spread chose the same."""
    runs = [row for row in lines("photo_sets") if row["method"] == BUDGET and "same_without_caution" in row]
    sets, same = {row["set"] for row in runs}, sum(row["same_without_caution"] for row in runs)
    return (
        f"On these {len(sets)} datasets, with {TIMES[1]} and two seeds, the multiples 0 and {CAUTION:g} chose the same image "
        f"size and epochs in {same} of {len(runs)} runs."
    )


def _lost(name: str, multiple: float) -> tuple[float, float, float]:
    """Return the mean points lost against the better of both, the most by a preferred probe, and by a training."""
    others = (fmean(found) for source, found in _removed(*DECIDED).items() if source != _source(name))
    mean, deviation = _mean_and_deviation(others)
    lost: dict[bool, list[float]] = {True: [], False: []}
    for probe, trained, larger in _trainings(name):
        is_trained = probe + (100 - probe) * (mean - multiple * deviation) > larger
        lost[is_trained].append(max(trained, larger) - (trained if is_trained else larger))
    return fmean([*lost[True], *lost[False]]), max(lost[False], default=0.0), max(lost[True], default=0.0)


def _compared_sets() -> list[str]:
    return [name for name, made in SETS.items() if not made.judge and _trainings(name)]


def _trainings(name: str) -> list[tuple[float, float, float]]:
    """Return for each training on a set: top-1 of its probe, of the trained model, and of the best probe at a larger size."""
    own = [row for row in lines("photo_sets") if row["set"] == name]
    probes: dict[int, float] = {row["image_size"]: row["probe"] for row in own if "probe" in row}
    probes |= {row["image_size"]: _top1(row) for row in own if row["method"].startswith("probe ")}
    trained: dict[tuple[int, int], list[Row]] = {}
    for row in own:
        if SAME.get(row["method"], row["method"]) in OWN and DECIDED[0] <= _steps(row) < DECIDED[1]:
            trained.setdefault((row["image_size"], _steps(row)), []).append(row)
    found = []
    for (size, _), runs in trained.items():
        larger = [top1 for other, top1 in probes.items() if other > size]
        if larger:
            found.append((fmean(row["probe"] for row in runs), fmean(map(_top1, runs)), max(larger)))
    return found


def _informing() -> Iterator[Row]:
    """Return fastft's runs with today's values, without the sets with *, because the means decide in fastft.choose.budget.

    Runs in photos.jsonl with fewer steps than EARLIER_RATE are left out too: they had a lower learning rate.
    """
    for row in lines("photos"):
        if row.get("values") == "today's" and "probe" in row and not row["judge"] and _steps(row) >= EARLIER_RATE:
            yield row
    for row in lines("photo_sets"):
        if SAME.get(row["method"], row["method"]) in OWN and not SETS[row["set"]].judge:
            yield row


def few_steps() -> str:
    """Count the runs that ended below the linear probe that they started from, among those with few steps and the others."""
    trained = [row for row in lines("photos") + lines("photo_sets") if "probe" in row and row["epochs"]]
    few, many = (
        [_top1(row) < row["probe"] for row in trained if (_steps(row) < FEW_STEPS) == is_few]
        for is_few in (True, False)
    )
    return (
        f"{sum(few)} of the {len(few)} runs with fewer than {FEW_STEPS} steps ended below the linear probe that they "
        f"started from, and {sum(many) or 'none'} of the {len(many)} longer ones."
    )


def _steps(row: Row) -> int:
    images = int(row["images"][0])
    return int(row["epochs"]) * (images // min(images, SMALL_BATCH if images < SMALL_SETS else 2 * SMALL_BATCH))


def _top1(row: Row) -> float:
    return 100 * fmean(row["right"])


def sources() -> str:
    """Tabulate where the sets are from."""
    trained = {row["set"] for row in lines("photo_sets")}
    sets = (made for name, made in SETS.items() if name in trained)
    rows = [[made.title + " *" * made.judge, made.source, made.licence] for made in sets]
    return markdown(["dataset", "source", "licence"], rows)


def summary() -> str:
    """Return the README's sentences, about the sets on which nothing was tuned and the strongest opponents."""
    sets = _judges(*HONEST, TWENTY, BUDGET, "head")
    pairs = [
        (_gain(twenty, head), _gain(twenty, trials), _gain(budget, sizes), _gain(budget, large))
        for trials, sizes, large, twenty, budget, head in sets.values()
    ]
    over_head, over_loop, over_sizes, over_large = (shown(*_over_sets(gains)) for gains in zip(*pairs, strict=True))
    return (
        f"With a small ViT at 42 px, fine-tuning with fastft was {over_head} points of top-1 above the best linear head at that "
        f"size, and {over_loop} points above a timm loop, which chose its augmentation with short trials and took "
        "about the same time. With a time budget (`--schedule.budget`), fastft also chooses the image size. It was then "
        f"{over_sizes} points above such a loop that tries two image sizes, and {over_large} points above the best linear head "
        f"at 42 to 126 px. These are means over the {len(sets)} datasets on which nothing was tuned, computed in fp32, each with "
        "its standard error over datasets. "
        "[Measurements](docs/measurements/photos.md) describes the opponents and the datasets. [The guide](docs/photos.md) also "
        "covers tables, several labels per image and wrong labels."
    )


def _judges(*methods: str) -> dict[str, list[Seeds]]:
    """Return the runs for the sets that informed no value."""
    return {name: runs for name, runs in _runs(*methods).items() if SETS[name].judge}


def _title(name: str, runs: Sequence[Seeds]) -> str:
    row = next(iter(runs[-1].values()))
    return f"{SETS[name].title}{' *' * SETS[name].judge}, {' / '.join(map(str, row['images']))}, {row['classes']}"


def _gains(cheap: Seeds, loop: Seeds, ours: Seeds) -> list[tuple[float, float]]:
    return [_gain(ours, loop), _gain(ours, cheap)]


def _means(runs: Mapping[str, Sequence[Seeds]]) -> dict[str, list[str]]:
    """Return the gains over loop and head, averaged over all sets and over those with *, where there are enough."""
    judges = [name for name in runs if SETS[name].judge]
    groups = {f"all {len(runs)} datasets": list(runs), f"the {len(judges)} datasets with *": judges}
    return {
        title: [shown(*_over_sets(column)) for column in zip(*(_gains(*runs[name]) for name in names), strict=True)]
        for title, names in groups.items() if len(names) >= FEWEST_SETS
    }  # fmt: skip


def _runs(*methods: str) -> dict[str, list[Seeds]]:
    """Return the runs of photo_runs.py for each set that has all methods, in the order of SETS."""
    found = _sets(*methods, file="photo_sets")
    return {name: found[name] for name in SETS if name in found}


def _over_sets(gains: Iterable[tuple[float, float]]) -> tuple[float, float, int]:
    """Return (mean, standard error, datasets) in points, where the sets are a sample of those that a reader may have."""
    points = [gain for gain, _ in gains]
    return fmean(points), float(np.std(points, ddof=1)) / len(points) ** 0.5, len(points)


def _over_loop(sets: Mapping[str, Sequence[Seeds]]) -> tuple[float, float, int]:
    return _over_sets(_gains(*of_set)[0] for of_set in sets.values())


def _short(seeds: Seeds) -> str:
    return f"{100 * _right(seeds).mean():.1f} ({_seconds(seeds):.0f} s)"


def beside(what: str, how: str, ways: Sequence[str], title: str = "timm loop") -> str:
    """Make a row for every set that has all ways: `what`, then each way with its gain. how: ends the ways' methods."""
    rows, gains = [], []
    for name, (base, *others) in _sets(what, *(way + how for way in ways)).items():
        gains.append([_gain(other, base) for other in others])
        cells = ((_figure(other), shown(*gain)) for other, gain in zip(others, gains[-1], strict=True))
        rows.append([name, _figure(base), *chain.from_iterable(cells)])
    means = chain.from_iterable(("", shown(*_over_sets(column))) for column in zip(*gains, strict=True))
    head = chain.from_iterable((WAYS[way], "gain") for way in ways)
    return markdown(["dataset", title, *head], [*rows, ["mean", "", *means]])


def _sets(*methods: str, file: str = "photos") -> dict[str, list[Seeds]]:
    """Return the runs for each set that has all methods."""
    found: dict[str, dict[Any, dict[int, Any]]] = {}
    for row in lines(file):
        method = SAME.get(row["method"], row["method"])
        found.setdefault(row["set"], {}).setdefault(method, {})[row["seed"]] = row
    return {name: [by[m] for m in methods] for name, by in found.items() if by.keys() >= set(methods)}


def _gain(ours: Seeds, loop: Seeds) -> tuple[float, float]:
    """Return (points, standard error) for the difference between the means over seeds, paired by image.

    The standard error is computed over images. With several seeds of both, it is the larger of this and the standard
    error over seeds, paired by seed.
    """
    gains_N = _right(ours) - _right(loop)
    seeds = [fmean(ours[s]["right"]) - fmean(loop[s]["right"]) for s in ours.keys() & loop.keys()]
    spreads = [np.std(g, ddof=1) / len(g) ** 0.5 for g in (gains_N, seeds) if len(g) > 1]
    return 100 * float(gains_N.mean()), 100 * float(max(spreads))


def _right(seeds: Seeds) -> np.ndarray:
    """Return for every image the fraction of runs that are right, float64 (N,)."""
    return np.mean([row["right"] for row in seeds.values()], axis=0)


def _figure(seeds: Seeds) -> str:
    """Format mean top-1 in percent. For a run, add the linear probe's top-1, image size, epochs and CPU seconds.

    A run of 0 epochs stopped at its probe, whose top-1 is that of the run.
    """
    runs = list(seeds.values())
    top1, seconds, trained = 100 * _right(seeds).mean(), _seconds(seeds), any(row["epochs"] for row in runs)
    if not trained and "probe" not in runs[0]:
        return f"{top1:.1f}"
    head = ""
    if "probe" in runs[0]:
        head = f"head {fmean(row['probe'] for row in runs):.1f}; " if trained else "head; "
    size, epochs = (" or ".join(map(str, sorted({row[key] for row in runs}))) for key in ("image_size", "epochs"))
    return f"{top1:.1f} ({head}{size} px, epochs: {epochs}, {seconds:.0f} s)"


def _seconds(seeds: Seeds) -> float:
    return fmean(row["cpu"] for row in seeds.values())
