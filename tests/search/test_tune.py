"""A search trains, resumes, stays in its budget and ends with a recipe that runs as it is."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from beton_tools.base.errors import UserError
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.recipe import load_recipe
from fastft.run.checkpoint import write_checkpoint
from fastft.run.prediction_metrics import read_validation
from fastft.run.run_directory import read_metrics
from fastft.search import tune as search
from fastft.search.estimate import Result
from fastft.search.runs import plan_run
from fastft.search.settings import DEFAULT, grid, shortened
from fastft.search.tune import tune
from fastft.search.tune_report import conclusion
from fastft.train.exceptions import TimeUp
from tests.train.runs import QUIET

RECIPE = "rcp/final_b16.yaml"


def options(tiny: dict[str, str]) -> list[str]:
    """Six epochs: rungs of 1, 2 and 6."""
    changed = tiny | {"schedule.epochs": "6", "train.checkpoint_steps": "0"}
    return [f"--{key}={value}" for key, value in changed.items()]


@pytest.fixture(scope="module")
def untouched(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other images than those of tiny's training and validation files: the latter, mirrored."""
    folder = tmp_path_factory.mktemp("test")
    for path in Path(tiny["data.val"]).with_suffix("").rglob("*.jpg"):
        (folder / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            ImageOps.mirror(image).save(folder / "images" / path.parent.name / path.name)
    convert_folder(folder / "images", folder / "test.beton", WriteOptions(workers=0))
    return folder / "test.beton"


@pytest.fixture(scope="module")
def searched(tiny: dict[str, str], untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("searched")
    return folder, tune(RECIPE, options(tiny), folder, test=untouched, console=QUIET)


def lines(folder: Path) -> dict[str, int]:
    return {run.name: len(read_metrics(run / "metrics.jsonl")) for run in (folder / "runs").iterdir()}


def test_six_three_and_one_settings_are_trained_for_longer_and_longer(searched):
    _, result = searched
    assert list(result.rungs) == [1, 2, 6]
    by_rung = [[t for t in result.trials if t.rung == rung] for rung in range(3)]
    settings = [t.setting for t in by_rung[0]]
    assert settings == grid(result.recipe, 2)
    assert len(settings) == 6 and len(by_rung[1]) == 3  # of 9 settings three would need a layer_decay above 1
    finals = {t.setting for t in by_rung[2]}
    assert len(finals - {DEFAULT}) <= 1 and DEFAULT in finals
    for shorter, longer in ((by_rung[0], by_rung[1]), (by_rung[1], [t for t in by_rung[2] if t.setting != DEFAULT])):
        chosen = {t.setting for t in longer}
        worst = min(t.score for t in shorter if t.setting in chosen) if chosen else 0
        assert all(t.score <= worst for t in shorter if t.setting not in chosen) or not chosen
    assert result.complete and not result.skipped
    # only trainings in full keep their checkpoints
    assert {t.rung for t in result.trials if (t.run.folder / "checkpoints").exists()} == {2}


def test_the_tuned_recipe_is_the_training_of_the_best_setting(searched):
    folder, result = searched
    recipe = load_recipe(folder / "tuned.yaml")
    assert recipe.train.run_dir is None and recipe.about.top1 is None
    assert (recipe.optim.lr, recipe.optim.layer_decay) == (
        result.best.run.recipe.optim.lr, result.best.run.recipe.optim.layer_decay,
    )  # fmt: skip
    assert plan_run(shortened(recipe, 6), folder / "runs").key == result.best.run.key


def test_images_that_chose_the_setting_are_no_test(tiny, untouched, searched, tmp_path):
    for used in (tiny["data.val"], tiny["data.train"]):
        with pytest.raises(UserError, match="all its images are training or validation images"):
            tune(RECIPE, options(tiny), searched[0], test=Path(used), console=QUIET)
    images = shutil.copytree(untouched.with_name("images"), tmp_path / "images")
    shutil.copytree(Path(tiny["data.val"]).with_suffix("") / "coffee", images / "coffee", dirs_exist_ok=True)
    convert_folder(images, tmp_path / "half.beton", WriteOptions(workers=0))
    result = tune(RECIPE, options(tiny), searched[0], test=tmp_path / "half.beton", console=QUIET)
    assert result.figures is not None and result.figures.shared == 10
    assert "of 20 images, 10 of them training or validation images" in conclusion(result)[1]


def test_the_same_call_trains_nothing_again(tiny, untouched, searched):
    folder, result = searched
    before, spent = lines(folder), json.loads((folder / "tune.json").read_text())
    again = tune(RECIPE, options(tiny), folder, test=untouched, console=QUIET)
    assert lines(folder) == before and json.loads((folder / "tune.json").read_text()) == spent
    assert [(t.setting, t.score) for t in again.trials] == [(t.setting, t.score) for t in result.trials]
    assert again.figures == result.figures


def test_the_figure_is_the_evaluation_of_the_untouched(untouched, searched):
    _, result = searched
    assert result.figures is not None and result.optimism is None
    figures = result.figures.as_dict()
    default = next(t for t in result.trials if t.rung == 2 and t.setting == DEFAULT)
    tuned, own = (evaluate_checkpoint(t.run.folder, untouched, "cpu") for t in (result.best, default))
    assert figures["top1"] == pytest.approx(tuned["top1"]) and figures["default_top1"] == pytest.approx(own["top1"])
    assert figures["gain"] == pytest.approx(tuned["top1"] - own["top1"])
    assert figures["balanced_accuracy"] == pytest.approx(tuned["balanced_accuracy"])


def test_table_and_json_are_written(searched):
    folder, result = searched
    table = (folder / "table.md").read_text()
    assert "1 epoch | 2 epochs | 6 epochs" in table and f"{result.best.score:.2f}" in table
    for text in (table, (folder / "tuned.yaml").read_text()):
        assert "images, none of which has the bytes of a training" in text
    document = json.loads((folder / "results.json").read_text())
    assert len(document["trials"]) == len(result.trials) and document["best"]["score"] == result.best.score


def test_without_a_untouched_the_figure_is_corrected_by_a_bootstrap(tiny, searched, capsys):
    folder, result = searched
    assert main(["tune", RECIPE, *options(tiny), "--out", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "these images also chose the setting. Corrected by a bootstrap" in said
    document = json.loads((folder / "results.json").read_text())
    assert document["test"] is None and document["optimism"] >= 0
    labels, predicted = read_validation(result.best.run.folder, result.best.weights)
    assert 100 * (labels == predicted).mean() == pytest.approx(result.best.score)


@pytest.mark.slow
def test_a_budget_that_ends_is_said_and_a_larger_one_continues(tiny, searched, tmp_path, refused):
    command = ["tune", RECIPE, *options(tiny), "--out", str(tmp_path / "out")]
    assert "a larger --budget continues" in refused([*command, "--budget=0.01s"])
    first = next((tmp_path / "out/runs").iterdir())
    assert [m for m in read_metrics(first / "metrics.jsonl") if m["kind"] == "checkpoint"]
    (tmp_path / "out/tune.json").unlink()
    result = tune(RECIPE, options(tiny), tmp_path / "out", console=QUIET)
    _, expected = searched
    assert [(t.setting, t.rung, t.score) for t in result.trials] == [
        (t.setting, t.rung, t.score) for t in expected.trials
    ]


def test_runs_of_the_first_rung_alone_change_nothing(tiny, searched, tmp_path, monkeypatch):
    folder, expected = searched
    first = [t.setting for t in expected.trials if t.rung == 0]

    def already_trained(run, world, console, ending):
        if run.recipe.epochs > expected.rungs[0]:
            raise TimeUp("the budget has ended")
        (tmp_path / "out/runs").mkdir(parents=True, exist_ok=True)
        run.folder.symlink_to(folder / "runs" / run.key)

    monkeypatch.setattr(search, "train_run", already_trained)
    monkeypatch.setattr(search, "_ranked", lambda trials: sorted(trials, key=lambda t: t.setting == DEFAULT))
    result = tune(RECIPE, options(tiny), tmp_path / "out", budget=1e9, console=QUIET)
    assert [t.setting for t in result.trials] == first
    assert not result.complete and result.best.setting == DEFAULT
    assert "too little time: only runs of 1 epoch of 6" in (tmp_path / "out/table.md").read_text()
    tuned = load_recipe(tmp_path / "out/tuned.yaml")
    assert tuned.optim.lr == load_recipe(RECIPE, options(tiny)).optim.lr


def test_a_search_without_runs_of_the_first_rung_is_corrected_by_those_of_the_second(
    tiny, searched, tmp_path, monkeypatch
):
    """A larger budget may leave no time for the first rung, whose runs an earlier one has used up, but for the second."""
    folder, expected = searched

    def already_trained(run, world, console, ending):
        if run.recipe.epochs == expected.rungs[-1]:
            raise TimeUp("the budget has ended")
        (tmp_path / "out/runs").mkdir(parents=True, exist_ok=True)
        run.folder.symlink_to(folder / "runs" / run.key)

    monkeypatch.setattr(search, "BUDGET_SHARES", (0.0, 1.0, 1.0))
    monkeypatch.setattr(search, "train_run", already_trained)
    result = tune(RECIPE, options(tiny), tmp_path / "out", budget=1e9, console=QUIET)
    assert {t.rung for t in result.trials} == {1} and not result.complete
    assert result.optimism is not None and (tmp_path / "out/tuned.yaml").exists()


def test_the_first_rungs_leave_half_of_the_budget_and_what_did_not_fit_is_listed(tiny, searched, tmp_path, monkeypatch):
    """Each epoch takes a second: the first rung has time for one run of one epoch, the second for none."""
    folder, _ = searched
    epochs: dict[str, int] = {}

    class Clockwork(search.Budget):
        @contextmanager
        def timed(self, key: str) -> Iterator[None]:
            yield
            self._seconds[key] = float(epochs[key])

    def already_trained(run, world, console, ending):
        (tmp_path / "out/runs").mkdir(parents=True, exist_ok=True)
        run.folder.symlink_to(folder / "runs" / run.key)
        epochs[run.key] = run.recipe.epochs

    monkeypatch.setattr(search, "Budget", Clockwork)
    monkeypatch.setattr(search, "train_run", already_trained)
    result = tune(RECIPE, options(tiny), tmp_path / "out", budget=1.9, console=QUIET)
    assert result.complete and result.best.setting == DEFAULT
    assert [(t.rung, t.setting) for t in result.trials] == [(0, DEFAULT), (2, DEFAULT)]
    assert len(result.skipped) == 6  # five of the first rung, and the recipe's own of the second
    assert "did not fit into the budget" in (tmp_path / "out/table.md").read_text()


def test_a_choice_by_balanced_accuracy_is_reported_in_balanced_accuracy(tiny, untouched, tmp_path):
    for source, name, rare in (
        (Path(tiny["data.train"]).with_suffix(""), "train", 2),
        (untouched.with_name("images"), "test", 3),
    ):
        shutil.copytree(source, tmp_path / name)
        for path in sorted((tmp_path / name / "coffee").iterdir())[rare:]:
            path.unlink()
        convert_folder(tmp_path / name, tmp_path / f"{name}.beton", WriteOptions(workers=0))
    changed = tiny | {"data.train": str(tmp_path / "train.beton"), "schedule.epochs": "2"}
    recipe = [f"--{key}={value}" for key, value in changed.items()]
    result = tune(RECIPE, recipe, tmp_path / "out", test=tmp_path / "test.beton", console=QUIET)
    assert result.figures is not None and result.best.measure == "balanced_accuracy" and result.complete
    figures, folder = result.figures.as_dict(), result.best.run.folder
    expected = evaluate_checkpoint(folder, tmp_path / "test.beton", "cpu")
    assert figures["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"])
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["measure"] == "balanced_accuracy"
    assert document["test"]["balanced_gain"] == figures["balanced_gain"] is not None
    sentence = conclusion(result)[1]
    assert f"test balanced accuracy {figures['balanced_accuracy']:.2f} ±" in sentence and " of 13 images" in sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.train=none", "--data.val=none"], "no training data; set --data.train"),
        (["--data.val=none"], "tuning needs validation images; set --data.val"),
        (["--train.run_dir=x"], "use --out"),
        (["--train.stop_after=1h"], "use --budget"),
        (["--budget", "2"], "--budget is '2'"),
        (["--test", "nowhere.beton"], "nowhere.beton"),
        (["--schedule.sizes=0:16,2:32"], "schedule.sizes changes between epochs"),
        (["--optim.lr=0"], "optim.lr is 0, and tuning multiplies it"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tiny, tmp_path, arguments, message, refused):
    assert message in refused(["tune", RECIPE, *options(tiny), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_setting_that_fails_is_listed_and_not_chosen(tiny, searched, tmp_path, monkeypatch):
    folder, expected = searched
    failing = expected.best.setting

    def trained_elsewhere(run, world, console, ending):
        if run.recipe.optim.lr == expected.best.run.recipe.optim.lr:
            return "the loss is NaN"
        (tmp_path / "out/runs").mkdir(parents=True, exist_ok=True)
        source = folder / "runs" / run.key
        if not source.exists():
            return "not trained here"
        run.folder.symlink_to(source)
        return None

    monkeypatch.setattr(search, "train_run", trained_elsewhere)
    result = tune(RECIPE, options(tiny), tmp_path / "out", console=QUIET)
    assert result.best.setting.head != failing.head
    assert "failed" in (tmp_path / "out/table.md").read_text()


def test_a_full_disk_ends_the_search_and_the_same_call_continues(tiny, tmp_path, monkeypatch, capsys):
    """It is no failure of a setting: the others would fail too, or be chosen for it."""
    short = [*options(tiny), "--schedule.epochs=1", "--schedule.warmup_epochs=0"]
    command = ["tune", RECIPE, *short, "--out", str(tmp_path / "out")]

    def full(path: Path, *arguments: object) -> None:
        if len(list((tmp_path / "out/runs").iterdir())) == 2:
            raise UserError(f"checkpoint {path} could not be written: no space")
        write_checkpoint(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr("fastft.train.checkpointing.write_checkpoint", full)
        assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("could not be written: no space")
    assert len(list((tmp_path / "out/runs").iterdir())) == 2 and not (tmp_path / "out/tuned.yaml").exists()
    assert main(command) == 0
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["complete"] and not any(trial["error"] for trial in document["trials"])


@pytest.mark.slow
def test_two_processes_search_together(tiny, tmp_path):
    from tests.train.test_distributed import launch, said_by

    recipe_options = [o for o in options(tiny) if not o.startswith("--schedule")]
    short = ["--schedule.epochs=1", "--schedule.warmup_epochs=0", "--train.micro_batch=4"]
    said_by(launch("tune", RECIPE, *recipe_options, *short, "--out", str(tmp_path / "out"), "--budget", "1h"))
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["complete"] and load_recipe(tmp_path / "out/tuned.yaml").epochs == 1
