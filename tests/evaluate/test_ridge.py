"""The images that a linear probe is scored on taught it nothing: neither they, nor others of their unit."""

import numpy as np
import pytest

from fastft.evaluate.linear_probe import draw_scored
from fastft.evaluate.ridge import FOLDS, LabelledFeatures, fit_ridge_head, score_on_halves, score_out_of_fold

CLASSES, WIDTH = 4, 64


def frames(units: int, each: int, signal: float) -> LabelledFeatures:
    """Nearly equal frames of some videos. signal: how much of a class is seen in its videos."""
    rng = np.random.default_rng(0)
    unit_N = np.repeat(np.arange(units), each)
    labels_N = (np.arange(units) % CLASSES)[unit_N]
    video_ND = (
        rng.normal(size=(units, WIDTH)) + signal * rng.normal(size=(CLASSES, WIDTH))[np.arange(units) % CLASSES]
    )[unit_N]
    features_ND = (video_ND + 0.05 * rng.normal(size=video_ND.shape)).astype(np.float32)
    return LabelledFeatures(features_ND, labels_N, CLASSES, 0, unit_N)


def alone(data: LabelledFeatures) -> LabelledFeatures:
    return LabelledFeatures(data.features_ND, data.labels_N, data.num_classes, data.seed)


def test_a_probe_that_knows_only_the_videos_is_no_better_than_chance() -> None:
    data = frames(40, 10, signal=0)
    assert fit_ridge_head(alone(data)).right_N.mean() == 1  # each frame's neighbours were in the other folds
    assert fit_ridge_head(data).right_N.mean() < 0.45  # 0.25 on average over draws of the videos
    assert fit_ridge_head(frames(40, 10, signal=2)).right_N.mean() > 0.95


def test_units_stay_in_one_fold_and_one_half_and_every_class_is_in_all() -> None:
    data = frames(80, 5, signal=1)
    for part_N, parts in ((data.fold_N, FOLDS), (data.half_N, 2)):
        assert all(len(np.unique(part_N[data.units_N == unit])) == 1 for unit in range(80))
        shares = [np.bincount(data.labels_N[part_N == part], minlength=CLASSES) for part in range(parts)]
        assert np.array(shares).tolist() == [[100 // parts] * CLASSES] * parts


def test_units_of_one_image_each_are_dealt_as_if_there_were_none() -> None:
    data = frames(203, 1, signal=1)
    assert data.fold_N.tolist() == alone(data).fold_N.tolist() and data.half_N.tolist() == alone(data).half_N.tolist()


@pytest.mark.parametrize("single", [[0], list(range(CLASSES))])
def test_a_class_in_one_unit_is_scored_by_its_other_images(single: list[int]) -> None:
    data = frames(40, 10, signal=3)
    units_N = np.where(np.isin(data.labels_N, single), 1000 + data.labels_N, data.units_N)
    data = LabelledFeatures(data.features_ND, data.labels_N, CLASSES, 0, units_N)
    (scores_NK,) = score_out_of_fold(data, [data.features_ND], np.arange(len(data)), 1e-2)
    right_N = scores_NK.argmax(1) == data.labels_N
    assert all(right_N[data.labels_N == label].mean() > 0.9 for label in range(CLASSES))


def test_half_the_videos_know_less_than_all_of_them() -> None:
    """Half the frames of every video know as much as all of them."""
    data = frames(320, 5, signal=0.3)
    every_N = np.arange(len(data))
    (whole,) = score_out_of_fold(data, [data.features_ND], every_N, 1e-2)
    halves = score_on_halves(data, 1e-2)
    right = [(scores.argmax(1) == data.labels_N).mean() for scores in (whole, *halves)]
    assert max(right[1:]) < right[0] - 0.05


def test_the_images_that_score_a_head_made_in_one_pass_are_whole_units() -> None:
    units_N = np.random.default_rng(0).permutation(np.repeat(np.arange(500), 4))
    drawn = draw_scored(units_N, CLASSES, seed=0)
    assert len(drawn) == 2000 // FOLDS and len(np.unique(units_N[drawn])) == len(drawn) // 4
    assert (
        draw_scored(np.zeros(100, int), CLASSES, seed=0).tolist()
        == draw_scored(np.arange(100), CLASSES, seed=0).tolist()
    )
    large = np.concatenate([np.zeros(90, int), np.arange(1, 11)])  # the large unit has more than may be kept
    assert 0 < len(drawn := draw_scored(large, CLASSES, seed=0)) <= 20 and 0 not in large[drawn]
