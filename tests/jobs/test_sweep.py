"""A sweep trains every row once, goes on where one fails, continues where it stopped, and says what came of it."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.jobs.sweep import Outcome, plan_runs, print_report, read_result, run_key, run_sweeps
from fastft.recipe import load_recipe
from fastft.recipe.recipe_file import open_sweep
from fastft.recipe.tables import load_sweep
from fastft.run.evaluations import Evaluation, Scores
from fastft.run.metrics_lines import read_lines
from tests.refusals import refuses
from tests.written import write_crops

TABLES, FINAL = Path("rcp/tables"), Path("rcp/final_b16.yaml")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Four rows of three trainings, one of which cannot be built."""
    for name, text in {
        "plain.yaml": "",
        "same.yaml": "about: {top1: 50}\n",
        "wrong.yaml": "model: {trainable_layers: 9}\n",
        "smooth.yaml": "optim: {label_smoothing: 0.2}\n",
    }.items():
        (tmp_path / name).write_text(f"extends: {FINAL.resolve()}\n{text}")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Mine\nsource: nobody\nrows:\n"
        "  - {recipe: plain.yaml, series: EMA, label: a, paper: 60}\n"
        "  - {recipe: wrong.yaml, series: EMA, label: b, paper: 61.25}\n"
        "  - {recipe: smooth.yaml, series: EMA, label: c}\n"
        "  - {recipe: same.yaml, series: raw, label: a, number: raw, paper: 59}\n"
    )
    return path


def test_rows_train_once_and_a_failing_row_does_not_stop_the_others(table, one_step, tmp_path, quiet):
    out, overrides = tmp_path / "out", one_step(2)
    outcomes = run_sweeps([load_sweep(table)], overrides, out, quiet)
    assert [o.error is None for o in outcomes] == [True, False, True, True]
    assert "2 blocks" in outcomes[1].error
    assert len(list(out.glob("runs/*/result.json"))) == 2
    first = json.loads((outcomes[0].run.folder / "result.json").read_text())
    assert outcomes[0].ours.top1 == first["best"]["ema"]["top1"]
    assert outcomes[3].ours.top1 == max(e["raw"]["top1"] for e in first["evaluations"])

    written = json.loads((out / "mine" / "results.json").read_text())
    assert [row["paper"] for row in written["rows"]] == [60, 61.25, None, 59]
    assert written["rows"][0]["difference"] == pytest.approx(outcomes[0].ours.top1 - 60)
    assert written["rows"][1]["ours"] is None and "2 blocks" in written["rows"][1]["error"]
    page = (out / "mine" / "table.md").read_text()
    assert "| EMA paper | 60.0 | 61.25 | - |" in page and "| raw paper | 59.0 |  |  |" in page

    lines = {run: len(read_lines(run / "metrics.jsonl")) for run in out.glob("runs/*")}
    again = run_sweeps([load_sweep(table)], overrides, out, quiet)
    assert [o.ours for o in again] == [o.ours for o in outcomes]
    assert {run: len(read_lines(run / "metrics.jsonl")) for run in lines} == lines


@pytest.mark.parametrize("width", [40, 80])
def test_no_figure_is_cut_where_output_is_narrow(width):
    sweep = load_sweep(TABLES / "03_ema.yaml")
    scores = Scores(top1=43.75, samples=32, loss=1.0)
    evaluations = [Evaluation(epoch=19, raw=scores, ema=scores)]
    runs = plan_runs(sweep, (), Path("runs"))
    outcomes = [Outcome(row, run, evaluations) for row, run in zip(sweep.rows, runs, strict=True)]
    console = Console(width=width)
    with console.capture() as capture:
        print_report(sweep, outcomes, Path("out"), console)
    said = capture.get()
    assert said.count(" 43.75±8.77 ") == len(outcomes) and said.count(" 43.75 @19 ") == 2 * len(outcomes)
    assert all(f" {outcome.difference:+.2f} " in said for outcome in outcomes)
    assert "…" not in said and max(map(len, said.splitlines())) <= 80


def test_tables_that_would_replace_each_others_report_are_refused(table, one_step, tmp_path, quiet, refused):
    other = tmp_path / "other" / "mine.yaml"
    other.parent.mkdir()
    other.write_text(table.read_text().replace("recipe: ", "recipe: ../"))
    error = refused(["sweep", table, other, *one_step(2), "--out", tmp_path / "out"])
    assert f"{table} and {other} both write {tmp_path / 'out/mine/table.md'}" in error
    assert not (tmp_path / "out").exists()


