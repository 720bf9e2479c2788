"""Embeddings are the head's input, in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from beton_tools.read.manifest import Manifest
from fastft.cli import main
from fastft.evaluate.evaluation import predict_file
from fastft.evaluate.prediction import read_batches
from fastft.evaluate.trained import load_trained
from tests.train.runs import run


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
    _, want = predict_file(whole, Path(tiny["data.val"]), "cpu")
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
    want = predict_file(tmp_path / "run", Path(tiny["data.val"]), "cpu")[1].logits_NK
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


def test_features_are_refused_under_another_suffix_and_with_options_for_classes(whole, tiny, tmp_path, capsys):
    command = ["predict", str(whole), tiny["data.val"], "--device=cpu"]
    for extra, message in (
        (["--features=a.txt"], "must end in .npz"),
        (["--features=a.npz", "--topk=3"], "omit --csv, --topk and --logit-adjustment"),
        ([], "is a .beton file"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err


def test_images_are_read_in_order_by_threads_and_one_batch_ahead(whole, tiny):
    recipe = load_trained(whole, torch.device("cpu")).recipe
    paths = sorted((Path(tiny["data.train"]).parent / "train").rglob("*.jpg"))
    taken: list[Path] = []

    def source():
        for path in paths:
            taken.append(path)
            yield path

    batches = read_batches(source(), recipe, 8, torch.device("cpu"))
    first = next(batches)
    assert [path for path, _ in first.reads] == paths[:8] and len(taken) == 16
    assert [path for batch in batches for path, _ in batch.reads] == paths[8:]
