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

WAYS = {"ours": "fastft, same size", "soup": "fastft, same size, mean of two", "auto": "fastft, `auto`"}
SHORT, LONG = ("ours", "auto"), ("soup", "auto")  # ways that were measured beside the loop's short and long trainings
Seeds = Mapping[int, Mapping[str, Any]]  # the trainings of one set by one method


def beside(what: str = "loop", how: str = "", ways: Sequence[str] = SHORT, title: str = "timm loop") -> str:
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
    length, seconds = ", whole length", ", as many seconds"
    pairs = [("loop", way + seconds) for way in SHORT] + [("loop" + length, way + length + seconds) for way in LONG]
    whole = _sets("loop" + length, "ours" + length).values()
    means = (
        _mean([_gain(ours, loop) for loop, ours in sets]) for sets in (*(_sets(*p).values() for p in pairs), whole)
    )
    short, short_auto, mean, long_auto, same = (f"{points:.1f} ± {error:.1f}" for points, error in means)
    share = sum(_seconds(ours) for _, ours in whole) / sum(_seconds(loop) for loop, _ in whole)
    return (
        f"On {len(_sets('loop'))} sets of 217 to 393 images, beside a [plain loop of timm]"
        "(docs/photos.md#beside-a-plain-loop-of-timm) and in its CPU seconds, a small ViT is on average better by\n\n"
        + markdown(
            ["points of top-1", "at its image size", "with `--model.image_size=auto`"],
            [
                ["after its 10 epochs", short, short_auto],
                ["after 84 to 167 epochs", f"{mean} (mean of two trainings)", long_auto],
            ],
        )
        + f"\n\n`auto` compares sizes by [linear probes](docs/photos.md#image-size). One training of 84 epochs or more at its image "
        f"size is level with the loop ({same} points) in {share:.0%} of its seconds."
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