def test_one_row_of_a_sweep_trains_alone_and_the_table_keeps_all_rows(table, one_step, tmp_path, quiet):
    out = tmp_path / "out"
    outcomes = run_sweeps([open_sweep(f"{table}[EMA, c]")], one_step(2), out, quiet)
    assert [o.ours is not None for o in outcomes] == [False, False, True, False]
    assert len(list(out.glob("runs/*"))) == 1
    assert len(json.loads((out / "mine" / "results.json").read_text())["rows"]) == 4


def test_a_sweep_in_a_folder_of_its_own_is_named_after_it(table):
    folder = table.parent / "99_mine"
    folder.mkdir()
    (folder / "sweep.yaml").write_text("title: t\nsource: s\nrows: [{recipe: ../plain.yaml, label: a}]\n")
    sweep = open_sweep(folder / "sweep.yaml")
    assert (sweep.name, plan_runs(sweep, (), Path("runs"))[0].recipe.name) == ("99_mine", "plain")


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("--train.device=cpu", True),
        ("--train.eval_every=10", False),
        ("--train.micro_batch=64", True),
        ("--data.workers=3", True),
        ("--about.top1=1", True),
        ("--train.seed=1", False),
        ("--model.weights=random", False),
        ("--schedule.stop_epoch=30", False),
        ("--data.train_size=1000000", False),
        ("--optim.lr=5e-4", False),
    ],
)
def test_only_what_changes_the_training_makes_another_run(override, same):
    assert (run_key(load_recipe(FINAL)) == run_key(load_recipe(FINAL, [override]))) is same


def test_a_part_of_the_data_is_another_run(one_step):
    data = one_step(2)[0]
    assert data.startswith("--data.train=")
    assert run_key(load_recipe(FINAL)) != run_key(load_recipe(FINAL, [data]))


