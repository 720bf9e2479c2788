"""The linear probe judges the labels of training images that it was not fitted to, and the report lists them."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastft.evaluate.linear_probe import LinearProbe
from fastft.evaluate.ridge import LabelledFeatures, fit_ridge_head
from fastft.head import label_check
from fastft.head.label_check import LISTED, judge_labels
from fastft.report.run_report import write_run_page
from fastft.run.training_labels import TRAINING_LABELS, read_training_labels
from tests.train.runs import run

CLASSES = 4


def images(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(count) % CLASSES)
    centres = rng.normal(size=(CLASSES, 64))
    return (centres[labels] + noise * rng.normal(size=(count, 64))).astype(np.float32), labels


def probe(features: np.ndarray, labels: np.ndarray) -> LinearProbe:
    data = LabelledFeatures(features, labels, CLASSES)
    return LinearProbe(56, len(labels), fit_ridge_head(data), data, 1.0)


def test_wrong_labels_are_listed_first_with_the_class_that_the_probe_predicts() -> None:
    features, truth = images(400, 1.0)
    wrong = np.random.default_rng(1).permutation(400)[:15]
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    found = judge_labels(probe(features, labels))
    assert found is not None and (found.images, len(found.doubts)) == (400, min(LISTED, found.wrong))
    first = found.doubts[:15]
    assert {d.sample for d in first} == set(wrong.tolist())
    assert all((d.label, d.predicted) == (labels[d.sample], truth[d.sample]) for d in first)
    assert all(d.label_probability < d.predicted_probability <= 1 for d in found.doubts)
    shown = [d.label_probability for d in found.doubts]
    assert shown == sorted(shown)


def test_classes_gain_from_the_second_half_where_images_are_scarce() -> None:
    scarce, plenty = (judge_labels(probe(*images(count, noise))) for count, noise in ((80, 4.0), (2000, 1.0)))
    assert scarce is not None and plenty is not None
    assert scarce.all - scarce.half > 5 and abs(plenty.all - plenty.half) < 1
    assert [c.label for c in scarce.classes] == list(range(CLASSES)) and {c.images for c in scarce.classes} == {20}
    assert np.mean([c.half for c in scarce.classes]) == pytest.approx(scarce.half)
    assert 100 - 100 * scarce.wrong / 80 == pytest.approx(scarce.all)


def test_nothing_is_said_about_label_sets_and_very_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = images(40, 1.0)
    sets = np.eye(CLASSES, dtype=np.float32)[labels]
    assert judge_labels(probe(features, sets)) is None
    monkeypatch.setattr(label_check, "FEW_IMAGES", 40)
    assert judge_labels(probe(features, labels)) is None


@pytest.mark.parametrize("count", [2, 5, 19, 20, 21])
def test_few_images_are_left_alone_or_judged(count: int) -> None:
    features, _ = images(count, 1.0)
    for labels in (
        np.arange(count) % 2,
        np.arange(count) % CLASSES,
        np.arange(count) // max(1, count // CLASSES) % CLASSES,
    ):
        found = judge_labels(probe(features, labels))
        assert (found is None) == (count < 20)


def test_a_class_with_one_image_is_judged() -> None:
    features, labels = images(41, 1.0)
    labels[labels == 3] = 2
    labels[7] = 3
    found = judge_labels(probe(features, labels))
    assert found is not None and found.classes[3].images == 1 and 7 in {d.sample for d in found.doubts}


def test_the_report_shows_the_images_unless_it_is_asked_not_to(tiny: dict[str, str], tmp_path: Path) -> None:
    run(tiny, tmp_path / "run", model__head_init="probe", schedule__epochs="1", schedule__warmup_epochs="0")
    found = read_training_labels(tmp_path / "run")
    assert found is not None and found.images == 48
    page = write_run_page(tmp_path / "run").read_text()
    assert (
        f"{found.wrong} of 48 labels disagree with it" in page and "Which classes would gain from more images" in page
    )
    gallery = page.partition('id="doubts"')[2].partition("</ul>")[0]
    assert gallery.count("data:image/jpeg;base64,") == len(found.doubts)
    if found.doubts:
        assert re.search(r"labelled (astronaut|coffee)", gallery) and ".jpg" in gallery
    assert (
        "Training images</h2>" not in write_run_page(tmp_path / "run", tmp_path / "without.html", "never").read_text()
    )
    (tmp_path / "run" / TRAINING_LABELS).unlink()
    assert "Training images</h2>" not in write_run_page(tmp_path / "run").read_text()
