"""In a contender's process: a .beton's JPEGs in memory."""

from pathlib import Path

import numpy as np

from beton_tools.jpeg import scratch_bytes
from beton_tools.read.format import Beton
from fastft.augment.draw import draw_plan
from fastft.augment.policies import AugmentPolicy


class JpegSet:
    """All images one after another in `data`, image k from ends[k] to ends[k + 1]. heights, widths: (N,) int64."""

    def __init__(self, path: Path) -> None:
        beton = Beton.open(path)
        self.data = np.concatenate([beton.image_bytes(k) for k in range(beton.num_samples)])
        self.ends = np.concatenate([[0], np.cumsum(beton.sizes)]).astype(np.int64)
        self.heights, self.widths = (beton.image_column[side].astype(np.int64) for side in ("height", "width"))

    def plan(self, policy: AugmentPolicy, epoch: int, size: int) -> np.ndarray:
        """Draw an epoch's plan for the images in their order, (N,)."""
        return draw_plan(
            policy,
            seed=0,
            epoch=epoch,
            sample_ids=np.arange(len(self)),
            heights=self.heights,
            widths=self.widths,
            size=size,
        )

    def __len__(self) -> int:
        return len(self.heights)

    @property
    def largest_pixels(self) -> int:
        """Bytes in the decoded image with the most pixels."""
        return 3 * int((self.heights * self.widths).max())

    def scratch(self) -> np.ndarray:
        """Memory for find_region."""
        largest = int(np.diff(self.ends).max())
        return np.empty(scratch_bytes(int(self.heights.max()), int(self.widths.max()), largest), np.uint8)