def test_cost_prices_the_trainings_of_sweeps_and_their_total(capsys):
    """Rows that train the same thing count once, over all tables; no figure of a long table is cut."""
    sweeps = [load_sweep(TABLES / f"{name}.yaml") for name in ("02_lr", "03_ema")]
    paths = [str(sweep.path) for sweep in sweeps]
    options = ["--gpu", "a100", "--gpus", "4", "--price", "200", "--mfu", "0.4"]
    assert main(["cost", *paths, *options, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    runs = {run.key for sweep in sweeps for run in plan_runs(sweep, (), Path("runs"))}
    assert (values["total"]["rows"], values["total"]["trainings"]) == (17, len(runs))
    assert len(values["recipes"]) == len(runs)
    for k, total in enumerate(values["total"]["estimates"]):
        estimates = [recipe["estimates"][k] for recipe in values["recipes"]]
        assert {e["basis"] for e in estimates} == {total["basis"]}
        for key in ("wall_hours", "gpu_hours", "money"):
            assert total[key] == pytest.approx(sum(e[key] for e in estimates))
    assert main(["cost", *paths, *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # the title may be wrapped
    assert f"17 rows, {len(runs)} runs" in printed and "total" in printed and "…" not in printed


def test_rows_that_wait_for_the_loader_are_marked(monkeypatch, capsys):
    monkeypatch.setattr("fastft.cost.roofline.image_traffic", lambda recipe, path: None)  # which takes seconds
    table = str(TABLES / "15_drop_path.yaml")
    for size, waits in ((32, True), (224, False)):
        assert main(["cost", table, "--gpu", "h100", "--mfu=0.4", f"--model.image_size={size}"]) == 0
        printed = capsys.readouterr().out
        marked = re.search(r"\d\.\d\*", printed) is not None
        assert (marked, "* GPUs wait for the loader" in printed) == (waits, waits)


def test_a_row_that_cannot_be_priced_is_named(table, refused):
    (table.parent / "plain.yaml").write_text(f"extends: {FINAL.resolve()}\nmodel: {{image_size: 98}}\n")
    assert f"{table}[EMA, a]: image size 98" in refused(["cost", str(table), "--gpu", "v100"])


def test_brackets_in_titles_and_labels_are_printed_as_they_are(table, one_step, tmp_path, capsys):
    rows = f"rows: [{{recipe: {FINAL.resolve()}, label: '[/x]', number: raw}}]"
    table.write_text(f"title: lr [/b]\nsource: me\n{rows}\n")
    assert main(["sweep", str(table), "--out", str(tmp_path / "out"), *one_step(2)]) == 0
    printed = capsys.readouterr().out
    assert "lr [/b]" in printed and "[/x]" in printed


@pytest.mark.parametrize("text", ["{}", "[]", '{"epochs": 3, "evaluations": [5]}', "[" * 100_000, "{"])
def test_a_damaged_result_is_as_none(table, tmp_path, text):
    run = plan_runs(load_sweep(table), (), tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "result.json").write_text(text)
    assert read_result(run) is None


def test_the_command_ends_in_1_where_a_row_failed(table, one_step, tmp_path, capsys):
    table.write_text("title: One\nsource: me\nrows: [{recipe: wrong.yaml, label: b}]\n")
    assert main(["sweep", str(table), "--out", str(tmp_path / "out"), *one_step(2)]) == 1
    assert "trainable_layers is 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: [", "not valid YAML"),
        ("just words", "Give a sweep file with title, source and rows"),
        ("title: t\nsource: s\nrows: [plain.yaml]", "row 1: must hold"),
        ("title: t\nsource: s\nrows: [{recipe: plain.yaml}]", "row 1: label missing"),
        ("title: t\nsource: s\nrows: [{recipe: plan.yaml, label: a}]", "Did you mean plain.yaml"),
        ("title: t\nsource: s\nrows: [{recipe: plain.yaml, label: a, papr: 1}]", "Did you mean 'paper'"),
        ("title: t\nsource: s\nrows: [{recipe: plain.yaml, label: a, paper: 857}]", "top-1 in percent"),
        ("title: t\nsource: s\nrows: [{recipe: plain.yaml, label: a, number: best}]", "one of ema, raw"),
        (
            "title: t\nsource: s\nrows: [{recipe: plain.yaml, label: a}, {recipe: same.yaml, label: a}]",
            "two rows are labelled 'a'",
        ),
    ],
)
def test_mistakes_in_a_sweep_are_one_line(table, text, message):
    table.write_text(text)
    with refuses(message):
        plan_runs(load_sweep(table), (), Path("runs"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--ema.decay=0"], "needs an EMA"),
        (["--train.run_dir=x"], "Use --out"),
        (["--optim.rl=1"], "Did you mean"),
        ([], "Set --data.val"),
    ],
)
def test_overrides_that_make_no_sense_are_refused_before_anything_is_trained(
    table, tmp_path, quiet, overrides, message
):
    with pytest.raises(UserError, match=message):
        run_sweeps([load_sweep(table)], overrides, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_a_row_of_raw_weights_is_refused_where_only_the_ema_is_evaluated():
    with pytest.raises(UserError, match=r"03_ema.* needs the raw weights, but train\.eval_weights is ema"):
        plan_runs(load_sweep(TABLES / "03_ema.yaml"), ["--train.eval_weights=ema"], Path("runs"))


def test_photographs_are_converted_once_for_all_rows(one_step, photographs, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr("fastft.photos.prepare.LEAST_LONG_SIDE", 10)
    write_crops(tmp_path / "photos", photographs, {"coffee": 20, "rocket": 20})
    table = tmp_path / "mine.yaml"
    table.write_text(
        "title: Mine\nsource: nobody\nbase: photos\nrows:\n"
        "  - {label: a, set: {model.image_size: 32}}\n"
        "  - {label: b, name: other, set: {optim.layer_decay: 0.5, model.image_size: 64}}\n"
    )
    kept = [
        o
        for o in one_step(2)
        if not o.startswith(("--data.", "--optim.lr", "--schedule.", "--ema.", "--model.image_size"))
    ]
    overrides = [*kept, f"--data.train={tmp_path / 'photos'}", "--schedule.epochs=3", "--optim.batch_size=8"]
    outcomes = run_sweeps([load_sweep(table)], overrides, tmp_path / "out", quiet)
    assert [o.error for o in outcomes] == [None, None]
    assert (tmp_path / "out" / "data" / "train.beton").exists()
    assert not list(tmp_path.glob("out/runs/*/data"))
    prepared = json.loads((tmp_path / "out" / "data" / "train.beton.manifest.json").read_text())
    assert prepared["options"]["max_resolution"] == 128, "twice the largest image size of a row"
    for outcome in outcomes:
        assert outcome.run.recipe.data.num_classes == 2 and outcome.run.recipe.data.train_size == 32
