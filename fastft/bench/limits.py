"""Hardware limits: a lower bound for the time of each benchmark, from rates measured in the same rounds.

A limit is a contender that measures, on one core:

- libjpeg-turbo's rate for JPEG bytes; decoding a crop costs the bytes of its share of the image,
- the rate of a copy; pixels are read and written once by each step that changes them,
- the rate of a float32 matrix product, for the multiplications of resampling and of other filters.

Its trial reports the seconds that follow from these rates, not those that the measurement took.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fastft.bench.child import Arm
from fastft.bench.dataset import JpegSet

COPY_SECONDS = 0.02  # that a rate is measured for
MATRIX_SIZE = 512
CHANNELS, FLOAT_BYTES = 3, 4
TAPS = 4  # of a bicubic filter that does not reduce
# multiplications per channel of an output pixel; other ops only read and write pixels
OP_TAPS = {
    "Rotate": TAPS**2,
    "ShearX": TAPS,
    "ShearY": TAPS,
    "TranslateX": TAPS,
    "TranslateY": TAPS,
    "Sharpness": 9,
}


class Rates:
    """Seconds of one core per unit of work; each is measured when it is first asked for."""

    def __init__(self) -> None:
        self._copy: dict[int, float] = {}
        self._flop = 0.0

    def copy(self, num_bytes: float) -> float:
        """Seconds of reading and writing `num_bytes` in all."""
        size = 1 << max(12, int(num_bytes // 2).bit_length())
        if size not in self._copy:
            source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
            self._copy[size] = _seconds_per_call(partial(np.copyto, target, source)) / (2 * size)
        return num_bytes * self._copy[size]

    def multiply(self, multiplications: float) -> float:
        """Seconds of as many multiplications, each with an addition."""
        if not self._flop:
            a = np.ones((MATRIX_SIZE, MATRIX_SIZE), np.float32)
            self._flop = _seconds_per_call(partial(np.matmul, a, a, out=np.empty_like(a))) / MATRIX_SIZE**3
        return multiplications * self._flop

    def op(self, name: str, size: int) -> float:
        """Seconds of an op of `plan.OPS` on an image of size x size."""
        values = CHANNELS * size * size
        return max(self.copy(2 * values), self.multiply(OP_TAPS.get(name, 0) * values))

    def resize(self, height: int, width: int, size: int) -> float:
        """Seconds of an antialiased bicubic resize to size x size, along rows and then along columns."""
        rows = height * size * TAPS * max(width / size, 1)
        columns = size * size * TAPS * max(height / size, 1)
        moved = CHANNELS * (height * width + size * size)
        return max(self.copy(moved), self.multiply(CHANNELS * (rows + columns)))

    def normalise(self, size: int) -> float:
        """Seconds of writing the pixels as normalised float32."""
        return self.copy((1 + FLOAT_BYTES) * CHANNELS * size * size)


def _seconds_per_call(function: Callable[[], object]) -> float:
    """CPU seconds of a call, the best of several rounds: a rate of the hardware is not one of a disturbed moment."""
    function()
    best, calls, began = np.inf, 1, time.process_time()
    while time.process_time() - began < COPY_SECONDS:
        before = time.process_time()
        for _ in range(calls):
            function()
        seconds = time.process_time() - before
        best = min(best, seconds / calls) if seconds > COPY_SECONDS / 100 else best
        calls *= 2 if seconds < COPY_SECONDS / 10 else 1
    return best


def at_limit(count: int, cpu_seconds: float, threads: int = 1) -> dict[str, float]:
    """A trial as if every core worked at the limit."""
    return {"count": count, "cpu": cpu_seconds, "wall": cpu_seconds / threads}


# images -----------------------------------------------------------------------------------------------------------------


def crop_limit(path: str) -> dict[str, Arm]:
    """The crops of `decode_bench.crops`."""
    from fastft.bench.decode_bench import PLANS, random_crops

    jpegs, rng = JpegSet(Path(path)), np.random.default_rng(0)
    crops = [random_crops(jpegs, rng) for _ in range(PLANS)]
    share = float(np.mean([_share(jpegs, c) for c in crops]))
    decode_all = _whole_decoder(jpegs)
    return {"decode": lambda: at_limit(len(jpegs), share * decode_all())}


def recipe_limit(
    path: str, size: int, augment_policy: str, name: str = "recipe", threads: int = 1
) -> dict[str, Arm]:
    """Decode, resize, ops and normalised output of an epoch's plans."""
    from fastft.augment import draw_plan, parse_policy

    jpegs, policy = JpegSet(Path(path)), parse_policy(augment_policy)
    heights, widths = jpegs.shapes
    ids = np.arange(len(jpegs))
    plan = draw_plan(policy, seed=0, epoch=0, sample_ids=ids, heights=heights, widths=widths, size=size)
    return {name: _plan_limit(jpegs, plan, size, threads)}


