"""`python -m fastft.data.pixel_probe`: check that the CPU loader's images equal Pillow's on this machine.

The probe converts a few generated photographs in a temporary folder, loads them as for evaluation, and compares them
with images that Pillow decodes and resizes. The exit code is 0 if they are equal. `fastft doctor` runs it in a
separate process.

A batch is also augmented as for training, so that Numba's cache then holds the CPU loader's whole code. Set-up runs
this module to fill the cache.

The probe catches compiled code that runs but gives wrong images. Numba 0.68 on Python 3.12 once lost a value in the
decoding loop, and every row of an image was a copy of its first one.
"""

import io
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from beton_tools.base.compilation import announce_compilation
from beton_tools.read.format import Beton
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.augment.policies import AugmentPolicy
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.stage import Output

# square, because then Pillow orders the two resize passes in the same way in all its versions
IMAGES, STORED, SIZE = (6, 96, 64)
TOLERANCE = 1  # out of 255 levels: Pillow's libjpeg may round differently


def _photograph(number: int) -> Image.Image:
    """Return smooth colours with some noise, different in every row and column."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((STORED, STORED), Image.Resampling.BICUBIC)


def probe() -> int:
    """Return the largest difference from Pillow's images, in levels out of 255."""
    with tempfile.TemporaryDirectory() as name:
        folder, beton = Path(name) / "images", Path(name) / "images.beton"
        (folder / "class").mkdir(parents=True)
        for number in range(IMAGES):
            _photograph(number).save(folder / "class" / f"{number}.jpg", quality=90)
        convert_folder(folder, beton, WriteOptions(workers=0))
        with TrainLoader(beton, AugmentPolicy(), Output(SIZE), batch_size=IMAGES) as loader:
            next(iter(loader))
        return largest_difference(beton)


def largest_difference(beton: Path) -> int:
    """Return the largest difference between the loader's and Pillow's images from a file, in levels out of 255."""
    policy = AugmentPolicy("none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    stored, largest = Beton.open(beton), 0
    with EvalLoader(beton, policy, Output(SIZE), batch_size=IMAGES) as loader:
        for batch in loader:
            loaded = (batch.images * 255).round().permute(0, 2, 3, 1).numpy().astype(int)
            for image, sample in zip(loaded, batch.ids, strict=True):
                with Image.open(io.BytesIO(stored.read_bytes(int(sample)))) as file:
                    expected = file.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                largest = max(largest, int(abs(image - np.asarray(expected, int)).max()))
    return largest


def main() -> None:
    announce_compilation(partial(print, file=sys.stderr, flush=True))
    difference = probe()
    if difference > TOLERANCE:
        sys.exit(f"the loader's images differ from Pillow's by {difference} of 255 levels")
    print(f"the loader's images differ from Pillow's by at most {difference} of 255 levels")


if __name__ == "__main__":
    main()
