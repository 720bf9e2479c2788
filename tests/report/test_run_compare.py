"""The page that compares runs: paired on the same images, what differs between the recipes, time, curves."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastft.cli import main
from fastft.report.run_compare import comparison_charts, differing_options, load_compared, result_rows, short_names
from fastft.run.paired import mcnemar
from tests.train.runs import run


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> list[Path]:
    """Two runs on the same images that differ in lr and epochs."""
    folder = tmp_path_factory.mktemp("compared")
    run(tiny, folder / "slow", optim__lr="1e-4", schedule__epochs="2")
    run(tiny, folder / "fast", optim__lr="3e-3", schedule__epochs="3")
    return [folder / "slow", folder / "fast"]


def right_of(folder: Path) -> np.ndarray:
    kind = json.loads((folder / "result.json").read_text())["weights"]["kind"]
    with np.load(folder / "validation.npz") as stored:
        return stored[f"{kind}_predicted"] == stored["labels"]


def test_the_difference_is_paired_by_image(runs):
    first, second = map(right_of, runs)
    _, row = result_rows(load_compared(runs))
    more, less = int((second & ~first).sum()), int((first & ~second).sum())
    paired = row.paired
    assert paired.gain == pytest.approx(100 * (second.mean() - first.mean())) and paired.images == 20
    assert paired.error == pytest.approx(100 * np.std(second.astype(int) - first.astype(int)) / np.sqrt(20))
    assert paired.p_value == pytest.approx(mcnemar(more, less))


def test_images_are_matched_by_content_and_label(runs, tiny, tmp_path):
    """Another order of the validation images, and one less, changes which are compared and nothing else."""
    from beton_tools.write.convert import convert_folder
    from beton_tools.write.writer import WriteOptions

    val = tmp_path / "val"
    shutil.copytree(Path(tiny["data.val"]).parent / "val", val)
    (val / "coffee" / "00.jpg").unlink()
    convert_folder(val, tmp_path / "val.beton", WriteOptions(workers=0))
    other = tmp_path / "other"
    run(tiny, other, optim__lr="3e-3", schedule__epochs="2", data__val=str(tmp_path / "val.beton"))
    _, row = result_rows(load_compared([runs[0], other]))
    assert row.paired.images == 19


def test_other_images_with_the_same_names_are_not_compared_and_renamed_ones_are(runs, tiny, tmp_path):
    from beton_tools.write.convert import convert_folder
    from beton_tools.write.writer import WriteOptions

    val = tmp_path / "val"
    shutil.copytree(Path(tiny["data.val"]).parent / "val", val)
    for number, path in enumerate(sorted(val.rglob("*.jpg"))):
        if number % 2:
            path.rename(path.with_name(f"renamed {path.name}"))
        elif number:
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, quality=95)
    convert_folder(val, tmp_path / "val.beton", WriteOptions(workers=0))
    other = tmp_path / "other"
    run(tiny, other, optim__lr="3e-3", schedule__epochs="2", data__val=str(tmp_path / "val.beton"))
    _, row = result_rows(load_compared([runs[0], other]))
    assert row.paired.images == 11


def test_options_that_differ_and_curves_of_all_runs_are_shown(runs):
    compared = load_compared(runs)
    differing = {row.name: row.values for row in differing_options(compared)}
    assert differing["optim.lr"] == [1e-4, 3e-3] and differing["schedule.epochs"] == [2, 3]
    assert "train.run_dir" not in differing and "optim.batch_size" not in differing
    accuracy, over_time, *losses = comparison_charts(compared)
    for chart in (accuracy, over_time, *losses):
        assert [series.name for series in chart.series] == ["slow", "fast"], chart.title
    assert [len(series.x) for series in accuracy.series] == [2, 3]
    assert all(np.diff(series.x).min() > 0 for series in over_time.series)


def test_several_runs_give_one_page(runs, tmp_path, capsys, refused):
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(page), "--price=2"]) == 0
    text = page.read_text()
    assert capsys.readouterr().out.strip() == str(page)
    assert all(name in text for name in ("slow", "fast", "optim.lr", "McNemar", "money"))
    assert len(re.findall(r'<figure class="chart">', text)) == 4 and "http" not in re.sub(
        r"http://www.w3.org\S*", "", text
    )
    assert main(["report", *map(str, runs)]) == 0 and (runs[0].parent / "comparison.html").is_file()
    assert "is given twice" in refused(["report", runs[0], runs[0]])
    assert "is not a run directory" in refused(["report", runs[0], tmp_path])
    assert "--mistakes needs a page about one run" in refused(["report", *runs, "--mistakes=never"])


def test_names_are_as_long_as_they_must_be():
    assert short_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert short_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
