"""Random streams: every random number in a run is a pure function of the seed and a position, without state.

| stream | generator | key and counter |
|---|---|---|
| an image's plan | `philox` | seed; (draw, epoch, sample id low, high): `draw.py` |
| a block's Mixup and CutMix | `philox` | seed; (draw, epoch, step, MIX_STREAM + block): `mix.py` |
| noise in erased pixels | `philox2x32` | the plan's noise key; pixel or box: `noise_rgb` |
| order in an epoch | NumPy's raw Philox | (seed, epoch): `epoch_words` |
| stochastic layers in a step | torch's generator | `step_seed` |

The initial weights come from `torch.manual_seed(seed)`. The sample order in a `.beton` file comes from SplitMix64
(`beton_tools/write/write_order.py`, which works without this package). If any of these numbers change, earlier runs
cannot be resumed.

`philox` is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The compiled
functions work on explicit 32- and 64-bit integers and can be called from CPU loops and from CUDA kernels.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from beton_tools.base.jit import njit

MULTIPLIER_0 = np.uint64(0xD2511F53)  # the four constants of Philox4x32, table 2 of the paper
MULTIPLIER_1 = np.uint64(0xCD9E8D57)
KEY_STEP_0 = np.uint64(0x9E3779B9)
KEY_STEP_1 = np.uint64(0xBB67AE85)
ROUNDS = 10
LOW_32 = np.uint64(0xFFFFFFFF)
SHIFT_32 = np.uint64(32)

TWO_POW_MINUS_32 = 2.0**-32
TWO_PI = 2.0 * np.pi

WORDS_PER_COUNTER = 4  # in NumPy's Philox, which is Philox4x64
MIX_STREAM = 1 << 31  # in counter word 3, where plans have the upper half of a sample id below 2^63


def epoch_words(seed: int, epoch: int, count: int, first: int = 0) -> np.ndarray:
    """Return `count` random uint64 words for the order in an epoch, from number `first` on. NumPy guarantees this raw stream."""
    generator = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    generator.advance(first // WORDS_PER_COUNTER)
    generator.random_raw(first % WORDS_PER_COUNTER)
    return generator.random_raw(count)


def step_seed(seed: int, step: int) -> int:
    """Return the seed, below 2^63, for the generator that serves the stochastic layers in an optimiser step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


# -- philox4x32 and variates -------------------------------------------------------------------------------------------


@njit()
def philox(key, c0, c1, c2, c3):
    """Return four independent uint32 words from a 64-bit key and a counter with four 32-bit words."""
    k0 = np.uint64(key) & LOW_32
    k1 = np.uint64(key) >> SHIFT_32
    x0 = np.uint64(c0) & LOW_32
    x1 = np.uint64(c1) & LOW_32
    x2 = np.uint64(c2) & LOW_32
    x3 = np.uint64(c3) & LOW_32
    for _ in range(ROUNDS):
        product_0 = MULTIPLIER_0 * x0
        product_1 = MULTIPLIER_1 * x2
        x0 = (product_1 >> SHIFT_32) ^ x1 ^ k0
        x1 = product_1 & LOW_32
        x2 = (product_0 >> SHIFT_32) ^ x3 ^ k1
        x3 = product_0 & LOW_32
        k0 = (k0 + KEY_STEP_0) & LOW_32
        k1 = (k1 + KEY_STEP_1) & LOW_32
    return np.uint32(x0), np.uint32(x1), np.uint32(x2), np.uint32(x3)


@njit()
def unit(word):
    """Return a uniform float64 in the open interval (0, 1): the middle of one of 2^32 equal cells."""
    return (np.float64(word) + 0.5) * TWO_POW_MINUS_32


@njit()
def between(word, low, high):
    """Return a uniform float64 in (low, high)."""
    return low + (high - low) * unit(word)


@njit()
def below(word, n):
    """Return a uniform integer in 0..n-1 by multiply and shift. It deviates from uniform by less than n / 2^32."""
    return np.int64((np.uint64(word) * np.uint64(n)) >> SHIFT_32)


@njit()
def normal(word_0, word_1):
    """Return a standard normal float64 from two words (Box and Muller)."""
    return np.sqrt(-2.0 * np.log(unit(word_0))) * np.cos(TWO_PI * unit(word_1))


