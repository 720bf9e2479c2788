"""Tables for docs/measurements/photos.md, which tables.py makes from results/photo_sets.jsonl and results/photos.jsonl.

Each line is a run with one seed: method, image size, epochs, CPU seconds, and `right`, which has 0 or 1 for every test
image (with the loop's last weights, or our EMA). `probe` is the accuracy in percent of the linear probe from which our
run started. A linear probe has 0 epochs. A soup has one run's epochs and the seconds of both runs.

photo_sets.jsonl is what photo_runs.py wrote. `images` and `classes` describe the set, `policy` is the augmentation that a
method chose (a head: its features). The runs in photos.jsonl are older.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from photo_sets import SETS
from study import shown, trainings

from beton_tools.base.console import markdown_table as markdown

WAYS = {"ours": "fastft, same size", "soup": "fastft, same size, average of two", "auto": "fastft, `auto`"}
CONTENDERS = ("head", "opponent", "fastft")  # methods of photo_runs.py
TRIED: dict[str, tuple[str, str]] = {}
SHORT, LONG = ("ours", "auto"), ("soup", "auto")  # ways that were measured beside the loop's short and long runs
Seeds = Mapping[int, Mapping[str, Any]]  # the runs on one set with one method


def headline() -> str:
    """Make a row for every set of photo_sets.py: head, loop, fastft and its gains, with the error of a mean over sets."""
    rows, gains = [], {}
    for name, (cheap, loop, ours) in _runs(*CONTENDERS).items():
        gains[name] = [_gain(ours, loop), _gain(ours, cheap)]
        row = next(iter(ours.values()))
        title = (
            f"{SETS[name].title}, {row['images'][0]} / {row['images'][1]}, {row['classes']}{' *' * SETS[name].judge}"
        )
        rows.append([title, *map(_short, (cheap, loop, ours)), *(shown(*gain) for gain in gains[name])])
    for title, kinds in (("mean", (False, True)), ("mean of the sets with *", (True,))):
        columns = zip(*(gains[name] for name in gains if SETS[name].judge in kinds), strict=True)
        rows.append([title, "", "", "", *(shown(*_over_sets(column)) for column in columns)])
    return markdown(
        ["set", "best linear head", "timm loop", "fastft", "gain over the loop", "gain over the head"], rows
    )


def headline_setting() -> str:
    """Say where and when the runs of `headline` were made."""
    runs = [row for name in _runs(*CONTENDERS).values() for method in name for row in method.values()]
    facts = {key: ", ".join(sorted({row[key] for row in runs})) for key in ("processor", "date", "commit")}
    seeds = sorted({len(method) for name in _runs(*CONTENDERS).values() for method in name})
    return (
        f"{facts['processor']}, one thread, fp32, {facts['date']}, commit {facts['commit']}; "
        f"{' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])} of each method."
    )


def choices() -> str:
    """Make a row for every change that was tried: its gain on the sets that chose, and on the others where it was run."""
    rows = []
    for title, (before, after) in TRIED.items():
        cells = []
        for judge in (False, True):
            pairs = {name: pair for name, pair in _runs(before, after).items() if SETS[name].judge == judge}
            gains = [_gain(*reversed(_same_seeds(*pair))) for pair in pairs.values()]
            cells.append(f"{shown(*_over_sets(gains))} ({len(gains)} sets)" if len(gains) > 1 else "")
        rows.append([title, *cells])
    return markdown(["change", "sets that chose", "judge sets"], rows)


def _runs(*methods: str) -> dict[str, list[Seeds]]:
    """Return the runs of photo_runs.py for each set that has all methods, in the order of SETS."""
    found = _sets(*methods, file="photo_sets")
    return {name: found[name] for name in SETS if name in found}


def _same_seeds(*runs: Seeds) -> list[Seeds]:
    both = set.intersection(*(set(seeds) for seeds in runs))
    return [{seed: row for seed, row in seeds.items() if seed in both} for seeds in runs]


def _over_sets(gains: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return (mean, standard error) in points, where the sets are a sample of those that a reader may have."""
    points = [gain for gain, _ in gains]
    return fmean(points), float(np.std(points, ddof=1)) / len(points) ** 0.5


