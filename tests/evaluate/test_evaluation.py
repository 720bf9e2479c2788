"""Evaluation of a checkpoint: figures, tables, several files; the predictions of a report; embeddings in a file."""

import csv
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs

from beton_tools.base.errors import UserError
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.evaluate import file_report, trained
from fastft.evaluate.evaluation import evaluate_checkpoint, evaluate_file
from fastft.evaluate.mistakes import predict_validation
from fastft.evaluate.trained import load_trained
from fastft.run.checkpoint import list_checkpoints
from fastft.run.run_directory import load_run
from tests.refusals import refuses
from tests.train.runs import run
from tests.written import write_crops

CLASSES = ("astronaut", "chelsea", "coffee", "rocket", "china", "flower")


def test_a_checkpoint_that_a_run_removes_while_it_is_read_is_chosen_again(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    older, newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-2:]
    truly_read = trained.read_model

    def read_model(path, stem):
        shutil.rmtree(newest, ignore_errors=True)
        return truly_read(path, stem)

    monkeypatch.setattr(trained, "read_model", read_model)
    assert load_trained(tmp_path / "run", torch.device("cpu"), "raw").path == older
    with refuses(f"checkpoint .*{newest.name} is damaged"):
        load_trained(newest, torch.device("cpu"))


def test_mistakes_and_metrics_are_those_of_evaluation(run_of_random_model):
    found, _ = predict_validation(load_run(run_of_random_model), insist=True)
    scores = evaluate_checkpoint(run_of_random_model, None, "cpu")
    assert found is not None and found.mistakes.images == 36
    assert 100 * (1 - found.mistakes.wrong / 36) == pytest.approx(scores.top1)
    assert found.report.weights == scores.weights
    assert all(m.image.startswith("data:image/jpeg") for m in found.mistakes.most_confident)
    assert all(m.file.startswith(f"{m.truth}/") for m in found.mistakes.most_confident)
    assert structs.replace(found.report, data=scores.data, logit_adjustment=False) == scores
    assert found.calibration.plain.ece == pytest.approx(scores.ece, abs=1e-3)
    assert found.calibration.temperature == pytest.approx(scores.temperature, rel=1e-3)
    confused = np.array(scores.confusion_matrix) * (1 - np.eye(6, dtype=int))
    assert [c.confused for c in scores.classes] == confused.max(1).tolist()
    for c, row in zip(scores.classes, confused, strict=True):
        assert c.confused_with == scores.classes[row.argmax()].name if row.any() else c.confused_with is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_report, "MATRIX_CLASSES", 5)
        many = evaluate_checkpoint(run_of_random_model, None, "cpu")
    assert many.confusion_matrix is None and many.confusions == scores.confusions != []
    assert sum(scores.reliability.images) == 36
    assert len(scores.reliability.accuracy) == len(scores.reliability.confidence) == 15


def test_the_table_of_predictions_has_every_image_once_with_its_name(run_of_random_model, tmp_path):
    table = tmp_path / "predictions.csv"
    scores = evaluate_checkpoint(run_of_random_model, None, "cpu", csv=table)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == list(range(36))
    assert {row["file"] for row in rows} == {f"{name}/{k:02}.png" for name in CLASSES for k in range(6)}
    assert all(row["file"].startswith(row["label"] + "/") for row in rows)
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert 100 * right / 36 == pytest.approx(scores.top1)
    assert all(float(r["label_probability"]) <= float(r["probability"]) + 1e-6 for r in rows)


def test_missing_validation_data_is_a_note_or_with_insist_an_error(run_of_random_model, tmp_path):
    text = (run_of_random_model / "recipe.yaml").read_text().replace("val.beton", "gone.beton")
    (tmp_path / "recipe.yaml").write_text(text)
    found, why = predict_validation(load_run(tmp_path), insist=False)
    assert found is None and "gone.beton" in why
    with pytest.raises(UserError):
        predict_validation(load_run(tmp_path), insist=True)


