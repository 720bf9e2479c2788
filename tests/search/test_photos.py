"""A sweep over one's own photographs: converted once, with values that follow from their number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from fastft.search import load_sweep, run_sweeps


def test_photographs_are_converted_once_for_all_rows(
    one_step: Callable[[int], list[str]], photographs: dict[str, np.ndarray], tmp_path: Path, quiet: Console
) -> None:
    for name in ("coffee", "rocket"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            crop = Image.fromarray(photographs[name][i : i + 64, i : i + 64])
            crop.save(tmp_path / "photos" / name / f"{i:02}.png")
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: Mine\nsource: nobody\nbase: photos\nrows:\n"
        "  - {label: a}\n  - {label: b, name: other, set: {optim.layer_decay: 0.5}}\n"
    )
    kept = [o for o in one_step(2) if not o.startswith(("--data.", "--optim.lr", "--schedule.", "--ema."))]
    overrides = [*kept, f"--data.train={tmp_path / 'photos'}", "--schedule.epochs=3"]
    outcomes = run_sweeps([load_sweep(table)], overrides, tmp_path / "out", quiet)
    assert [o.error for o in outcomes] == [None, None]
    assert (tmp_path / "out" / "data" / "train.beton").exists()
    assert not list(tmp_path.glob("out/runs/*/data"))
    for outcome in outcomes:
        assert outcome.run.recipe.data.num_classes == 2 and outcome.run.recipe.data.train_size == 32
