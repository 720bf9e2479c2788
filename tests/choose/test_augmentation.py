"""Augmentation that hides the classes from the linear probe is left out where it is automatic, and warned of where it is not."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastft.augment.draw import draw_plan
from fastft.augment.recipe_policy import build_policy
from fastft.choose import augmentation
from fastft.choose.augmentation import KEPT, Losses, choose_flips, keep_or_leave_out, shares_loss
from fastft.choose.automatic import CENTRE, WHOLE, is_plain, resolve
from fastft.cli import main
from fastft.evaluate.ridge import (
    LabelledFeatures,
    Mirrored,
    count_mirrored,
    fit_ridge_head,
    score_out_of_fold,
    smallest_loss,
)
from fastft.recipe import load_recipe
from fastft.run.run_directory import load_run, read_choices
from tests.train.runs import differing, end, flags, losses, rewind, run

AUTO = {
    "model__head_init": "probe", "augment__policy": "auto", "augment__scale_min": "auto", "augment__ratio_min": "auto",
    "augment__ratio_max": "auto",
}  # fmt: skip
GIVEN = {
    "model__head_init": "probe", "augment__policy": "none", "augment__scale_min": "1", "augment__ratio_min": "1",
    "augment__ratio_max": "1",
}  # fmt: skip


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """More would have to be left after augmentation than there was before."""
    monkeypatch.setattr(augmentation, "KEPT", 1e9)


HIDDEN, VISIBLE = Losses(0.6, 1.31, 1.39), Losses(0.6, 1.0, 1.39)


def test_the_loss_of_the_class_shares() -> None:
    assert shares_loss([5, 5, 5, 5]) == pytest.approx(math.log(4))
    assert shares_loss([3, 0, 1]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    # a head that knows nothing but these shares, on images of both classes equally often
    assert shares_loss([3, 0, 1], "balanced") == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))


@pytest.mark.parametrize(
    ("counts", "hflip"),
    [((1000, 956, 604, 363, 11), 0.0), ((300, 132, 133, 33, 34), 0.5), ((1000, 956, 900, 60, 4), 0.5),
     ((20, 10, 8, 3, 1), 0.5)],
    ids=["digits", "CIFAR-10", "less than a tenth", "too few images"],
)  # fmt: skip
def test_flips_are_left_out_where_mirrored_images_are_not_recognised(
    counts: tuple[int, int, int, int, int], hflip: float
) -> None:
    recipe = resolve(load_recipe("photos", ["--data.num_classes=4", "--data.train_size=1000"]))
    changed = choose_flips(recipe, Mirrored(*counts))
    (choice,) = (c for c in changed.choices if c.option == "augment.hflip")
    assert changed.augment.hflip == choice.value == hflip and choice.evidence["images"] == counts[0]
    assert [c.option for c in changed.choices] == [c.option for c in recipe.choices]
    if hflip == 0:
        assert choice.reason == "the linear probe recognises 95.6 % of the images, and 60.4 % if they are mirrored"


def test_images_are_counted_by_heads_that_have_not_seen_them() -> None:
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(0, 2, 400), rng.normal(size=(400, 64)).astype(np.float32)
    signal = noise + 4 * (2 * labels[:, None] - 1)
    tried = np.arange(0, 400, 2)
    data = LabelledFeatures(signal, labels, 2)
    found = count_mirrored(data, -signal[tried], tried, fit_ridge_head(data).penalty)
    assert (found.images, found.plain, found.mirrored, found.plain_only, found.mirrored_only) == (200, 200, 0, 200, 0)
    found = count_mirrored(LabelledFeatures(noise, labels, 2), noise, np.arange(400), 1e-5)
    assert 150 < found.plain == found.mirrored < 250 and found.plain_only == 0


@pytest.mark.parametrize(
    ("options", "left"),
    [((), ("none", 1.0)), (("--augment.policy=rand-m5-mstd0.5-inc1",), ("rand-m5-mstd0.5-inc1", 1.0)),
     (("--augment.scale_min=0.3",), ("none", 0.3))],
)  # fmt: skip
def test_given_values_are_kept(options: tuple[str, ...], left: tuple[str, float]) -> None:
    recipe = resolve(load_recipe("photos", ["--data.num_classes=4", "--data.train_size=1000", *options]))
    changed, warning = keep_or_leave_out(recipe, HIDDEN)
    assert (changed.augment.policy, changed.augment.scale_min) == left
    assert [c.option for c in changed.choices] == [c.option for c in recipe.choices]
    assert ("a linear probe keeps 10% of its lead over guessing by class frequency" in warning) != is_plain(changed)
    decided = {c.option: c.evidence for c in changed.choices if c.option in WHOLE}
    expected = {"plain": 0.6, "augmented": 1.31, "class_shares": 1.39, "kept": pytest.approx(0.08 / 0.79)}
    assert all(evidence == expected for evidence in decided.values())


def test_a_kept_augmentation_says_what_decided_it() -> None:
    recipe = resolve(load_recipe("photos", ["--data.num_classes=4", "--data.train_size=1000"]))
    changed, warning = keep_or_leave_out(recipe, VISIBLE)
    assert changed.augment == recipe.augment and not warning
    reasons = {c.option: c.reason for c in changed.choices}
    assert all("leaves the classes visible" in reasons[option] for option in WHOLE | CENTRE)


@pytest.mark.parametrize("by_hand", [False, True])
def test_without_augmentation_oblong_images_are_seen_as_in_evaluation(by_hand: bool) -> None:
    options = ("--augment.policy=none", "--augment.scale_min=1") if by_hand else ()
    recipe = resolve(load_recipe("photos", ["--data.num_classes=4", "--data.train_size=1000", *options]))
    if not by_hand:
        assert build_policy(recipe).ratio == (3 / 4, 4 / 3)
        recipe, _ = keep_or_leave_out(recipe, HIDDEN)
    plan = draw_plan(
        build_policy(recipe), seed=3, epoch=0, sample_ids=np.arange(4), heights=[120, 100, 300, 64], widths=[100, 275, 50, 64],
        size=42,
    )  # fmt: skip
    assert plan["crop"].tolist() == [[10, 0, 100, 100], [0, 87, 100, 100], [125, 0, 50, 50], [0, 0, 64, 64]]


@pytest.mark.parametrize(("wrong", "hides"), [(0.12, False), (0.4, True)])
def test_the_sharp_scale_of_a_good_head_does_not_hide_the_classes(wrong: float, hides: bool) -> None:
    """Nearly all unchanged images are recognised, as frames of two videos are, and 88 % of the augmented ones."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    plain = (rng.normal(size=(200, 8)) + 6 * (2 * labels[:, None] - 1)).astype(np.float32)
    augmented = np.where(rng.random((200, 1)) < wrong, -plain, plain)
    data = LabelledFeatures(plain, labels, 2)
    head = fit_ridge_head(data)
    logits = torch.from_numpy(augmented @ head.weight_KD.T + head.bias_K)
    assert F.cross_entropy(logits, torch.from_numpy(labels)) > math.log(2)  # at its own scale it is worse than guessing
    found = score_out_of_fold(data, [plain, augmented], np.arange(200), head.penalty)
    losses = Losses(*(smallest_loss(scores, labels) for scores in found), shares_loss([100, 100]))
    assert losses.plain < 0.01 and losses.augmented < losses.class_shares
    assert (losses.kept < KEPT) == hides


