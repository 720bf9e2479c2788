"""Trainings of the paper's tables and the frugal recipes take a step, with all that their recipes switch on."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastft.jobs.run import run_recipe
from fastft.jobs.sweep import plan_runs
from fastft.model.recipe_model import build_model, recipe_arch
from fastft.recipe import load_recipe
from fastft.recipe.tables import load_sweep
from fastft.run.checkpoint import list_checkpoints
from fastft.run.metrics_lines import read_lines

pytestmark = pytest.mark.slow

SWEEPS = sorted(Path("rcp/tables").glob("*.yaml"))
RUNS = {
    run.key: sweep.reference(row)
    for sweep in map(load_sweep, SWEEPS)
    for row, run in zip(sweep.rows, plan_runs(sweep, (), Path("runs")), strict=True)
}
CHEAPER = [str(path) for kind in ("frugal", "quick") for path in sorted(Path("rcp").glob(f"{kind}_*.yaml"))]


def kinds(references: list[str]) -> dict[tuple[object, ...], str]:
    """One of the recipes that differ in nothing but numbers, of which none is 0."""
    found: dict[tuple[object, ...], str] = {}
    for reference in references:
        values = [v for k, v in load_recipe(reference).flat().items() if not k.startswith("about.")]
        found.setdefault(tuple(v if isinstance(v, str | bool | None) else v == 0 for v in values), reference)
    return found


RECIPES = kinds([*RUNS.values(), *CHEAPER]).values()


@pytest.mark.parametrize("reference", RECIPES)
def test_a_step_changes_what_is_trained_and_nothing_else(reference, one_step, tmp_path, quiet):
    whole = load_recipe(reference)
    overrides = [*one_step(recipe_arch(whole).layers), "--ema.horizon=none", f"--train.run_dir={tmp_path / 'run'}"]
    recipe = load_recipe(reference, overrides)
    before = build_model(recipe)
    start = {name: value.clone() for name, value in before.state_dict().items()}
    trained = {name for name, p in before.named_parameters() if p.requires_grad}

    result = run_recipe(recipe, quiet)[1]

    (loss,) = (m["loss"] for m in read_lines(tmp_path / "run" / "metrics.jsonl") if m["kind"] == "train")
    near_0 = recipe.model.head_init == "small"  # the head's start; a fitted one has another loss
    assert math.isfinite(loss) and (not near_0 or loss == pytest.approx(math.log(2), rel=0.2))
    assert (result.last.ema is not None) == (recipe.ema.decay > 0)
    after = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    assert changed <= trained
    assert {"head.weight", "head.bias"} <= changed
    assert {n for n in trained if n.endswith(("out_proj.weight", "rel_pos_bias.table", "gamma"))} <= changed


def test_two_processes_share_a_sweep(one_step, tmp_path):
    """One process group for all trainings; what is left to train is decided together."""
    command = [sys.executable, "-m", "fastft.train.launch", "--standalone", "--nproc-per-node", "2"]
    command += ["sweep", "rcp/tables/15_drop_path.yaml", "--out", str(tmp_path / "out"), *one_step(12)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert len(list((tmp_path / "out").glob("runs/*/result.json"))) == 3
