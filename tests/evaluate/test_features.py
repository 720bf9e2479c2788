"""Embeddings are the head's input, in a file; nearest neighbours on them are scikit-learn's."""

import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from beton_tools.read.manifest import Manifest
from fastft.cli import main
from fastft.evaluate.evaluation import predict_file
from fastft.evaluate.features import read_features
from fastft.evaluate.image_files import read_batches
from fastft.evaluate.knn_evaluation import TEMPERATURE
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


def test_embeddings_times_the_head_are_the_logits(
    whole: Path, tiny: dict[str, str], files: dict[str, Path]
) -> None:
    trained, found = load_trained(whole, torch.device("cpu")), read_features(files["val"])
    _, want = predict_file(whole, Path(tiny["data.val"]), "cpu")
    with torch.no_grad():
        logits_NK = trained.model.head(torch.from_numpy(found.features_ND)).numpy()
    np.testing.assert_allclose(logits_NK, want.logits_NK, atol=1e-5)
    np.testing.assert_array_equal(found.labels_N, want.labels_N)
    manifest = Manifest.of_beton(tiny["data.val"])
    assert manifest is not None and found.files == list(manifest.names)
    assert found.classes == ["astronaut", "coffee"]


def test_timms_models_have_embeddings_neighbours_and_averages(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {"model.arch": "timm/test_vit", "schedule.epochs": "1", "schedule.warmup_epochs": "0"}
    run(tiny | options, tmp_path / "run")
    out, average = tmp_path / "val.npz", tmp_path / "average"
    assert (
        main(["predict", str(tmp_path / "run"), tiny["data.val"], "--features", str(out), "--device=cpu"])
        == 0
    )
    with torch.no_grad():
        head = load_trained(tmp_path / "run", torch.device("cpu")).model.head
        logits_NK = head(torch.from_numpy(read_features(out).features_ND)).numpy()
    want = predict_file(tmp_path / "run", Path(tiny["data.val"]), "cpu")[1].logits_NK
    np.testing.assert_allclose(logits_NK, want, atol=1e-5)
    assert main(["average", "start", str(tmp_path / "run"), "--alpha=0.5", "--out", str(average)]) == 0
    assert main(["eval", str(tmp_path / "run"), "--knn=5", f"--data={out}", "--device=cpu"]) == 0
    assert main(["eval", str(average), "--knn=5", f"--data={out}", "--device=cpu"]) == 2
    assert "embeddings of other weights" in capsys.readouterr().err


def test_embeddings_of_a_folder_are_those_of_its_images_and_damaged_ones_are_named(
    whole: Path, tiny: dict[str, str], files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Pillow's resize and the loader's differ by at most one level in some pixels."""
    images = Path(tiny["data.val"]).parent / "val"
    broken, out = tmp_path / "broken.jpg", tmp_path / "folder.npz"
    broken.write_bytes(b"no image at all")
    assert (
        main(["predict", str(whole), str(broken), str(images), "--features", str(out), "--device=cpu"]) == 0
    )
    assert f"{broken}: not read: " in capsys.readouterr().err
    found, expected = read_features(out), read_features(files["val"])
    assert found.files == [str(images / name) for name in expected.files]
    np.testing.assert_allclose(found.features_ND, expected.features_ND, atol=0.05)
    assert set(found.labels_N) == {-1} and found.classes == []


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_neighbours_are_scikit_learns(
    whole: Path, tiny: dict[str, str], files: dict[str, Path], capsys: pytest.CaptureFixture, k: int
) -> None:
    """The same figures from stored embeddings and from .beton files."""
    train, val = read_features(files["train"]), read_features(files["val"])
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / TEMPERATURE))
    theirs.fit(train.features_ND, train.labels_N)
    want = 100 * theirs.score(val.features_ND, val.labels_N)
    probabilities = theirs.predict_proba(val.features_ND)[np.arange(20), val.labels_N]
    found = []
    for bank, data in ((files["train"], files["val"]), (tiny["data.train"], tiny["data.val"])):
        command = [
            "eval",
            str(whole),
            f"--knn={k}",
            f"--knn-train={bank}",
            f"--data={data}",
            "--json",
            "--device=cpu",
        ]
        assert main(command) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores["top1"] == pytest.approx(want)
        assert scores["loss"] == pytest.approx(-np.log(probabilities.clip(1e-6)).mean(), rel=1e-3)
        assert (scores["knn"], scores["knn_train_images"], scores["samples"]) == (k, 48, 20)
        found.append(scores)
    assert found[0].keys() == found[1].keys() >= {"temperature", "ece_scaled"}
    for name in ("temperature", "ece_scaled"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3)


def test_neighbours_are_of_the_runs_own_files_by_default(whole: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", str(whole), "--knn=5", "--device=cpu"]) == 0
    assert "by the 5 nearest of 48 training images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--knn=49"], "--knn 49 is more than the 48 images"),
        (["--knn=5", "--csv=a.csv"], "--csv is about the head"),
        (["--knn=5", "--data=README.md.npz"], "README.md.npz: cannot be read"),
        (["--knn=5", "--data=OTHER"], "holds embeddings of other weights"),
        (["--knn=5", "--data=FOLDER"], "has images without labels"),
        (["--knn-train=OTHER"], "give --knn K too"),
        (["--knn=5", "--knn-train=OTHER", "--data=OTHER"], "would vote for itself"),
    ],
)
def test_bad_input_is_one_line(
    whole: Path,
    tiny: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    images = str(Path(tiny["data.val"]).parent / "val")
    for name, weights, source in (("OTHER", "raw", tiny["data.val"]), ("FOLDER", "auto", images)):
        out = tmp_path / f"{name}.npz"
        if any(name in word for word in arguments):
            main(["predict", str(whole), source, f"--features={out}", "--weights", weights, "--device=cpu"])
        arguments = [word.replace(name, str(out)) for word in arguments]
    capsys.readouterr()
    assert main(["eval", str(whole), *arguments, "--device=cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.empty((20, 0), np.float32)}, "do not fit each other"),
        ({"features": np.ones((20, 3), np.float32)}, "embeddings of other weights"),
        ({"classes": np.array([["astronaut", "coffee"]])}, "do not fit each other"),
        ({"labels": np.zeros((20, 1), np.int64)}, "do not fit each other"),
        ({"files": np.arange(20)}, "do not fit each other"),
        ({"model": np.array(["x"])}, "do not fit each other"),
        ({"features": np.full((20, 64), np.nan, np.float32)}, "contain NaN or Inf"),
        ({"features": np.full((20, 64), np.inf, np.float32)}, "contain NaN or Inf"),
    ],
)
def test_arrays_that_are_not_embeddings_are_one_line(
    whole: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    changes: dict[str, np.ndarray],
    message: str,
) -> None:
    changed = tmp_path / "changed.npz"
    with np.load(files["val"]) as stored:
        np.savez(changed, **{**stored, **changes})
    for option, other, path in (
        ("--knn-train", "--data", files["val"]),
        ("--data", "--knn-train", files["train"]),
    ):
        command = [f"{option}={changed}", f"{other}={path}"]
        assert main(["eval", str(whole), "--knn=5", "--device=cpu", *command]) == 2
        error = capsys.readouterr().err
        assert message in error and str(changed) in error and error.count("\n") == 1


def test_a_small_file_does_not_fill_the_memory(
    whole: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Deflated zeros: 256 MB in 250 kB. Files of fastft are not compressed."""
    bomb = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w") as file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 26, 1)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(16):
            file.write(bytes(1 << 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["eval", str(whole), "--knn=5", f"--data={bomb}", f"--knn-train={files['train']}"]) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert "its arrays are compressed" in capsys.readouterr().err


def test_features_are_refused_under_another_suffix_and_with_options_for_classes(
    whole: Path, tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["predict", str(whole), tiny["data.val"], "--device=cpu"]
    for extra, message in (
        (["--features=a.txt"], "must end in .npz"),
        (["--features=a.npz", "--topk=3"], "omit --csv, --topk and --logit-adjustment"),
        ([], "is a .beton file"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err


def test_images_are_read_in_order_by_threads_and_one_batch_ahead(whole: Path, tiny: dict[str, str]) -> None:
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
