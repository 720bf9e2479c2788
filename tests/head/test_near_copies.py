"""Almost equal images on both sides of a hold-out are a warning that names them; groups end it."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastft
from fastft.cli import main
from fastft.data.warnings import ACCURACY, Warned
from fastft.head.near_copies import warn_of_copies
from fastft.report.run_figures import run_warnings
from fastft.report.run_report import write_run_page
from fastft.run.result import read_result
from fastft.run.run_directory import load_run
from fastft.run.said import begin_warnings, keeping, read_warnings
from tests.photos.conftest import album, tower  # noqa: F401 - fixtures

FRAMES, SIZE = 8, 96


@pytest.fixture(scope="module")
def clips(photographs, tmp_path_factory) -> Path:
    """<class>/<clip>-<frame>.jpg: six clips of a camera that moves by a pixel, with noise and changing light."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for k, (name, image) in enumerate(photographs.items()):
        (folder / "ab"[k % 2]).mkdir(exist_ok=True)
        for j in range(FRAMES):
            frame = image[40 + j : 40 + j + SIZE, 60 : 60 + SIZE] * rng.uniform(0.95, 1.05)
            frame = (frame + rng.normal(0, 3, frame.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(frame).save(folder / "ab"[k % 2] / f"{name}-{j}.jpg")
    return folder


def said(data: Path, tower: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:  # noqa: F811
    """The warning, or "": of a run on the photographs."""
    assert main(["train", "photos", f"--data.train={data}", f"--train.run_dir={folder}", *tower]) == 0
    return next((line for line in capsys.readouterr().out.splitlines() if "almost equal" in line), "")


def test_frames_on_both_sides_are_named_and_groups_keep_them_together(clips, tower, tmp_path, capsys):  # noqa: F811
    line = said(clips, tower, tmp_path / "folder", capsys)
    assert line.startswith("warning: 9 of 9 validation images are almost equal to a training image")
    val, train = line.split("(")[1].split(",")[0].split(" and ")
    assert val != train and val.split("-")[0] == train.split("-")[0] and "`group` column" in line
    table = clips / "clips.csv"
    files = sorted(path.relative_to(clips) for path in clips.glob("*/*.jpg"))
    with table.open("w") as out:
        csv.writer(out).writerows(
            [("path", "label", "group"), *((f, f.parent.name, f.name.split("-")[0]) for f in files)]
        )
    assert said(table, tower, tmp_path / "table", capsys) == ""


def test_at_most_500_validation_images_are_compared(monkeypatch):
    class Table:
        def __len__(self) -> int:
            return 5000

        def read_names(self) -> list[str]:
            return [str(i) for i in range(5000)]

    monkeypatch.setattr("fastft.head.near_copies._thumbnail", lambda table, sample: np.zeros((8, 8)))
    features = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    (line,) = warn_of_copies(Table(), features, Table(), features)
    assert "500 of 500 validation images" in line and "(0 and 0, 10 and 10, 20 and 20)" in line


def test_the_warning_stands_beside_the_figures_in_result_log_and_report(clips, tower, tmp_path, capsys):  # noqa: F811
    """It is said before training, and a run that continues later does not say it again."""
    run = tmp_path / "run"
    flags = ["train", "photos", f"--data.train={clips}", f"--train.run_dir={run}", *tower]
    assert main(flags) == 0 and main(flags) == 0
    printed = capsys.readouterr().out
    (_, first, second), text = printed.split("result: "), "warning: 9 of 9 validation images are almost equal"
    assert printed.count(text) == 3 and text in first and text in second
    result = read_result(run)
    assert result is not None
    assert [(w.about, w.text[:24]) for w in result.warnings if w.stage == "head"] == [
        ("accuracy", "9 of 9 validation images")
    ]
    page = write_run_page(run, mistakes="never").read_text()
    number = 1 + [w.text[:6] for w in run_warnings(load_run(run))].index("9 of 9")
    tiles = re.findall('<div class="warned"><dt>.*?</div>', page)
    assert len(tiles) >= 4 and all(f'href="#warning-{number}"' in tile for tile in tiles)
    assert f'<li id="warning-{number}"><b>Warning about the accuracy.</b> 9 of 9 validation images' in page


def test_warnings_of_other_images_do_not_stay(tmp_path):
    """A run directory that did not begin to train is used for something else."""
    begin_warnings(tmp_path, "one request", False, [])
    keeping(lambda line: None, tmp_path, "head", "one request")(Warned("copies", ACCURACY))
    begin_warnings(tmp_path, "one request", False, [Warned("of the files")])
    assert [w.text for w in read_warnings(tmp_path)] == ["copies", "of the files"]
    begin_warnings(tmp_path, "another request", True, [])
    assert [w.text for w in read_warnings(tmp_path)] == ["copies"]
    begin_warnings(tmp_path, "a third request", False, [])
    assert read_warnings(tmp_path) == []


def test_warnings_are_said_in_one_way_so_that_none_is_missing_in_the_result():
    """Only these print the word: the line printer, the result, `explain`, `convert`, `eval` and `export`, and the launcher."""
    root = Path(fastft.__file__).parent
    told = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if re.search('"(  )?warning: ', path.read_text())
    }
    assert told == {
        "run/said.py", "train/progress.py", "cli/printing.py", "cli/cmd_convert.py", "cli/cmd_eval.py", "cli/cmd_export.py",
        "train/launch.py",
    }  # fmt: skip


def test_crops_of_the_same_photographs_are_no_copies(album, tower, tmp_path, capsys):  # noqa: F811
    assert said(album, tower, tmp_path, capsys) == ""