def _short(seeds: Seeds) -> str:
    return f"{100 * _right(seeds).mean():.1f} ({_seconds(seeds):.0f} s)"


def beside(what: str = "loop", how: str = "", ways: Sequence[str] = SHORT, title: str = "timm loop") -> str:
    """Make a row for every set that has all ways: `what`, then each way with its gain. how: ends the ways' methods."""
    rows, gains = [], []
    for name, (base, *others) in _sets(what, *(way + how for way in ways)).items():
        gains.append([_gain(other, base) for other in others])
        cells = ((_figure(other), shown(*gain)) for other, gain in zip(others, gains[-1], strict=True))
        rows.append([name, _figure(base), *chain.from_iterable(cells)])
    means = chain.from_iterable(("", shown(*_mean(column))) for column in zip(*gains, strict=True))
    head = chain.from_iterable((WAYS[way], "gain") for way in ways)
    return markdown(["set", title, *head], [*rows, ["mean", "", *means]])


def summary() -> str:
    """Return the README's table and its sentence."""
    long, one = "loop, whole length", "ours, whole length"
    pairs = _sets(long, one).values()
    share = sum(_seconds(ours) for _, ours in pairs) / sum(_seconds(loop) for loop, _ in pairs)
    mean, long_auto = (_mean_gain(long, f"{way}, whole length, as many seconds") for way in LONG)
    table = markdown(
        ["CPU time", "same image size, 42 px", "with `--model.image_size=auto`"],
        [
            ["10 epochs of the loop", *(_mean_gain("loop", f"{way}, as many seconds") for way in SHORT)],
            ["84 to 167 epochs of the loop", f"{mean} (average of two runs)", long_auto],
        ],
    )
    return (
        "Top-1 gain in percentage points over a [plain timm loop](docs/measurements/photos.md), which is not tuned, in the same "
        f"CPU time (mean over {len(_sets('loop'))} datasets with 217 to 393 images, a small ViT):\n\n{table}\n\n"
        f"With the same image size and number of epochs (50 to 167), the difference is {_mean_gain(long, one)} points, in "
        f"{100 * share:.0f} % of the time."
    )


def _mean_gain(loop: str, way: str) -> str:
    """Average the gain over the sets that have both methods, in words."""
    return shown(*_mean([_gain(ours, base) for base, ours in _sets(loop, way).values()]))


def _sets(*methods: str, file: str = "photos") -> dict[str, list[Seeds]]:
    """Return the runs for each set that has all methods."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for row in trainings(file):
        found.setdefault(row["set"], {}).setdefault(row["method"], {})[row["seed"]] = row
    return {name: [by[m] for m in methods] for name, by in found.items() if by.keys() >= set(methods)}


def _mean(gains: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (points, standard error), averaged over sets."""
    points, errors = zip(*gains, strict=True)
    return fmean(points), float(np.linalg.norm(errors)) / len(gains)


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
    """Format mean top-1 in percent. For a run, add the linear probe's top-1, image size, epochs and CPU seconds."""
    rows = list(seeds.values())
    top1, seconds = 100 * _right(seeds).mean(), _seconds(seeds)
    if not rows[0]["epochs"]:
        return f"{top1:.1f}"
    head = f"head {fmean(row['probe'] for row in rows):.1f}; " if "probe" in rows[0] else ""
    size, epochs = (" or ".join(map(str, sorted({row[key] for row in rows}))) for key in ("image_size", "epochs"))
    return f"{top1:.1f} ({head}{size} px, epochs: {epochs}, {seconds:.0f} s)"


def _seconds(seeds: Seeds) -> float:
    return fmean(row["cpu"] for row in seeds.values())
