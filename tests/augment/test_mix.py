"""Mixup and CutMix are timm's, and do not depend on how the global batch is cut up."""

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.mixup import Mixup, cutmix_bbox_and_lam

from beton_tools.base.errors import UserError
from fastft.augment.mix import BLOCK, Mixer, cutmix

CLASSES, SIDE = 10, 12
LEAST_P = 1e-4
N = 2000


def mixer(**options: float) -> Mixer:
    settings = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": CLASSES, "seed": 4, **options}
    return Mixer(**settings)  # type: ignore[arg-type]


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return images.to(memory_format=torch.channels_last), labels


@pytest.mark.parametrize("cutmix_alpha", [0.0, 1.0])
def test_a_pair_is_mixed_as_timm_mixes_it_at_the_same_lambda_and_box(cutmix_alpha, monkeypatch):
    """timm flips the batch, which for two images is the exchange of neighbours."""
    timm_mixup = Mixup(0.8 * (cutmix_alpha == 0), cutmix_alpha, label_smoothing=0.1, num_classes=CLASSES)
    ours = mixer(mixup_alpha=0.8 * (cutmix_alpha == 0), cutmix_alpha=cutmix_alpha)
    for step in range(20):
        images, labels = batch(2)
        mix = ours.draw(0, step, 0, SIDE, SIDE)
        monkeypatch.setattr(timm_mixup, "_params_per_batch", lambda mix=mix: (mix.lam, mix.box is not None))
        if mix.box:
            y, x, h, w = mix.box
            answer = (y, y + h, x, x + w), mix.lam
            monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *a, answer=answer, **k: answer)
        their_images, their_targets = timm_mixup(images.clone(), labels)
        our_images, our_targets = ours(images.clone(), labels, epoch=0, step=step, first_position=0)
        assert torch.equal(our_images, their_images)
        assert torch.allclose(our_targets, their_targets, atol=1e-7)


def test_the_cutmix_box_and_lambda_are_timms_at_the_same_draws(monkeypatch):
    for lam in (0.0, 0.1, 0.37, 0.5, 0.83, 0.999):
        for centre in ((0, 0), (5, 11), (11, 3)):
            places = iter(centre)
            monkeypatch.setattr("numpy.random.randint", lambda *a, places=places, **k: next(places))
            (y0, y1, x0, x1), theirs = cutmix_bbox_and_lam((2, 3, SIDE, SIDE), lam)
            assert cutmix(lam, centre, SIDE, SIDE) == (pytest.approx(theirs), (y0, x0, y1 - y0, x1 - x0))


@pytest.mark.parametrize(
    "options", [{}, {"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}, {"prob": 0.6, "switch_prob": 0.2}]
)
def test_lambda_and_choice_follow_timms_distribution(options):
    np.random.seed(1)
    ours = mixer(**options)
    theirs = Mixup(ours.mixup_alpha, ours.cutmix_alpha, prob=ours.prob, switch_prob=ours.switch_prob)
    draws, expected = [ours.draw(1, step, 0, 224, 224) for step in range(N)], []
    for _ in range(N):
        lam, use_cutmix = theirs._params_per_batch()
        box = cutmix_bbox_and_lam((1, 3, 224, 224), lam)[1] if use_cutmix else None
        expected.append((lam if box is None else box, box is not None))
    for box in (False, True):
        one, other = ([lam for lam, b in rows if bool(b) is box] for rows in (draws, expected))
        table = [[len(one), N - len(one)], [len(other), N - len(other)]]
        if len(one) not in (0, N):
            assert stats.chi2_contingency(table).pvalue > LEAST_P
        assert (not one and not other) or stats.ks_2samp(one, other).pvalue > LEAST_P


@pytest.mark.parametrize("micro_batch", [2, 100, 300])
def test_the_result_does_not_depend_on_the_micro_batch(micro_batch):
    images, labels = batch(1024)
    ours = mixer()
    whole = ours(images.clone(), labels, epoch=2, step=9, first_position=0)
    for begin in range(0, 1024, micro_batch):
        part = slice(begin, min(begin + micro_batch, 1024))
        mixed = ours(images[part].clone(), labels[part], epoch=2, step=9, first_position=begin)
        assert torch.equal(mixed[0], whole[0][part]) and torch.equal(mixed[1], whole[1][part])


def test_blocks_steps_epochs_and_seeds_are_drawn_independently():
    draws = {
        mixer(seed=seed).draw(epoch, step, block, 224, 224).lam
        for seed in (0, 1)
        for epoch in (0, 1)
        for step in (0, 1)
        for block in range(4)
    }
    assert len(draws) == 32 and BLOCK == 256


def test_mixing_keeps_half_precision_and_channels_last():
    images, labels = batch(4)
    half = images.to(torch.bfloat16)
    mixed, targets = mixer()(half, labels, epoch=0, step=0, first_position=0)
    assert mixed.dtype == torch.bfloat16 and mixed.is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.float32 and torch.allclose(targets.sum(1), torch.ones(4))


def test_odd_micro_batches_and_a_mixer_without_alphas_are_refused():
    images, labels = batch(3)
    with pytest.raises(UserError, match="even"):
        mixer()(images, labels, epoch=0, step=0, first_position=0)
    with pytest.raises(UserError, match="alpha"):
        mixer(mixup_alpha=0.0, cutmix_alpha=0.0)