def eval_limit(path: str, size: int, name: str = "pass") -> dict[str, Arm]:
    """Decode, resize and normalised output of an evaluation."""
    from fastft.augment.draw import eval_plan

    jpegs = JpegSet(Path(path))
    return {name: _plan_limit(jpegs, eval_plan(np.arange(len(jpegs)), *jpegs.shapes, size), size)}


def _plan_limit(jpegs: JpegSet, plan: np.ndarray, size: int, threads: int = 1) -> Arm:
    from fastft.augment import source_regions
    from fastft.augment.plan import OPS

    regions = source_regions(plan, size)
    share, decode_all = _share(jpegs, regions), _whole_decoder(jpegs)
    ops, counts = np.unique(plan["op"], return_counts=True)

    def run() -> dict[str, float]:
        rates = Rates()
        seconds = share * decode_all()
        seconds += sum(rates.resize(h, w, size) for _, _, h, w in regions.tolist())
        seconds += sum(
            count * rates.op(OPS[op], size)
            for op, count in zip(ops.tolist(), counts.tolist(), strict=True)
            if OPS[op] != "Identity"
        )
        return at_limit(len(plan), seconds + len(plan) * rates.normalise(size), threads)

    return run


def _share(jpegs: JpegSet, regions: np.ndarray) -> float:
    """Share of all JPEG bytes that the regions (N, 4) of y, x, h, w need, each image's bytes spread evenly over its area."""
    num_bytes, (heights, widths) = np.diff(jpegs.ends), jpegs.shapes
    areas = regions[:, 2].astype(float) * regions[:, 3] / (heights * widths)
    return float(num_bytes @ areas / num_bytes.sum())


def _whole_decoder(jpegs: JpegSet) -> Callable[[], float]:
    """A function that decodes every image with libjpeg-turbo and returns the CPU seconds."""
    from beton_tools.jpeg import open_decoders
    from fastft.bench.compiled_loops import decompress_all

    heights, widths = jpegs.shapes
    pixels, handle = np.empty(CHANNELS * int((heights * widths).max()), np.uint8), open_decoders(1)[0]

    def run() -> float:
        began = time.process_time()
        if decompress_all(jpegs.data, jpegs.ends, heights, widths, pixels, handle):
            raise RuntimeError("an image could not be decoded: the limit would mean nothing")
        return time.process_time() - began

    return run


# single ops and resize --------------------------------------------------------------------------------------------------


def op_limits(paths: list[str]) -> dict[str, Arm]:
    """Every op of `augment_bench.our_ops`."""
    from fastft.augment.levels import op_of
    from fastft.augment.plan import OPS
    from fastft.augment.policies import INCREASING_OPS
    from fastft.bench.augment_bench import SIZE

    return {name: partial(_op_trial, OPS[op_of(name)], SIZE) for name in INCREASING_OPS}


def _op_trial(op: str, size: int) -> dict[str, float]:
    return at_limit(1, Rates().op(op, size))


def resize_limits(paths: list[str]) -> dict[str, Arm]:
    """The crops of `augment_bench.crops`."""
    from fastft.bench.augment_bench import SIZE, crops

    def arm(shapes: list[tuple[int, ...]]) -> Arm:
        def run() -> dict[str, float]:
            rates = Rates()
            return at_limit(len(shapes), sum(rates.resize(h, w, SIZE) for h, w, _ in shapes))

        return run

    return {name: arm([image.shape for image in images]) for name, images in crops(paths).items()}
