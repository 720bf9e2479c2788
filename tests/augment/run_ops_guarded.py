"""Runs every op between pages that cannot be read or written: python -m tests.augment.run_ops_guarded.

Vector code reads and writes several bytes at a time. A byte too far, before or behind an image or the scratch, ends this
program with a signal.
"""

import ctypes
import mmap

import numpy as np

from fastft.augment.ops_image import op_scratch_size, run_op
from fastft.augment.plan import OP_ID

PAGE = mmap.PAGESIZE
PROT_NONE = 0
SHAPES = ((1, 1), (1, 2), (2, 1), (3, 3), (1, 40), (40, 1), (5, 7), (16, 16), (33, 21), (64, 65))
ARGUMENTS = {
    "Rotate": (-30.0, 45.0, 180.0, 7.3),
    "ShearX": (-0.3, 0.05, 3.0),
    "ShearY": (-0.3, 0.05, 3.0),
    "TranslateX": (-3.4, 0.5, 9.0),
    "TranslateY": (-3.4, 0.5, 9.0),
    "GaussianBlur": (0.1, 2.0),
}


class Guarded:
    """Memory of up to `size` bytes between two guard pages."""

    def __init__(self, size: int) -> None:
        pages = -(-size // PAGE)
        self.memory = mmap.mmap(-1, (pages + 2) * PAGE)
        self.inner = np.frombuffer(self.memory, np.uint8)[PAGE : (pages + 1) * PAGE]
        libc, address = ctypes.CDLL(None, use_errno=True), self.inner.ctypes.data
        for guard in (address - PAGE, address + pages * PAGE):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def part(self, size: int, at_end: bool) -> np.ndarray:
        """`size` bytes next to one of the guards."""
        return self.inner[len(self.inner) - size :] if at_end else self.inner[:size]


def main() -> None:
    largest = max(h * w for h, w in SHAPES) * 3 + 1
    source, target = Guarded(largest), Guarded(largest)
    scratch = Guarded(max(op_scratch_size(h, w) for h, w in SHAPES) + 64)
    fill, random = np.array([1, 2, 3], np.uint8), np.random.default_rng(0)
    for height, width in SHAPES:
        size, needed = height * width * 3, op_scratch_size(height, width)
        for at_end in (True, False):
            pixels = source.part(size + 1, at_end)[:size]  # the byte after a source may be read
            pixels[:] = random.integers(0, 256, size)
            own = scratch.part(-(-needed // 64) * 64, at_end)  # parts of scratch are aligned
            for name, op in OP_ID.items():
                for argument in ARGUMENTS.get(name, (1.0,)):
                    for bicubic in (True, False):
                        run_op(op, argument, pixels, target.part(size, at_end), height, width, fill, bicubic, own)


if __name__ == "__main__":
    main()