def test_a_probe_that_knows_nothing_leaves_augmentation_in() -> None:
    assert Losses(plain=1.4, augmented=1.5, class_shares=1.39).kept == 1


def test_several_labels_state_no_condition_on_mirrored_images() -> None:
    recipe = resolve(
        load_recipe("photos", ["--data.num_classes=4", "--data.multi_label=true", "--data.train_size=1000"])
    )
    assert next(c.reason for c in recipe.choices if c.option == "augment.hflip") == "as in the paper"


def test_what_hides_the_classes_is_left_out_and_a_resume_keeps_the_choice(
    tiny: dict[str, str], tmp_path: Path, hidden: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training is one that never had it."""
    kept = {"train__keep_checkpoints": "100"}
    run(tiny, tmp_path / "auto", **AUTO, **kept)
    run(tiny, tmp_path / "given", **GIVEN)
    augment = load_run(tmp_path / "auto").recipe.augment
    assert (augment.policy, augment.scale_min, augment.ratio_min, augment.ratio_max) == ("none", 1, 1, 1)
    choices = read_choices(tmp_path / "auto") or {}
    assert {option: choices[option].value for option in WHOLE | CENTRE} == WHOLE | CENTRE
    assert sum("hides the classes: " in choice.reason for choice in choices.values()) == 4
    for resumed in (False, True):
        assert losses(tmp_path / "auto") == losses(tmp_path / "given")
        assert differing(end(tmp_path / "auto"), end(tmp_path / "given")) == []
        if not resumed:
            rewind(tmp_path / "auto", 0)
            monkeypatch.setattr("fastft.choose.choose.compare_losses", None)
            run(tiny, tmp_path / "auto", **AUTO, **kept)
    assert read_choices(tmp_path / "auto") == choices


def test_a_recipe_with_values_of_its_own_gets_a_warning(
    tiny: dict[str, str], tmp_path: Path, hidden: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = flags(tiny, tmp_path / "run", model__head_init="probe", augment__policy="rand-m9-mstd0.5-inc1")
    assert main(["train", "rcp/final_b16.yaml", *options]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("Augmentation may hide the classes") == 2  # where it is found, and with the result
    assert load_run(tmp_path / "run").recipe.augment.policy == "rand-m9-mstd0.5-inc1"