PRESENT = ("astronaut", "coffee", "rocket")


@pytest.fixture(scope="module")
def subset(
    run_of_random_model: Path, tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, np.ndarray]
) -> Path:
    """Images of three of the six classes, with the labels of all six, as ImageNet-R is converted."""
    folder = tmp_path_factory.mktemp("subset")
    write_crops(folder / "images", photographs, dict.fromkeys(PRESENT, 4), size=90)
    convert_folder(
        folder / "images", folder / "r.beton", WriteOptions(workers=0), classes_of=run_of_random_model / "val.beton"
    )
    return folder / "r.beton"


def test_only_the_classes_with_images_are_ranked(run_of_random_model, subset):
    trained, scored = evaluate_file(run_of_random_model, subset, "cpu")
    found = scored.predictions
    present = [trained.classes.index(name) for name in sorted(PRESENT, key=trained.classes.index)]
    among_all, among_present = (found.logits_NK.argmax(1), np.take(present, found.logits_NK[:, present].argmax(1)))
    assert (among_all != among_present).any()  # otherwise this would show nothing
    for only, predicted, classes in ((False, among_all, 6), (True, among_present, 3)):
        scores = evaluate_checkpoint(run_of_random_model, subset, "cpu", only_present_classes=only)
        assert scores.top1 == pytest.approx(100 * (predicted == found.labels_N).mean())
        assert scores.ranked_classes == classes
        assert (scores.top5 is not None) == (classes > 5)
    logits_NP = found.logits_NK[:, present] - found.logits_NK[:, present].max(1, keepdims=True)
    truth_N = logits_NP[np.arange(12), [present.index(label) for label in found.labels_N]]
    loss = (np.log(np.exp(logits_NP).sum(1)) - truth_N).mean()
    assert scores.loss == pytest.approx(loss, rel=1e-5)
    assert np.isfinite([scores.ece, scores.ece_scaled, scores.temperature]).all()


