"""Every row of the paper is a recipe that differs from its stage in what the table varies, and in nothing else."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from fastft.build import build_mixer, build_model, build_policy, recipe_arch
from fastft.config import Recipe, load_recipe
from fastft.cost.model import recipe_work
from fastft.explain.explanation import explain
from fastft.optim import layer_groups
from fastft.sweep import load_sweep, plan_runs

RECIPES = Path("rcp")
SWEEPS = {s.name: s for s in map(load_sweep, sorted(RECIPES.glob("tables/*/sweep.yaml")))}
FILES = sorted([*RECIPES.glob("tables/*/*.yaml"), *RECIPES.glob("[bf]*.yaml")])
TRAINABLE = [path for path in FILES if path.name != "sweep.yaml"]

BASELINE, FINAL = RECIPES / "baseline_b16.yaml", RECIPES / "final_b16.yaml"
EMA = {"ema.decay": 0.9998}
MIX_50 = {"augment.mixup": 0.8, "augment.cutmix": 1.0}

# Transcribed from the paper: table -> (stage it builds on, [(line, column, top-1, what differs from the stage)])
Entry = tuple[str, str, float | None, dict[str, Any]]


def over(option: str, values: dict[Any, float | None], series: str = "", **more: Any) -> list[Entry]:
    return [(series, str(v), top1, {option: v} | more) for v, top1 in values.items()]


LRS = {"1e-5": 1e-5, "2e-5": 2e-5, "3e-5": 3e-5, "5e-5": 5e-5, "1e-4": 1e-4, "5e-4": 5e-4, "1e-3": 1e-3}
DECAYS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
RAND = "rand-m{m}-n{n}-mstd0.5-inc1"


def lr_entries(series: str, accuracies: tuple[float, ...], prefix: str = "") -> list[Entry]:
    return [
        (series, f"{prefix}{label}", top1, {"optim.lr": lr} | (EMA if lr <= 1e-4 else {}))
        for (label, lr), top1 in zip(LRS.items(), accuracies, strict=False)
    ]


def decay_entries(lr: float, label: str, accuracies: tuple[float, ...]) -> list[Entry]:
    return [
        (f"lr {label}", str(d), top1, {"optim.lr": lr, "optim.layer_decay": d} | EMA)
        for d, top1 in zip(DECAYS, accuracies, strict=True)
    ]


def larger_lr_entries(decay: float, accuracies: tuple[float, ...]) -> list[Entry]:
    return [
        (f"LLRD {decay:.2f}", f"{i}e-4", top1, {"optim.lr": i * 1e-4, "optim.layer_decay": decay} | EMA)
        for i, top1 in enumerate(accuracies, 1)
    ]


PAPER: dict[str, tuple[Path, list[Entry]]] = {
    "01_baseline": (BASELINE, [("", "baseline", 82.3, {})]),
    "02_lr": (BASELINE, lr_entries("", (83.8, 84.3, 84.3, 83.8, 83.1, 82.3, 82.3))),
    "03_ema": (
        BASELINE,
        lr_entries("w/o EMA", (83.8, 84.3, 84.3, 83.8, 83.1), "lr ")
        + lr_entries("w EMA", (83.6, 84.4, 84.6, 84.4, 84.0), "lr "),
    ),
    "04_llrd": (
        BASELINE,
        decay_entries(5e-5, "5e-5", (84.6, 84.7, 84.8, 84.9, 84.7, 84.6, 84.4))
        + decay_entries(1e-4, "1e-4", (84.8, 84.9, 85.0, 85.0, 84.7, 84.5, 84.3)),
    ),
    "05_llrd": (
        BASELINE,
        larger_lr_entries(0.6, (84.8, 84.8, 85.0, 85.1, 85.2, 85.3, 85.1))
        + larger_lr_entries(0.65, (84.9, 84.9, 85.0, 85.0, 85.0, 84.9, 84.9))
        + larger_lr_entries(0.7, (85.0, 85.2, 85.0)),
    ),
    "fig2_length": (
        FINAL,
        [
            ("", "100 epochs", 85.3, {"schedule.epochs": 100, "schedule.warmup_epochs": 20.0} | MIX_50),
            ("", "50 epochs", 85.2, MIX_50),
        ],
    ),
    "06_mixup": (
        FINAL,
        [
            ("", f"{m}/{c}", top1, {"augment.mixup": m, "augment.cutmix": c})
            for m, c, top1 in (
                (0.8, 1.0, 85.3), (0.4, 0.5, 85.4), (0.2, 0.25, 85.5), (0.1, 0.2, 85.6), (0.0, 0.0, 85.7)
            )
        ],
    ),
    "07_erase": (FINAL, over("augment.erase_prob", {0.0: 85.6, 0.12: 85.6, 0.25: 85.7, 0.35: 85.5})),
    "08_randaug_n": (
        FINAL,
        [
            ("", str(n), top1, {} if n == 2 else {"augment.policy": RAND.format(m=9, n=n)})
            for n, top1 in enumerate((85.5, 85.7, 85.6, 85.4), 1)
        ],
    ),
    "09_randaug_m": (
        FINAL,
        [
            ("", str(m), top1, {} if m == 9 else {"augment.policy": f"rand-m{m}-mstd0.5-inc1"})
            for m, top1 in enumerate((85.6, 85.6, 85.7, 85.7, 85.7, 85.6), 5)
        ],
    ),
    "12_architecture": (
        FINAL,
        [
            ("", "vanilla", 85.66, {}),
            ("", "+RPE", 85.69, {"model.rel_pos_bias": True}),
            ("", "+RPE +LS", 85.67, {"model.rel_pos_bias": True, "model.layer_scale": 1.0}),
        ],
    ),
    "13_policy": (
        FINAL,
        [
            ("", "RandAug+RRC", 85.7, {}),
            ("", "3Aug+RRC", 85.6, {"augment.policy": "3aug-j0.3"}),
            ("", "3Aug+SRC", 84.9, {"augment.policy": "3aug-j0.3", "augment.crop": "src"}),
            ("", "AugMix+RRC", 85.1, {"augment.policy": "augmix-m3-w3"}),
        ],
    ),
    "14_crop_scale": (
        FINAL, over("augment.scale_min", {0.08: 85.7, 0.2: 85.7, 0.3: 85.6, 0.4: 85.6, 0.5: 85.5})
    ),
    "15_drop_path": (
        FINAL,
        [("", f"{d:g}", top1, {"model.drop_path": d}) for d, top1 in ((0, 85.7), (0.05, 85.6), (0.1, 85.5))],
    ),
    "16_label_smoothing": (
        FINAL,
        [
            ("", f"{s:g}", top1, {"optim.label_smoothing": s})
            for s, top1 in ((0, 85.3), (0.05, 85.6), (0.1, 85.7), (0.15, 85.6), (0.2, 85.6))
        ],
    ),
    "17_weight_decay": (
        FINAL,
        [
            ("", label, top1, {"optim.weight_decay": float(label)})
            for label, top1 in (("1e-8", 85.6), ("0.01", 85.6), ("0.05", 85.7), ("0.1", 85.6), ("0.2", 85.6))
        ],
    ),
    "fig3_partial": (
        FINAL,
        [
            ("", str(k), {1: 83.9, 6: 85.6, 12: 85.7}.get(k), {} if k == 12 else {"model.trainable_layers": k})
            for k in range(13)
        ],
    ),
}  # fmt: skip


def differences(recipe: Recipe, stage: Recipe) -> dict[str, Any]:
    """Options that differ, `about` apart."""
    mine, theirs = recipe.as_dict(), stage.as_dict()
    return {
        f"{section}.{key}": value
        for section, options in mine.items()
        for key, value in options.items()
        if section != "about" and value != theirs[section][key]
    }


def test_every_table_of_the_paper_is_there() -> None:
    tables = {*(f"{i:02}" for i in (*range(1, 10), *range(11, 18))), "fig2", "fig3"}
    assert {name.split("_")[0] for name in SWEEPS} == tables


@pytest.mark.parametrize("name", PAPER)
def test_rows_are_the_papers_and_vary_what_the_table_varies(name: str) -> None:
    stage, entries = PAPER[name]
    base, sweep = load_recipe(stage), SWEEPS[name]
    assert [(r.series, r.label, r.paper) for r in sweep.rows] == [e[:3] for e in entries]
    for row, (*_, expected) in zip(sweep.rows, entries, strict=True):
        flat = {f"{s}.{k}": v for s, options in base.as_dict().items() for k, v in options.items()}
        wanted = {k: v for k, v in expected.items() if v != flat[k]}
        assert differences(load_recipe(row.recipe), base) == pytest.approx(wanted), row.name


def test_raw_and_averaged_weights_stand_where_the_paper_has_them() -> None:
    raw = {(name, row.series) for name, sweep in SWEEPS.items() for row in sweep.rows if row.number == "raw"}
    assert raw == {("01_baseline", ""), ("02_lr", ""), ("03_ema", "w/o EMA")}


def test_the_final_models_are_table_11() -> None:
    rows = {row.label: (row.recipe.stem, row.paper) for row in SWEEPS["11_final"].rows}
    assert rows == {
        "B/16 at 224": ("final_b16", 85.7), "B/16 at 384": ("final_b16_384", 86.6),
        "L/14 at 224": ("final_l14", 88.0), "L/14 at 336": ("final_l14_336", 88.3),
    }  # fmt: skip


def test_rows_expect_what_their_own_table_says() -> None:
    for sweep in SWEEPS.values():
        for row in sweep.rows:
            about = load_recipe(row.recipe).about
            if row.recipe.parent.name == sweep.name and row.number == "ema":
                assert about.top1 == row.paper, row.recipe
                assert about.source.removeprefix("only drawn in ") == sweep.source


def test_every_recipe_of_a_table_is_a_row_of_it() -> None:
    rows = {row.recipe.resolve() for sweep in SWEEPS.values() for row in sweep.rows}
    assert {path.resolve() for path in TRAINABLE if "tables" in path.parts} <= rows


def test_recipes_have_names_of_their_own() -> None:
    """A run is named after its recipe: two of one name would share runs/NAME."""
    stems = [path.stem for path in TRAINABLE]
    assert len(stems) == len(set(stems))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_starts_with_its_command_and_what_to_expect(path: Path) -> None:
    lines = path.read_text().splitlines()
    command = "sweep" if path.name == "sweep.yaml" else "train"
    assert lines[0].startswith(f"# fastft {command} {path} --data.train=")
    if command == "train":
        head = [line for line in lines if line.startswith("#")]
        assert any("Expected: " in line for line in head)
        assert head[-1].startswith("# Predicted: ")


def test_predicted_hours_and_the_page_of_tables_are_what_the_cost_model_says_now() -> None:
    stale = runpy.run_path("docs/paper_tables.py")["stale"]()
    assert not stale, "run: python docs/paper_tables.py"


def test_the_demos_recipe_can_be_explained() -> None:
    """It names its own architecture: no command has to."""
    values = explain(load_recipe(RECIPES / "demo.yaml"))
    assert values["schedule"]["total_steps"] == 316  # as its comment on lr says
    assert {group["layer_id"] for group in values["groups"]} == {9, 10, 11, 12, 13}


def recipes_by_training() -> dict[str, Recipe]:
    """One recipe per training of all tables, by its key."""
    return {run.key: run.recipe for sweep in SWEEPS.values() for run in plan_runs(sweep, (), Path("runs"))}


def test_every_row_builds_and_trains_what_it_says() -> None:
    for recipe in recipes_by_training().values():
        build_policy(recipe)
        assert (build_mixer(recipe) is None) == (recipe.augment.mixup == recipe.augment.cutmix == 0)
    models = {recipe.model: recipe for recipe in recipes_by_training().values()}
    for recipe in models.values():
        name, arch = recipe.name, recipe_arch(recipe)
        with torch.device("meta"):
            model = build_model(recipe, pretrained=False)
        groups = layer_groups(model, arch.layers, recipe.optim.layer_decay, recipe.optim.weight_decay)
        top = recipe.model.trainable_layers
        lowest = 0 if top is None else arch.layers + 1 - top  # block i is layer i + 1, the head layers + 1
        assert min(group.layer_id for group in groups) == lowest, name
        trained = {n for group in groups for n in group.names}
        assert any("rel_pos_bias" in n for n in trained) == recipe.model.rel_pos_bias, name
        assert any(".ls_" in n for n in trained) == (recipe.model.layer_scale is not None), name
        rates = [block.drop_path.rate for block in model.visual.transformer.resblocks]
        assert rates == pytest.approx(
            [recipe.model.drop_path * i / (arch.layers - 1) for i in range(arch.layers)]
        )


@pytest.mark.parametrize(("size", "peak", "layers"), [("b16", 29, 6), ("l14", 19, 12)])
def test_frugal_recipes_stop_where_the_references_ema_is_best(size: str, peak: int, layers: int) -> None:
    final = load_recipe(RECIPES / f"final_{size}.yaml")
    frugal = load_recipe(RECIPES / f"frugal_{size}.yaml")
    half = load_recipe(RECIPES / f"frugal_{size}_half.yaml")
    assert differences(frugal, final) == {"schedule.stop_epoch": peak + 1, "train.eval_every": 5}
    assert differences(half, frugal) == {"model.trainable_layers": layers}
    assert frugal.epochs % frugal.train.eval_every == 0
    arch = recipe_arch(final)
    work = [recipe_work(recipe, arch).total for recipe in (final, frugal, half)]
    assert work[0] > work[1] > work[2]
    assert half.about.source.startswith("extrapolated")
