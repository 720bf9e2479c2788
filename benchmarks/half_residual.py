"""The table in docs/measurements/half-precision.md, which tables.py makes from results/half_residual.json.

The file has the loss of every step. benchmarks/results/provenance.yaml says where it comes from.
"""

from collections.abc import Iterator

import numpy as np
from records import Row, document

from beton_tools.base.console import markdown_table as markdown

FULL = "fp32"
WINDOW = 20  # steps per compared mean
CELLS = 480  # validation images of the solar cells, which the file does not say


def table() -> str:
    """Tabulate loss and accuracy with half-precision copies of the weights beside fp32."""
    head = ["data, seed", "weights", "distance of the loss from fp32", "mean difference", "validation loss",
            "top-1 % ± standard error of one accuracy", "images"]  # fmt: skip
    return markdown(head, list(_rows()), 2)


def _rows() -> Iterator[list[str]]:
    for what, seeds in document("half_residual").items():
        name = what.partition(",")[0]
        for seed, runs in seeds.items():
            for weights, run in runs.items():
                images = run.get("samples", CELLS)
                share = run["top1"] / 100
                error = 100 * (share * (1 - share) / images) ** 0.5
                yield [f"{name}, {seed}", weights, *_beside(run, runs[FULL]), f"{run['eval_loss']:.3f}",
                       f"{run['top1']:.1f} ± {error:.1f}", f"{images:,}"]  # fmt: skip


def _beside(run: Row, full: Row) -> tuple[str, str]:
    """Return the largest difference between averaged losses and the mean difference, or nothing for fp32 itself."""
    if run is full:
        return "", ""
    mine, theirs = (_means(one["losses"]) for one in (run, full))
    return f"{np.abs(mine - theirs).max():.3f}", f"{np.mean(run['losses']) - np.mean(full['losses']):+.4f}"


def _means(losses: list[float]) -> np.ndarray:
    """Average over windows of steps. The rest of the last window is left out."""
    whole = len(losses) // WINDOW * WINDOW
    return np.asarray(losses[:whole]).reshape(-1, WINDOW).mean(1)
