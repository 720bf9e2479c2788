"""`fastft average`: WiSE-FT curves and soups give the arithmetic that they promise, and a checkpoint that commands take."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate import weight_average
from fastft.evaluate.evaluation import evaluate_checkpoint
from fastft.evaluate.trained import load_trained
from fastft.evaluate.weight_average import RESULT, Tried, choose_alpha
from fastft.export.preprocessing import origin
from fastft.model.recipe_model import build_model
from fastft.run.average_record import AverageRow, FileFigures
from fastft.run.predictions import Predictions
from tests.train.runs import run

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def other(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the same start as `whole` with another learning rate, and fewer epochs."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    run(tiny, folder, optim__lr="5e-3", schedule__epochs="1", schedule__warmup_epochs="0", model__drop_path="0.3")
    return folder


def weights_of(path: Path) -> State:
    return load_trained(path, CPU).model.state_dict()


def average(out: Path, *arguments: object) -> dict:
    assert main(["average", *map(str, arguments), "--out", str(out), "--device", "cpu"]) == 0
    return json.loads((out / RESULT).read_text())


def test_the_start_of_a_run_is_what_its_training_began_with(whole, tiny, tmp_path):
    average(tmp_path / "start", "start", whole, "--alpha", "0")
    started = build_model(load_trained(whole, CPU).recipe).state_dict()
    found = weights_of(tmp_path / "start")
    assert found.keys() == started.keys()
    assert all(torch.equal(found[name], value) for name, value in started.items())


def test_the_ends_of_the_curve_are_the_two_models_and_the_middle_is_their_mean(whole, other, tmp_path):
    found = {}
    for alpha in (0, 0.5, 1):
        average(tmp_path / f"{alpha}", whole, other, "--alpha", alpha)
        found[alpha] = weights_of(tmp_path / f"{alpha}")
    start, end = weights_of(whole), weights_of(other)
    for name in start:
        assert torch.equal(found[0][name], start[name]) and torch.equal(found[1][name], end[name])
        torch.testing.assert_close(found[0.5][name], (start[name] + end[name]) / 2)
    assert not torch.equal(found[0.5]["head.weight"], start["head.weight"])


def test_the_best_alpha_on_the_first_file_is_kept_and_the_file_is_named(whole, tiny, tmp_path, capsys):
    out = tmp_path / "wise"
    alphas = ["--alpha", "0,0.5,1", "--data", tiny["data.val"], "--data", tiny["data.train"]]
    result = average(out, "start", whole, *alphas)
    shown = capsys.readouterr().out
    assert "val.beton (selection)" in shown and "chosen by top-1 on val.beton" in shown
    top1 = [row["files"][0]["top1"] for row in result["rows"]]
    # on 20 images only a lead of six is significant: McNemar's p is 0.06 for 5 to 0, and 0.03 for 6 to 0
    best = max(top1)
    assert result["alpha"] == ((0, 0.5, 1)[top1.index(best)] if best - top1[-1] >= 30 else 1)
    assert ("can be chance, so alpha 1 is kept" in result["note"]) == (top1[-1] < best < top1[-1] + 30)
    assert (result["selection"], len(result["rows"][0]["files"])) == (tiny["data.val"], 2)
    # the figures are those of fastft eval, of the average and of the model at the end of the curve
    for file in result["chosen"]["files"]:
        assert evaluate_checkpoint(out, Path(file["data"]), "cpu").top1 == pytest.approx(file["top1"])
    assert evaluate_checkpoint(whole, None, "cpu").top1 == pytest.approx(top1[-1])


def tried(alpha: float, right: np.ndarray, best_by: str = "top1") -> Tried:
    labels = np.arange(len(right)) % 2
    figures = FileFigures(
        data="val.beton",
        samples=len(right),
        ranked_classes=2,
        best_by=best_by,
        top1=100 * right.mean(),
        balanced_accuracy=100 * right.mean(),
    )
    predicted, sure = np.where(right, labels, 1 - labels), np.ones(len(right), np.float32)
    return Tried(
        AverageRow(name=f"alpha {alpha:g}", alpha=alpha, files=[figures]), Predictions(labels, predicted, sure, sure, 2)
    )


@pytest.mark.parametrize("best_by", ["top1", "balanced_accuracy"])
def test_the_run_is_kept_where_another_alpha_may_have_been_lucky(best_by):
    """Wrong labels among few images decide which of eleven alphas is the best there."""
    rng = np.random.default_rng(0)
    for images, others in ((50, 0.62), (50, 0.5), (2000, 0.62)):
        curve = [tried(alpha, rng.random(images) < others, best_by) for alpha in (0, 0.3, 0.6)]
        chosen, note = choose_alpha([*curve, tried(1, rng.random(images) < 0.62, best_by)])
        assert chosen.alpha == 1 and ("can be chance" in note) == (
            max(t.row.selection_figure for t in curve) > chosen.selection_figure
        )


def test_an_alpha_that_is_significantly_better_is_taken_and_the_best_of_several():
    end = np.arange(1000) < 545
    curve = [tried(0.2, np.arange(1000) < 560), tried(0.5, np.arange(1000) < 594), tried(0.7, np.arange(1000) < 580)]
    chosen, note = choose_alpha([*curve, tried(1, end)])
    assert (chosen.alpha, note) == (0.5, "")
    chosen, note = choose_alpha([tried(0.5, np.arange(50) < 32), tried(1, np.arange(50) < 28)])
    assert chosen.alpha == 1 and note.startswith(
        "alpha 0.5 is 8.0 ± 3.8 points better on 50 images, which can be chance"
    )
    assert note.endswith("so alpha 1 is kept. --alpha 0.5 takes the other one")


def test_the_average_is_predicted_with_and_exported(whole, other, tiny, tmp_path, capsys):
    out = tmp_path / "soup"
    average(out, whole, other, "--soup", "uniform", "--data", tiny["data.val"])
    photo = next((Path(tiny["data.val"]).parent / "val").rglob("*.jpg"))
    assert main(["predict", str(out), str(photo), "--device", "cpu"]) == 0
    assert main(["export", str(out), "--format", "safetensors", "--out", str(tmp_path / "a.safetensors")]) == 0
    card = (tmp_path / "a.safetensors.md").read_text()
    assert "Uniform soup of 2 of 2 models" in card and "% top-1 of 20 images" in card
    assert origin(load_trained(out, CPU))["run"]["name"] == "soup"  # an average is no run with checkpoints
    assert origin(load_trained(whole, CPU))["run"]["name"] == whole.name
    again = ["average", str(whole), str(out), "--alpha=0.5", "--out", str(tmp_path / "again")]
    assert main(again) == 0
    before = (tmp_path / "again" / "average.json").read_bytes()
    capsys.readouterr()
    assert main(again) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    again[3] = "--alpha=0.25"
    assert main([*again, "--overwrite"]) == 0
    assert (tmp_path / "again" / "average.json").read_bytes() != before
    assert main([*again[:-1], str(whole), "--overwrite"]) == 2
    assert "was not written by fastft average, so it is not replaced" in capsys.readouterr().err
    assert (whole / "result.json").is_file()


def test_a_uniform_soup_is_the_mean(whole, other, tmp_path):
    result = average(tmp_path / "soup", whole, other, "start", whole, "--soup", "uniform")
    states = [weights_of(whole), weights_of(other), build_model(load_trained(whole, CPU).recipe).state_dict()]
    for name, value in weights_of(tmp_path / "soup").items():
        want = (2 * states[0][name].double() + states[1][name] + states[2][name]) / 4
        torch.testing.assert_close(value, want.float())
    assert result["selection"] is None and result["rows"] == []


def test_a_greedy_soup_leaves_out_what_makes_it_worse(whole, other, tiny, tmp_path):
    """The recipe of the paper, by hand: the best model first, each other one only if top-1 does not fall."""
    models = ["start", whole, other]
    result = average(tmp_path / "soup", *models, "--soup", "greedy", "--data", tiny["data.val"])
    alone = {row["name"]: row["files"][0]["top1"] for row in result["rows"][:3]}
    soups = {row["name"].removeprefix("soup with "): row["files"][0]["top1"] for row in result["rows"][3:]}
    order = sorted(alone, key=lambda name: -alone[name])
    assert list(soups) == order[1:]
    kept, best = [order[0]], alone[order[0]]
    for name in order[1:]:
        if soups[name] >= best:
            kept, best = [*kept, name], soups[name]
    assert result["members"] == kept and result["chosen"]["files"][0]["top1"] == best
    assert evaluate_checkpoint(tmp_path / "soup", None, "cpu").top1 == pytest.approx(best)


def test_after_a_failed_write_nothing_is_left_and_the_same_call_works(whole, tmp_path, monkeypatch, capsys):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    command = ["start", whole, "--alpha", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(weight_average, "write_document", full)
        assert main(["average", *map(str, command), "--out", str(out), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("out cannot be written (No space left on device). Nothing was kept")
    assert not list(tmp_path.iterdir())
    average(out, *command)
    assert {path.name for path in out.iterdir()} >= {"average.json", "state.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "Give two, or several"),
        (["RUN", "RUN", "RUN"], "Give two, or several"),
        (["RUN", "start"], "Give that run after it"),
        (["RUN", "nowhere"], "nowhere"),
        (["RUN", "RUN", "--alpha=0,1", "--soup=greedy"], "Omit one of them"),
        (["RUN", "RUN", "--out=README.md"], "README.md exists"),
        (["RUN", "RUN", "--out=README.md/average"], "/README.md is not a directory"),
        (["RUN", "RUN", "--data=nowhere.beton"], "nowhere.beton: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(whole, tmp_path, refused, arguments, message):
    words = [str(whole) if word == "RUN" else word for word in arguments]
    assert message in refused(["average", "--out", str(tmp_path / "out"), *words])
    assert not list(tmp_path.iterdir())


def test_models_of_other_classes_or_another_shape_are_refused(whole, tiny, tmp_path, refused):
    images = Path(tiny["data.train"]).parent / "train"
    (tmp_path / "images").mkdir()
    for name, source in (("a", "astronaut"), ("b", "coffee")):
        (tmp_path / "images" / name).symlink_to(images / source)
    convert_folder(tmp_path / "images", tmp_path / "renamed.beton", WriteOptions(workers=0))
    one_epoch = {"schedule__epochs": "1", "schedule__warmup_epochs": "0"}
    renamed = tiny | {"data.train": str(tmp_path / "renamed.beton"), "data.val": "none"}
    run(renamed, tmp_path / "renamed", **one_epoch)
    run(tiny, tmp_path / "scaled", model__layer_scale="1", **one_epoch)
    for folder, message in (("renamed", "has other classes"), ("scaled", "has another architecture or head")):
        assert message in refused(
            ["average", str(tmp_path / folder), str(whole), "--alpha=0.5", "--out", str(tmp_path / "out")]
        )
