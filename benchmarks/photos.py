"""Tables for docs/measurements/photos.md, which tables.py makes from the runs in results/photos.jsonl.

Each line is a run with one seed: method, image size, epochs, CPU seconds, and `right`, which has 0 or 1 for every test
image (with the loop's last weights, or our EMA). `probe` is the accuracy in percent of the linear probe from which our
run started. A linear probe has 0 epochs. A soup has one run's epochs and the seconds of both runs.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from study import shown, trainings

from beton_tools.base.console import markdown_table as markdown

WAYS = {"ours": "fastft, same size", "soup": "fastft, same size, average of two", "auto": "fastft, `auto`"}
SHORT, LONG = ("ours", "auto"), ("soup", "auto")  # ways that were measured beside the loop's short and long runs
Seeds = Mapping[int, Mapping[str, Any]]  # the runs on one set with one method


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


def _sets(*methods: str) -> dict[str, list[Seeds]]:
    """Return the runs for each set that has all methods."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for row in trainings("photos"):
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