@njit()
def log_gamma_variate(alpha, key, c0, c1, c2, c3):
    """Return log(g) for a variate g from Gamma(alpha, 1). Attempts use the counters c0, c0 + 1, ...

    The method is Marsaglia and Tsang (2000) for shape alpha + 1, brought down to alpha by U^(1/alpha). It works in
    logarithms, because that power underflows for Mixup's small alphas.
    """
    d = alpha + 1.0 - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    boost = np.log(unit(philox(key, c0, c1, c2, c3)[0])) / alpha
    while True:
        c0 += 1
        w0, w1, w2, _ = philox(key, c0, c1, c2, c3)
        x = normal(w0, w1)
        v = (1.0 + c * x) ** 3
        if v > 0.0 and np.log(unit(w2)) < 0.5 * x * x + d - d * v + d * np.log(v):
            return np.log(d * v) + boost


GAMMA_COUNTERS = 4096  # counters reserved per gamma variate. Each attempt is rejected with p < 0.05


@njit()
def beta(alpha, key, c0, c1, c2, c3):
    """Return a Beta(alpha, alpha) variate in [0, 1] from the counters c0 .. c0 + 2 * GAMMA_COUNTERS - 1."""
    a = log_gamma_variate(alpha, key, c0, c1, c2, c3)
    b = log_gamma_variate(alpha, key, c0 + GAMMA_COUNTERS, c1, c2, c3)
    return 1.0 / (1.0 + np.exp(b - a))


# -- noise for random erasing ------------------------------------------------------------------------------------------

MULTIPLIER_2X32 = np.uint64(0xD256D193)  # Philox2x32, table 2 of the paper
NOISE_BITS = 12  # with the sign, 8,192 levels up to 3.84: finer than the half precision in which they are stored


def _half_normal_quantiles() -> np.ndarray:
    """Return the middles, in probability, of 2^NOISE_BITS equally likely cells of |N(0, 1)|, float32."""
    cells = 1 << NOISE_BITS
    return np.array([NormalDist().inv_cdf(0.5 + (i + 0.5) / (2 * cells)) for i in range(cells)], np.float32)


HALF_NORMAL = _half_normal_quantiles()
CELL_MASK = np.uint64((1 << NOISE_BITS) - 1)
CHANNEL_SHIFT = np.uint64(NOISE_BITS + 1)  # per channel, twelve bits for the cell and one for the sign
ONE = np.uint64(1)


@njit()
def philox2x32(key, c0, c1):
    """Return 64 random bits (low word first) from a 32-bit key and a counter with two 32-bit words.

    It is half the work of `philox`.
    """
    k = np.uint64(key) & LOW_32
    x0 = np.uint64(c0) & LOW_32
    x1 = np.uint64(c1) & LOW_32
    for _ in range(ROUNDS):
        product = MULTIPLIER_2X32 * x0
        x0 = (product >> SHIFT_32) ^ k ^ x1
        x1 = product & LOW_32
        k = (k + KEY_STEP_0) & LOW_32
    return x0 | (x1 << SHIFT_32)


@njit()
def table_normal(bits, quantiles):
    """Look up a standard normal float32 from 13 bits.

    Without logarithm or cosine, it is the same on every processor.
    """
    # without a branch, which would be mispredicted
    sign = np.float32(1.0) - np.float32(2.0) * np.float32(np.int32(bits & ONE))
    return sign * quantiles[np.int64((bits >> ONE) & CELL_MASK)]


@njit()
def noise_rgb(noise_key, index, quantiles):
    """Return three independent standard normals, float32: number `index` (32 bits) for `noise_key` (64 bits).

    In erase mode "pixel", `index` is y * size + x for the output pixel. In mode "rand", it is the box number.

    `quantiles` is `HALF_NORMAL`. It is an argument, because a CUDA kernel would put a global array into constant
    memory, where threads that read different entries wait for each other.
    """
    key = np.uint64(noise_key)
    bits = philox2x32(key, index, key >> SHIFT_32)
    red = table_normal(bits, quantiles)
    green = table_normal(bits >> CHANNEL_SHIFT, quantiles)
    blue = table_normal(bits >> (CHANNEL_SHIFT + CHANNEL_SHIFT), quantiles)
    return red, green, blue
