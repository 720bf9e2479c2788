"""`fastft.fit`: one call from photographs to a run that predicts, evaluates, exports and reports."""

import base64
import csv
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

import fastft
from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.write.images import decode_sample
from fastft import EvalLoader, Predictor, TrainedRun, TrainLoader
from fastft.cli import main
from fastft.recipe import differences
from fastft.recipe.constants import SHORT_NAMES
from fastft.recipe.schema import SECTIONS
from fastft.run.result import read_result


@pytest.fixture(scope="module")
def given(album: Path, tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of the run."""
    return {
        "options": {"train.amp": "fp32", "train.log_every": 1}, "data": album, "model": tiny["model.arch"],
        "weights": "random", "image_size": 32, "epochs": 2, "batch_size": 8, "lr": 1e-3, "device": "cpu",
        "out": tmp_path_factory.mktemp("fit") / "run", "quiet": True, "augment": {"policy": "none"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(given: dict[str, Any]) -> TrainedRun:
    return fastft.fit("photos", **given)


def test_a_fit_is_a_run_as_the_command_makes_it_and_the_same_call_continues_it(run, given):
    assert read_result(run.folder) == run.result
    recipe = fastft.load_recipe(run.folder / "recipe.yaml")
    assert (recipe.optim.lr, recipe.schedule.epochs, recipe.augment.policy) == (1e-3, 2, "none")
    again = fastft.fit("photos", **given).result  # has ended already
    assert again.evaluations == run.result.evaluations


def test_a_quiet_fit_prints_nothing_and_needs_no_main_thread(given, tmp_path, monkeypatch, capfd):
    """Streamlit, Gradio, Ray and Optuna train in other threads, in which Python lets no signal handler be set."""
    monkeypatch.setattr("beton_tools.base.progress_bar.PLAIN_INTERVAL", 0.0)
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(fastft.fit, "photos", **given | {"out": tmp_path / "run", "epochs": 1}).result()
    assert run.result.last.epoch == 0
    assert capfd.readouterr() == ("", "")


def test_a_run_predicts_files_folders_and_images(run, album, capsys):
    files = sorted((album / "chelsea").iterdir())
    by_folder, by_file = run.predict(album / "chelsea"), run.predict(files, topk=2)
    assert [p.path for p in by_folder] == [p.path for p in by_file] == files
    assert all(len(p.classes) == 2 for p in by_file) and set(by_folder[0].classes) == set(run.classes)
    with Image.open(files[0]) as image:
        (held,) = run.predict(image)
    assert held.probabilities == pytest.approx(by_folder[0].probabilities, rel=1e-4)  # a batch of one
    assert main(["predict", str(run.folder), str(files[0]), "--device=cpu", "--csv", str(run.folder / "p.csv")]) == 0
    first = next(csv.DictReader((run.folder / "p.csv").open()))
    assert first["predicted"] == held.classes[0]
    capsys.readouterr()
    assert main(["predict", str(run.folder), *map(str, files[:2]), "--device=cpu", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == [str(f) for f in files[:2]] and lines[0]["classes"] == held.classes


def test_a_run_is_evaluated_on_its_validation_images_and_on_a_folder(run, album):
    own = run.evaluate()
    assert own.top1 == pytest.approx(run.evaluate(run.folder / "data/val.beton").top1)
    found = run.evaluate(album, only_present_classes=True)
    assert (found.data, sum(c.images for c in found.classes)) == (str(album), 36)
    right = sum(p.classes[0] == p.path.parent.name for p in run.predict(album))
    assert found.top1 == pytest.approx(100 * right / 36)


def test_labelled_images_of_another_kind_are_named_not_the_file_made_of_them(run, album, tmp_path):
    first = next((album / "chelsea").iterdir())
    shutil.copy(first, tmp_path / first.name)
    (tmp_path / "several.csv").write_text(f"image,labels\n{first.name},{run.classes[0]};{run.classes[1]}\n")
    with pytest.raises(UserError, match=f"^{tmp_path}/several.csv has several labels per image"):
        run.evaluate(tmp_path / "several.csv")


def test_arrays_are_images_and_anything_else_is_one_error(run, album):
    with Image.open(sorted((album / "chelsea").iterdir())[0]) as image:
        (want,), pixels = run.predict(image), np.asarray(image)
    (same,) = run.predict(pixels)
    assert (same.classes, same.probabilities) == (want.classes, want.probabilities)
    assert [p.classes for p in run.predict(np.stack([pixels, pixels]))] == [want.classes] * 2
    assert run.predict(np.asarray(image.convert("L")))[0].error is None
    for wrong, named in ((pixels / 255, "float64"), (pixels[..., :2], r"\(64, 64, 2\)"), ([3], "the type int")):
        with pytest.raises(UserError, match=rf"{named}.* is not an image. Give a path"):
            run.predict(wrong)


def test_a_folder_is_evaluated_on_the_background_of_the_training(run, tmp_path, monkeypatch):
    own = run.evaluate()
    (tmp_path / run.classes[0]).mkdir()
    Image.new("RGBA", (40, 40)).save(tmp_path / run.classes[0] / "a.png")
    recipe = run.predictor.trained.recipe.with_option("data.background", "black")
    monkeypatch.setattr(run.predictor, "trained", replace(run.predictor.trained, recipe=recipe))
    monkeypatch.setattr(
        "fastft.evaluate.evaluation.evaluate_checkpoint",
        lambda _, path, *__, **___: structs.replace(own, samples=int(decode_sample(Beton.open(path), 0).max())),
    )
    assert run.evaluate(tmp_path).samples == 0


def test_a_run_that_was_moved_is_loaded(run, album, tmp_path):
    expected = run.predict(album / "chelsea")[0].classes, run.evaluate().samples
    shutil.copytree(run.folder, tmp_path / "moved")
    hidden = run.folder.rename(run.folder.with_name("hidden"))  # the recorded paths lead nowhere
    moved = fastft.load(tmp_path / "moved", "cpu")
    assert (moved.predict(album / "chelsea")[0].classes, moved.evaluate().samples) == expected
    assert "Classes" in moved.report().read_text()
    hidden.rename(run.folder)
    first, second = repr(moved).splitlines()
    assert [first.replace(str(tmp_path / "moved"), str(run.folder)), second] == repr(run).splitlines()
    assert "top-1" in first and "weights of epoch 1" in second and "np." not in str(run.result)
    assert fastft.load(run.folder, "cpu") == run
    with pytest.raises(UserError, match="give the directory of a run that has ended"):
        fastft.load(tmp_path)


def test_a_run_exports_and_reports(run, tmp_path):
    assert run.export("safetensors", tmp_path / "m.safetensors").stat().st_size > 1000
    assert run.report() == run.folder / "report.html"
    assert "<html" in run.report(tmp_path / "page.html").read_text()
    with pytest.raises(UserError, match=r"no export format 'tf'\. Give timm, open_clip"):
        run.export("tf", tmp_path / "m")


def test_python_too_replaces_a_users_file_only_if_asked(run, tmp_path):
    calls: dict[str, Callable[..., Any]] = {
        "mine.csv": lambda path, **more: run.evaluate(csv=path, **more),
        "mine.html": run.report,
        "mine.safetensors": lambda path, **more: run.export("safetensors", path, **more),
    }
    for name, write in calls.items():
        path = tmp_path / name
        path.write_text("mine")
        with pytest.raises(UserError, match=rf"{name} exists\. .* \(in Python overwrite=True\)"):
            write(path)
        assert path.read_text() == "mine"
        write(path, overwrite=True)
        assert path.stat().st_size > 40


def test_a_refit_trains_on_all_images_as_the_first_run_chose_and_says_that_it_has_no_figure(run, given, album, capsys):
    refit = fastft.fit("photos", **given | {"train": {"refit": True}})
    assert refit.folder == run.folder / "refit" and refit.result.evaluations == [] and refit.result.last is None
    assert refit.result.first_run.weights == run.result.weights
    assert "no images were held out from this run" in refit.result.weights.reason
    recipes = [fastft.load_recipe(folder / "recipe.yaml") for folder in (run.folder, refit.folder)]
    changed = {f"data.{name}" for name in ("train", "val", "hold_out_beton", "train_size")}
    changed |= {"train.run_dir", "schedule.stop_epoch"}
    assert set(differences(*recipes)) == changed and recipes[1].data.train_size == 36
    assert read_result(run.folder).weights == run.result.weights
    assert main(["predict", str(refit.folder), str(album / "coffee/00.jpg"), "--device=cpu"]) == 0
    assert f"using the {run.result.weights.kind}" in capsys.readouterr().err.replace("EMA", "ema")


def test_a_refit_without_held_out_images_is_the_run_itself(given, album, tmp_path, capsys):
    for name in ("chelsea", "coffee"):
        (tmp_path / "few" / name).mkdir(parents=True)
        shutil.copy(next((album / name).iterdir()), tmp_path / "few" / name)
    few = {"data": tmp_path / "few", "out": tmp_path / "run", "batch_size": 2, "train": {"refit": True}, "quiet": False}
    assert fastft.fit("photos", **given | few).folder == tmp_path / "run"
    said = " ".join(capsys.readouterr().out.split())
    assert "no images were held out, so the weights were already trained on all images" in said


def test_a_refit_trains_on_images_that_were_only_left_out_and_refuses_files_that_cannot_be_joined(run, given, tmp_path):
    beton = run.folder / "data/train.beton"
    options = given["options"] | {"data.hold_out_beton": False, "data.selection_share": 0.25, "train.refit": True}
    given = given | {"data": beton, "epochs": 1, "options": options}
    refit = fastft.fit("photos", **given | {"out": tmp_path / "run"})
    recipes = [fastft.load_recipe(folder / "recipe.yaml") for folder in (refit.folder.parent, refit.folder)]
    whole = len(BetonSet.open(beton))
    assert [r.data.train_size for r in recipes] == [whole - recipes[0].selection_images(whole), whole]
    with pytest.raises(UserError, match="named twice"):
        fastft.fit("photos", **given | {"out": tmp_path / "none", "val_data": beton})
    assert not (tmp_path / "none").exists()


def test_completion_knows_the_options_of_fit_and_another_one_is_refused():
    parameters = inspect.signature(fastft.fit).parameters
    assert set(SHORT_NAMES) | set(SECTIONS) - {"about"} <= set(parameters)
    with pytest.raises(UserError, match=r"batch=8: unknown option 'batch'\. Did you mean 'optim.batch_size'\?"):
        fastft.fit(batch=8)


@pytest.mark.slow
def test_type_checkers_know_the_options_of_fit(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import fastft\n\nfastft.fit(data='pics', lr='auto', epochs=3)\nfastft.fit(batch=8)\nfastft.fit(lr=[1])\n"
    )
    api = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent", str(script)]
    env = os.environ | {"MYPYPATH": str(Path(__file__).parents[2])}  # mypy does not find editable installations
    said = subprocess.run(api, capture_output=True, text=True, cwd=tmp_path, env=env).stdout
    assert sorted(re.findall(r"^script.py:(\d+): error", said, re.M)) == ["4", "5"], said


def test_completion_of_the_package_lists_its_names_and_nothing_else():
    listed = subprocess.run(
        [sys.executable, "-c", "import fastft; print(*dir(fastft))"], capture_output=True, text=True
    )
    assert [name for name in listed.stdout.split() if not name.startswith("__")] == sorted(fastft.__all__)


def test_predict_and_export_of_a_run_take_what_their_commands_take(run, album, tmp_path):
    files = sorted((album / "chelsea").iterdir())
    options = {"weights": "raw", "min_probability": 0.6, "flip_average": True, "temperature": False}
    flipped = run.predict(files, **options | {"flip_average": False})
    for own, theirs in zip(flipped, Predictor(run.folder, "cpu", "raw", temperature=False).predict(files), strict=True):
        assert own.probabilities == (theirs.probabilities if theirs.probabilities[0] >= 0.6 else [])
    assert inspect.signature(run.predict).parameters.keys() >= inspect.signature(Predictor).parameters.keys() - {
        "checkpoint",
        "device",
    }
    first = run.export("safetensors", tmp_path / "m.safetensors", weights="raw").read_bytes()
    again = run.export("safetensors", tmp_path / "m.safetensors", weights="probe", overwrite=True).read_bytes()
    assert first != again


def test_a_notebook_shows_a_run_a_prediction_and_a_loader(run, album):
    first = next((album / "chelsea").iterdir())
    shown = run._repr_html_()
    assert f"top-1 {run.result.weights.top1:.2f} %" in shown
    assert all(f"<td>{title}</td>" in shown for title in ("linear probe", "best epoch, raw", "last epoch, raw"))
    with Image.open(first) as image:
        image.load()
    for given, name in ((first, first.name), (image.copy(), "Prediction(")):
        (prediction,) = run.predict(given, topk=1)
        said = repr(prediction)
        assert f"{prediction.classes[0]} {prediction.probabilities[0]:.1%}" in said and name in said
        page = prediction._repr_html_()
        picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])))
        assert picture.size == image.size and prediction.classes[0] in page
    (broken,) = run.predict(album / "no.jpg")
    assert "not read" in repr(broken) and "not read" in broken._repr_html_() and "<img" not in broken._repr_html_()
    with TrainLoader(run.folder / "data/train.beton", "3aug", 32, batch_size=8, micro_batch=4) as loader:
        loader.set_epoch(2)
        assert repr(loader).endswith("3 classes, 6 batches of 4 at 32 px on cpu, augmentation 3aug, next epoch 2>")
        assert f"{loader.num_samples} images" in repr(loader)
    assert "closed" in repr(loader)
    with EvalLoader(run.folder / "data/val.beton", "none", 32, batch_size=5) as loader:
        assert repr(loader).startswith("<EvalLoader ") and f"{loader.num_samples} images" in repr(loader)


def test_a_loader_refuses_a_folder_with_the_call_that_converts_it(album):
    with pytest.raises(UserError, match=r"is a folder.*fastft convert folder.*convert_folder"):
        TrainLoader(album, "none", 32, batch_size=8)
