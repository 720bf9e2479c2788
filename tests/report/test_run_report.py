"""The page of a run: what it says is what the run directory holds, at every stage of a run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from rich.console import Console

from fastft.cli import main
from fastft.cli.cmd_eval import print_evaluation
from fastft.cost.bottleneck import ADVICE, diagnose
from fastft.evaluate.calibration import Calibration, Reliability
from fastft.evaluate.mistakes import find_mistakes
from fastft.report.run_charts import accuracy_charts, reference_of, reliability_chart
from fastft.report.run_figures import headline
from fastft.report.run_report import recipe_diff, render_run
from fastft.report.run_times import part_seconds, run_cost, time_split, training_seconds
from fastft.run.evaluations import Scores
from fastft.run.metrics_lines import BaselineLine, CheckpointLine
from fastft.run.predictions import Predictions
from fastft.run.result import WeightChoice
from fastft.run.run_directory import Run, load_run
from tests.written import (
    CHECKPOINT,
    EVALUATION,
    LOADER,
    RECIPES,
    STEPS,
    load_recipe,
    predicted,
    predictions_of,
    write_run,
)


def test_reference_curves_are_the_logs():
    """Best EMA, its epoch and the last epoch of each of the four logs."""
    best = {"final_b16": (85.656, 29, 50), "final_b16_384": (86.644, 27, 33), "final_l14": (87.974, 19, 30)}
    best["final_l14_336"] = (88.328, 18, 30)
    for name, (top1, epoch, epochs) in best.items():
        model = load_recipe(RECIPES / f"{name}.yaml").model
        found, curve = reference_of(model.arch, model.image_size)
        assert found == name and curve is not None
        assert (max(curve.top1_ema), int(np.argmax(curve.top1_ema))) == (top1, epoch)
        assert {len(getattr(curve, k)) for k in ("train_loss", "top1_raw", "top1_ema")} == {epochs}


def test_headline_is_what_the_run_chose_and_the_best_epoch_is_beside_it(run_folder):
    run = load_run(run_folder)
    best, last = max(run.evaluations, key=lambda e: e.ema.top1), run.evaluations[-1]
    assert best.epoch < last.epoch
    choice = WeightChoice(take="last", kind="raw", epoch=last.epoch, reason="")
    probe = BaselineLine(step=0, images=16, raw=Scores(top1=50.0, loss=1.0, samples=80))
    chosen = replace(run, weights=choice, log=replace(run.log, baseline=[probe]))
    first, *rest = headline(chosen)
    assert (first.label, first.value) == ("raw top-1", f"{last.raw.top1:.2f} %")
    assert f"epoch {last.epoch}" in first.below and "used by predict, eval and export" in first.below
    shown = {f.label: f for f in rest}
    tile = f"best epoch, {best.epoch}"
    assert shown[tile].value == f"{best.ema.top1:.2f} %"
    ((x, mark),) = accuracy_charts(chosen, None)[0].marks
    assert (x, mark) == (best.epoch + 1, f"{tile}: {x} epochs trained")
    assert shown["linear probe"].below.endswith(f"fine-tuning {last.raw.top1 - 50:+.2f}")
    assert shown["expected"].value == "85.7 %"


def test_the_calibration_error_is_shown_with_and_without_the_temperature_and_by_chance(run_folder, capsys):

    def with_error(percent: float) -> Reliability:
        return Reliability(np.array([10]), np.array([0.5 + percent / 100]), np.array([0.5]))

    found = predicted(
        Predictions(np.zeros(10, int), np.zeros(10, int), np.full(10, 0.6), np.full(10, 0.6), 2), ["a", "b"]
    )
    calibration = Calibration(with_error(10), 1.5, with_error(5))
    temperature = {"ece": 10.0, "ece_scaled": 5.0, "temperature": 1.5, "ece_by_chance": 7.0}
    report = structs.replace(found.report, top1=1.0, standard_error=1.0, **temperature)
    page = render_run(load_run(run_folder), predictions=replace(found, report=report, calibration=calibration))
    print_evaluation(report, Console(width=300))
    names = [series.name for series in reliability_chart(calibration).series]
    assert "temperature 1.500" in page and "a perfectly calibrated model has 7.00&nbsp;%" in page
    assert names == ["perfect", "softmax, ECE 10.0 %", "temperature 1.50, ECE 5.0 %"]
    assert (
        "error 10.000 %, 5.000 % at temperature 1.500 (a perfectly calibrated model: 7.000 %)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("change", ["--data.num_classes=10", "--data.train_size=1000000", "steps"])
def test_runs_on_other_data_are_not_compared_with_the_paper(tmp_path, change):
    """They are told by the recipe, or by epochs that had fewer steps than ImageNet has; recipes are compared all the same."""
    overrides = [] if change == "steps" else [change]
    run = load_run(write_run(tmp_path / "run", "final_b16", 20, *overrides))
    if change == "steps":
        short = [structs.replace(line, epoch=2 * line.epoch + 1) for line in run.evaluations]
        run = replace(run, log=replace(run.log, eval=short))
    page = render_run(run)
    assert "expected" not in {f.label for f in headline(run)}
    assert "reference EMA" not in page and "the paper's own run" not in page
    assert "final_b16</th>" in page or "no option differs" in page


def test_page_is_one_file_that_loads_nothing(run_folder):
    page = render_run(load_run(run_folder))
    for word in ("http://", "https://", 'src="/', "@import", "url("):
        assert word not in page.replace("http://www.w3.org/2000/svg", "")
    assert "finished" in page and "reference EMA" in page


def test_every_stage_of_a_run_has_a_page(tmp_path):
    for epochs in (0, 1, 7):
        run = load_run(write_run(tmp_path / str(epochs), "final_l14", epochs, split=epochs > 1))
        page = render_run(run, price=2.48)
        assert ("nothing logged yet" in page) == (epochs == 0)
        assert ("extrapolated" in page) == (epochs > 0)
        assert ("recorded no time split" in page) == (epochs == 1)


def test_a_run_stopped_before_its_first_interval_shows_its_step_and_baseline(tmp_path):
    run = load_run(write_run(tmp_path / "run", "final_l14", 0))
    probe = BaselineLine(step=0, images=16, raw=Scores(top1=43.75, loss=1.0, samples=80))
    saved = CheckpointLine(step=3, seconds=1.0)
    run = replace(run, log=replace(run.log, checkpoint=[saved], baseline=[probe]))
    page = render_run(run)
    assert "not finished: step 3 of" in page and "nothing logged yet" not in page
    assert [(f.label, f.value) for f in headline(run)] == [("linear probe", "43.75 %")]


def test_cost_adds_up_and_is_extrapolated_at_the_last_pace(tmp_path):
    run = load_run(write_run(tmp_path / "half", "final_b16", 25, split=False))
    cost = run_cost(run, 2.0)
    assert cost is not None and cost.devices == 8
    rows = {r.what: r for r in cost.rows}
    assert rows["so far"].wall_seconds == pytest.approx(sum(training_seconds(run)) + 25 * 21.5)
    assert rows["at the end"].wall_seconds == pytest.approx(2 * rows["so far"].wall_seconds, rel=0.02)
    assert rows["so far"].money == pytest.approx(rows["so far"].wall_seconds / 3600 * 8 * 2.0)


def test_the_start_is_a_separate_row_and_not_extrapolated(tmp_path):
    plain = load_run(write_run(tmp_path / "run", "final_b16", 25))
    first, *others = plain.intervals
    first = structs.replace(first, split={"start": 1000.0, "wait": 0.1})  # images/s leave the start out
    for intervals in ([first, *others], [first]):
        run = replace(plain, log=replace(plain.log, train=intervals))
        undisturbed = [plain.intervals[0], *others][: len(intervals)]
        unhindered = replace(plain, log=replace(plain.log, train=undisturbed))
        (ours, theirs) = ({r.what: r.wall_seconds for r in run_cost(r, None).rows} for r in (run, unhindered))
        assert ours["start"] == pytest.approx(1000) and "start" not in theirs
        assert ours["training"] == pytest.approx(theirs["training"])
        assert ours["at the end"] == pytest.approx(theirs["at the end"] + 1000)
    assert "<td>start</td>" in render_run(run)


def test_diff_names_exactly_the_options_that_differ():
    base = load_recipe(RECIPES / "final_b16.yaml")
    changed = load_recipe(RECIPES / "final_b16.yaml", ["--optim.lr=1e-3", "--data.val=x.beton"])
    assert recipe_diff(changed, base, {}) == [("optim.lr", 6e-4, 1e-3, "")]


def test_a_page_of_photographs_begins_with_its_classes_and_gives_the_reasons_of_what_was_chosen(tmp_path):
    folder = write_run(tmp_path / "birds", "photos", 3, "--data.num_classes=2", "--data.train_size=400", "--lr=1e-4")
    choices = [{"option": "optim.batch_size", "value": 16, "reason": "25 steps an epoch"}]
    (folder / "choices.json").write_text(json.dumps({"version": 1, "request": "", "choices": choices}))
    found = predicted(
        Predictions(np.zeros(10, int), np.zeros(10, int), np.full(10, 0.6), np.full(10, 0.6), 2), ["a", "b"]
    )
    page = render_run(load_run(folder), predictions=found)
    headings = ["Classes", "Mistakes", "Accuracy", "Recipe", "Data", "Speed", "Where the time went", "Cost"]
    assert re.findall("<h2>(.*?)</h2>", page) == headings
    assert "<h1>birds</h1>" in page and "<th>photos</th>" in page
    row = re.search("<tr><td><code>optim.batch_size</code>.*?</tr>", page)[0]
    assert "<td>auto</td>" in row and "25 steps an epoch" in row
    assert re.search("<tr><td><code>optim.lr</code></td><td>auto</td><td><b>0.0001</b></td>", page)
    unseen = render_run(load_run(folder))
    assert re.findall("<h2>(.*?)</h2>", unseen)[:3] == ["Accuracy", "Classes", "Mistakes"]


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ({"forward": 30, "backward": 60, "wait": 2, "eval": 5}, "compute"),
        ({"forward": 30, "backward": 60, "wait": 20, "decode": 300, "augment": 100}, "decode"),
        ({"forward": 30, "backward": 60, "wait": 20, "decode": 100, "augment": 300}, "augment"),
        ({"forward": 3, "backward": 6, "wait": 0.1, "eval": 60}, "eval"),
        ({"wait": 60, "forward": 30}, "decode"),
        ({"start": 60, "wait": 0.1, "forward": 30}, "compute"),
        # docs/reports.md: the loader is called the bottleneck from 5 % of the time on
        ({"forward": 95.1, "wait": 4.9}, "compute"),
        ({"forward": 94.9, "wait": 5.1}, "decode"),
    ],
)
def test_the_bottleneck_is_named(seconds, limit):
    found = diagnose(seconds)
    assert found is not None and found.advice == ADVICE[limit]


def test_mistakes_are_the_most_confident_wrong_predictions():
    labels = np.array([0, 0, 1, 2, 2])
    logits = np.array([[3, 0, 0], [0, 2, 0], [0, 5, 0], [9, 0, 0], [0, 0, 1]], float)
    found = find_mistakes(predictions_of(logits, labels), ["ant", "bee", "cow"])
    assert (found.wrong, found.images) == (2, 5)
    assert [(m.sample, m.truth, m.predicted) for m in found.most_confident] == [(3, "cow", "ant"), (1, "ant", "bee")]
    assert found.most_confident[0].predicted_probability == pytest.approx(np.exp(9) / (np.exp(9) + 2))


def test_command_writes_the_page_into_the_run(run_folder, capsys):
    assert main(["report", str(run_folder), "--mistakes=never"]) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    assert "EMA top-1" in (run_folder / "report.html").read_text()
    assert main(["report", str(run_folder / "checkpoints")]) == 2


def test_a_step_of_1e30_is_reported_without_a_list_of_all_steps(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    [line for line in lines if line["kind"] == "eval"][-1]["step"] = 1e30
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", str(run_folder), "--mistakes=never"]) == 0


def test_a_full_disk_is_one_line_and_leaves_the_old_page(run_folder, refused, full_disk):
    (run_folder / "report.html").write_text("old")
    with full_disk(1000):
        assert "report.html cannot be written (" in refused(["report", run_folder, "--mistakes=never"])
    assert (run_folder / "report.html").read_text() == "old" and not list(run_folder.glob(".partial*"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(write_run(tmp_path / "run", "final_b16", 2))


def test_parts_are_sums_of_the_lines(run):
    expected = {part: 2 * s for part, s in (STEPS | LOADER).items()}
    expected |= {"eval": 2 * EVALUATION, "checkpoint": 2 * CHECKPOINT}
    assert part_seconds(run) == pytest.approx(expected)
    assert {r.key: r.seconds for r in time_split(run).loop}["eval"] == pytest.approx(2 * EVALUATION)
    cost = run_cost(run, None)
    assert {r.what: r.wall_seconds for r in cost.rows}["checkpoints"] == 2 * CHECKPOINT


def test_without_a_split_in_the_log_the_report_has_none(tmp_path):
    assert time_split(load_run(write_run(tmp_path / "run", "final_b16", 2, split=False))) is None
