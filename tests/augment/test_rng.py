"""The generator is the published one, and its variates have their distributions."""

import numpy as np
import pytest
from numba import njit
from scipy import stats

from fastft.augment import rng

# Random123's kat_vectors: philox4x32 10 (counter 4 words, key 2 words, result) and philox2x32 10.
FOUR_WORDS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
TWO_WORDS = [
    ("00000000 00000000", "00000000", "ff1dae59 6cd10df2"),
    ("ffffffff ffffffff", "ffffffff", "2c3f628b ab4fd7ad"),
    ("243f6a88 85a308d3", "13198a2e", "dd7ce038 f62a4c12"),
]
LEAST_P = 1e-4  # seeds are fixed: a test that passes once passes always


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), FOUR_WORDS)
def test_philox4x32_gives_the_published_answers(counter, key, expected):
    low, high = words(key)
    assert list(rng.philox(np.uint64(high << 32 | low), *words(counter))) == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), TWO_WORDS)
def test_philox2x32_gives_the_published_answers(counter, key, expected):
    bits = int(rng.philox2x32(*words(key), *words(counter)))
    assert [bits & 0xFFFFFFFF, bits >> 32] == words(expected)


@njit
def draws(n, alpha, uniforms, integers, normals, betas, noise):  # type: ignore[no-untyped-def]
    for i in range(n):
        w0, w1, w2, w3 = rng.philox(np.uint64(7), i, 0, 0, 0)
        uniforms[i] = rng.between(w0, -1.0, 3.0)
        integers[i] = rng.below(w1, 10)
        normals[i] = rng.normal(w2, w3)
        betas[i] = rng.beta(alpha, np.uint64(7), 0, 1, i, 0)
        noise[i] = rng.noise_rgb(np.uint64(7 << 32), i, rng.HALF_NORMAL)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_variates_follow_their_distributions(alpha):
    n = 50_000
    uniforms, normals, betas = np.empty(n), np.empty(n), np.empty(n)
    integers, noise = np.empty(n, np.int64), np.empty((n, 3), np.float32)
    draws(n, alpha, uniforms, integers, normals, betas, noise)
    assert stats.kstest(uniforms, stats.uniform(-1, 4).cdf).pvalue > LEAST_P
    assert stats.chisquare(np.bincount(integers, minlength=10)).pvalue > LEAST_P
    assert stats.kstest(normals, "norm").pvalue > LEAST_P
    assert stats.kstest(betas, stats.beta(alpha, alpha).cdf).pvalue > LEAST_P
    for channel in noise.T:
        assert stats.kstest(channel, "norm").pvalue > LEAST_P
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02


def test_unit_never_reaches_zero_or_one():
    assert rng.unit(np.uint32(0)) > 0.0
    assert rng.unit(np.uint32(0xFFFFFFFF)) < 1.0
