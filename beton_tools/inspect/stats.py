"""Statistics of a `.beton`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from beton_tools import jpeg
from beton_tools.jpeg.markers import JpegError
from beton_tools.read.format import RAW_MODE, Beton
from beton_tools.read.manifest import Manifest
from beton_tools.read.sample_table import count_classes

_HEADERS_READ = 2000  # JPEG headers that are read for subsampling: gives shares within about 1 %
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def compute(beton: Beton, manifest: Manifest | None) -> dict[str, Any]:
    """Statistics as a JSON-compatible dict. Sizes in bytes, sides in pixels; percentile "0" is the minimum, "100" the maximum.

    jpeg.subsampling and jpeg.indexed are shares of `jpeg.headers_read` images, spread evenly over the file. Raises UserError:
    the file has no labels, cannot be read, or changed while it was being read.
    """
    heights, widths = beton.heights.astype(np.int64), beton.widths.astype(np.int64)
    labels = beton.labels
    counts = np.unique(labels, return_counts=True)[1] if labels.ndim == 1 else count_classes(labels)
    num_classes = len(counts) if manifest is None else manifest.num_classes
    counts = np.pad(counts, (0, max(0, num_classes - len(counts))))  # those without images
    jpeg_shares = _jpeg_shares(beton)
    beton.check_unchanged()
    return {
        "path": str(beton.path),
        "file_size": beton.file_size,
        "num_samples": len(beton),
        "num_classes": num_classes,
        "pages": {
            "size": beton.page_size,
            "count": beton.num_pages,
            "filled": round(float(beton.sizes.sum() / max(beton.data_end - beton.data_start, 1)), 4),
        },
        "image_bytes": {"total": int(beton.sizes.sum()), **_spread(beton.sizes)},
        "long_side": _spread(np.maximum(heights, widths)),
        "short_side": _spread(np.minimum(heights, widths)),
        "megapixels": round(float((heights * widths).sum() / 1e6), 1),
        "images_per_class": _spread(counts),
        "raw_images": int((beton.modes == RAW_MODE).sum()),
        "jpeg": jpeg_shares,
        "encodings": manifest.encodings if manifest is not None else None,
        "skipped": len(manifest.skipped) if manifest is not None else None,
    }


def _spread(values: np.ndarray) -> dict[str, Any]:
    percentiles = np.percentile(values, _PERCENTILES)
    by_percent = {str(p): round(v) for p, v in zip(_PERCENTILES, percentiles.tolist(), strict=True)}
    return {"mean": round(float(values.mean()), 1), "percentiles": by_percent}


def _jpeg_shares(beton: Beton) -> dict[str, Any]:
    ids = np.flatnonzero(beton.modes != RAW_MODE)
    ids = ids[np.linspace(0, len(ids) - 1, min(len(ids), _HEADERS_READ)).astype(np.int64)]
    kinds: Counter[str] = Counter()
    indexed = 0
    for sample_id in ids.tolist():
        try:
            stored = beton.image_bytes(sample_id)
            header = jpeg.parse(stored)
        except JpegError:
            kinds["unreadable"] += 1
        else:
            kinds[jpeg.subsampling(stored, header)] += 1
            indexed += header.index_at > 0
    total = max(len(ids), 1)
    shares = {kind: round(count / total, 4) for kind, count in kinds.most_common()}
    return {"headers_read": len(ids), "subsampling": shares, "indexed": round(indexed / total, 4)}
