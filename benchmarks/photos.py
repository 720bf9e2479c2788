"""Tables of docs/photos.md beside a plain loop of timm, made by tables.py from the trainings in results/photos.jsonl.

Each line is a training with one seed: method, image size, epochs, CPU seconds, `right` with 0 or 1 for every test image (by the
loop's last weights, by our EMA), and `probe`, the percentage that the linear head is right on with which ours started.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from study import shown, trainings

from beton_tools.base.console import markdown_table as markdown

WAYS = {"ours": "fastft, same size", "auto": "fastft, `auto`"}
Seeds = Mapping[int, Mapping[str, Any]]  # the trainings of one set by one method


def beside(what: str = "loop", how: str = "", ways: Sequence[str] = tuple(WAYS), title: str = "timm loop") -> str:
    """A row for every set that was trained in all ways: `what`, then each way with its gain. how: ends the ways' methods."""
    rows, gains = [], []
    for name, (base, *others) in _sets(what, *(way + how for way in ways)).items():
        gains.append([_gain(other, base) for other in others])
        cells = ((_figure(other), shown(*gain)) for other, gain in zip(others, gains[-1], strict=True))
        rows.append([name, _figure(base), *chain.from_iterable(cells)])
    means = chain.from_iterable(("", shown(*_mean(column))) for column in zip(*gains, strict=True))
    head = chain.from_iterable((WAYS[way], "gain") for way in ways)
    return markdown(["set", title, *head], [*rows, ["mean", "", *means]])


def summary() -> str:
    """The README's sentence."""
    short = [_sets("loop", f"{way}, as many seconds").values() for way in WAYS]
    long = _sets("loop, whole length", "ours, whole length").values()
    means = (_mean([_gain(ours, loop) for loop, ours in sets]) for sets in (*short, long))
    same, chosen, whole = (f"{points:.1f} ± {error:.1f}" for points, error in means)
    share = sum(_seconds(ours) for _, ours in long) / sum(_seconds(loop) for loop, _ in long)
    return (
        f"On {len(_sets('loop'))} sets of 217 to 393 images, after as many CPU seconds as ten epochs of a [plain loop of timm]"
        f"(docs/photos.md#beside-a-plain-loop-of-timm) and at its image size, a small ViT is on average {same} points better, "
        f"and {chosen} with `--model.image_size=auto`, which compares sizes by [linear probes](docs/photos.md#image-size). "
        f"After 1,000 steps and more, on {len(long)} sets of 217 to 2,000 images and at its size, the difference is {whole} "
        f"points, in {share:.0%} of its seconds."
    )


def _sets(*methods: str) -> dict[str, list[Seeds]]:
    """The trainings of each set that has all methods."""
    found: dict[str, dict[str, dict[int, Any]]] = {}
    for row in trainings("photos"):
        found.setdefault(row["set"], {}).setdefault(row["method"], {})[row["seed"]] = row
    return {name: [by[m] for m in methods] for name, by in found.items() if by.keys() >= set(methods)}


def _mean(gains: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(points, standard error) over sets."""
    points, errors = zip(*gains, strict=True)
    return fmean(points), float(np.linalg.norm(errors)) / len(gains)


def _gain(ours: Seeds, loop: Seeds) -> tuple[float, float]:
    """(points, standard error), paired by seed and image; the error is the larger of that over images and that over seeds."""
    gains_SN = 100.0 * np.array([np.subtract(ours[s]["right"], loop[s]["right"]) for s in ours.keys() & loop.keys()])
    means = [m for m in (gains_SN.mean(0), gains_SN.mean(1)) if len(m) > 1]
    return float(gains_SN.mean()), max(float(m.std(ddof=1)) / len(m) ** 0.5 for m in means)


def _figure(seeds: Seeds) -> str:
    """Mean top-1 in percent; that of the linear head, image size, epochs, CPU seconds."""
    rows = list(seeds.values())
    top1, seconds = 100 * fmean(fmean(row["right"]) for row in rows), _seconds(seeds)
    head = f"head {fmean(row['probe'] for row in rows):.1f}; " if "probe" in rows[0] else ""
    size, epochs = (" or ".join(map(str, sorted({row[key] for row in rows}))) for key in ("image_size", "epochs"))
    return f"{top1:.1f} ({head}{size} px, epochs: {epochs}, {seconds:.0f} s)"


def _seconds(seeds: Seeds) -> float:
    return fmean(row["cpu"] for row in seeds.values())
