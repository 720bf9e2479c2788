"""Find validation images that are almost equal to a training image, as a video's neighbouring frames are.

A validation image is compared with the training image that has the nearest features. It counts as a copy if the mean
difference between the two is small, both as 8 x 8 grey values with mean 0 and standard deviation 1.

Evidence, with a DINOv2-type ViT-S/14 at 42 px and 18 % held out at random, 8 times. This many images have a copy:

- Video frames: 75 to 90 % in clips with 12 neighbours, 49 to 78 % with every 5th frame, 39 to 67 % with every 12th.
- Solar cells 2 to 6 %, clip art 2 to 7 %, stamps 0 to 3 %, digits 0 to 2 %, ImageNet and CIFAR-10 none.

The features alone do not tell copies apart: 48 to 57 % of the cells have a cosine above 0.95.
"""

import numpy as np
from PIL import Image

from beton_tools.base.console import printable
from beton_tools.read.beton_set import BetonSet
from beton_tools.write.images import decode_sample
from fastft.data.warnings import ACCURACY, Warned

COMPARED = 500  # at most this many validation images are compared, evenly spaced
SIDE, DIFFERENCE = 8, 0.1
SHARE = 0.2  # warn if at least this fraction of the compared images has a copy
LISTED = 3


def warn_of_copies(train: BetonSet, train_ND: np.ndarray, val: BetonSet, val_ND: np.ndarray) -> list[Warned]:
    """Warn if many validation images have an almost equal training image. train_ND, val_ND: all images' features."""
    compared = np.unique(np.linspace(0, len(val) - 1, COMPARED).astype(np.int64))
    pairs = zip(compared.tolist(), _nearest(val_ND[compared], train_ND).tolist(), strict=True)
    copies = [(i, k) for i, k in pairs if np.abs(_thumbnail(val, i) - _thumbnail(train, k)).mean() < DIFFERENCE]
    if len(copies) < SHARE * len(compared):
        return []
    names = [table.read_names() or list(map(str, range(len(table)))) for table in (val, train)]
    listed = ", ".join(f"{printable(names[0][i])} and {printable(names[1][k])}" for i, k in copies[:LISTED])
    text = (
        f"{len(copies)} of {len(compared)} validation images are almost equal to a training image, like neighbouring frames in "
        f"a video ({listed}). Accuracy will be too high. Give a table that lists the files with a `group` column, such as one "
        "group per video"
    )
    return [Warned(text, ACCURACY)]


def _nearest(val_ND: np.ndarray, train_ND: np.ndarray) -> np.ndarray:
    """Return the nearest training image by cosine, int64. The training images' mean is subtracted from the features."""
    mean_D = train_ND.mean(0)
    lengths_N = np.linalg.norm(train_ND - mean_D, axis=1) + np.finfo(np.float32).tiny
    val_MD = val_ND - mean_D
    nearest: np.ndarray = ((val_MD @ train_ND.T - (val_MD @ mean_D)[:, None]) / lengths_N).argmax(1)
    return nearest


def _thumbnail(table: BetonSet, sample: int) -> np.ndarray:
    """Return float64 (SIDE, SIDE). It is NaN for an image with one colour, which is no copy of another."""
    image = Image.fromarray(decode_sample(table, sample)).convert("L")
    grey = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    return (grey - grey.mean()) / (grey.std() or np.nan)