def test_several_files_make_one_table(run_of_random_model, subset, refused, capsys):
    files = [run_of_random_model / "val.beton", subset]
    command = ["eval", str(run_of_random_model), *(f"--data={file}" for file in files), "--only-present-classes"]
    assert main([*command, "--device=cpu"]) == 0
    shown = capsys.readouterr().out
    for file, images, classes in (("val", "36", "6"), ("r", "12", "3")):
        row = next(line for line in shown.splitlines() if f" {file} " in line)
        assert row.split()[1:3] == [images, classes]
    assert main([*command, "--device=cpu", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [scores["data"] for scores in listed] == [str(file) for file in files]
    assert [scores["ranked_classes"] for scores in listed] == [6, 3]
    alone = evaluate_checkpoint(run_of_random_model, subset, "cpu", only_present_classes=True)
    assert listed[1] == msgspec.to_builtins(alone)
    assert "--csv writes the predictions for one file" in refused([*command, "--csv=a.csv"])


def test_images_that_the_model_was_trained_on_are_counted(tiny, tmp_path, capsys):
    mine, renamed, folder = tmp_path / "mine.beton", tmp_path / "renamed.beton", tmp_path / "run"
    for path in (mine, renamed):
        convert_folder(Path(tiny["data.train"]).parent / "train", path, WriteOptions(workers=0))
    run(tiny | {"data.train": str(mine), "schedule.epochs": "1", "schedule.warmup_epochs": "0"}, folder)
    capsys.readouterr()
    assert main(["eval", str(folder), f"--data={renamed}", f"--data={tiny['data.val']}", "--device=cpu"]) == 0
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert (
        f"{renamed}: 48 validation images are also training images, so accuracy will be too high: astronaut/00" in said
    )
    assert evaluate_checkpoint(folder, renamed, "cpu").note in said
    manifest = manifest_path(mine)
    manifest.write_bytes(manifest.read_bytes()[:-200])
    assert evaluate_checkpoint(folder, renamed, "cpu").note == ""
    mine.unlink()
    assert evaluate_checkpoint(folder, renamed, "cpu").note == ""


@pytest.fixture(scope="module")
def files(whole: Path, tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Embeddings of the training and the validation images."""
    folder = tmp_path_factory.mktemp("features")
    for split in ("train", "val"):
        command = ["predict", str(whole), tiny[f"data.{split}"], "--features", str(folder / f"{split}.npz")]
        assert main([*command, "--device", "cpu"]) == 0
    return {split: folder / f"{split}.npz" for split in ("train", "val")}


def test_embeddings_times_the_head_are_the_logits(whole, tiny, files):
    trained, found = load_trained(whole, torch.device("cpu")), np.load(files["val"])
    want = evaluate_file(whole, Path(tiny["data.val"]), "cpu")[1].predictions
    with torch.no_grad():
        logits_NK = trained.model.head(torch.from_numpy(found["features"])).numpy()
    np.testing.assert_allclose(logits_NK, want.logits_NK, atol=1e-5)
    np.testing.assert_array_equal(found["labels"], want.labels_N)
    manifest = Manifest.of_beton(tiny["data.val"])
    assert manifest is not None and list(found["files"]) == list(manifest.names)
    assert list(found["classes"]) == ["astronaut", "coffee"]


def test_timms_models_have_embeddings_and_averages(tiny, tmp_path):
    options = {"model.arch": "timm/test_vit", "schedule.epochs": "1", "schedule.warmup_epochs": "0"}
    run(tiny | options, tmp_path / "run")
    out, average = tmp_path / "val.npz", tmp_path / "average"
    assert main(["predict", str(tmp_path / "run"), tiny["data.val"], "--features", str(out), "--device=cpu"]) == 0
    with torch.no_grad():
        head = load_trained(tmp_path / "run", torch.device("cpu")).model.head
        logits_NK = head(torch.from_numpy(np.load(out)["features"])).numpy()
    want = evaluate_file(tmp_path / "run", Path(tiny["data.val"]), "cpu")[1].predictions.logits_NK
    np.testing.assert_allclose(logits_NK, want, atol=1e-5)
    assert main(["average", "start", str(tmp_path / "run"), "--alpha=0.5", "--out", str(average)]) == 0
    assert main(["eval", str(average), "--device=cpu"]) == 0


def test_embeddings_of_a_folder_are_those_of_its_images_and_damaged_ones_are_named(
    whole, tiny, files, tmp_path, capsys
):
    """Pillow's resize and the loader's differ by at most one level in some pixels."""
    images = Path(tiny["data.val"]).parent / "val"
    broken, out = tmp_path / "broken.jpg", tmp_path / "folder.npz"
    broken.write_bytes(b"no image at all")
    assert main(["predict", str(whole), str(broken), str(images), "--features", str(out), "--device=cpu"]) == 0
    assert f"{broken}: not read: " in capsys.readouterr().err
    found, expected = np.load(out), np.load(files["val"])
    assert list(found["files"]) == [str(images / name) for name in expected["files"]]
    np.testing.assert_allclose(found["features"], expected["features"], atol=0.05)
    assert set(found["labels"]) == {-1} and not len(found["classes"])


def test_features_are_refused_under_another_suffix_with_options_for_classes_and_over_a_file(
    whole, tiny, files, refused
):
    command = ["predict", str(whole), tiny["data.val"], "--device=cpu"]
    for extra, message in (
        (["--features=a.txt"], "its name should end in .npz"),
        (["--features=a.npz", "--min-probability=0.7", "--flip-average"], "Omit --min-probability, --flip-average"),
        ([f"--features={files['val']}"], "exists. Give another path, or replace it with --overwrite"),
        ([], "is a .beton file"),
    ):
        assert message in refused([*command, *extra])
