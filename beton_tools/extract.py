"""Images of a `.beton` back as ordinary files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from beton_tools.errors import UserError
from beton_tools.format import RAW_MODE, Beton
from beton_tools.images import decode_sample
from beton_tools.manifest import Manifest

_MAX_NAME = 200  # bytes of the 255 that a file name has; names come from the manifest, which may be anybody's


def choose_samples(
    beton: Beton, ids: Iterable[int] | None, label: int | None, limit: int | None, seed: int = 0
) -> list[int]:
    """Sample ids, ascending: those given, those of one label, or all; `limit` draws that many of them by
    seed."""
    chosen = np.arange(len(beton)) if ids is None else np.unique(np.fromiter(ids, np.int64))
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(beton):
        raise UserError(f"{beton.path}: sample ids run from 0 to {len(beton) - 1}; {chosen.tolist()} do not")
    if label is not None:
        chosen = chosen[beton.labels[chosen] == label]
    if limit is not None and limit < chosen.size:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, limit, replace=False))
    if chosen.size == 0:
        raise UserError(f"{beton.path}: no such samples; `beton stats` lists the classes")
    return chosen.tolist()


def extract(beton: Beton, manifest: Manifest | None, ids: Iterable[int], folder: Path) -> Iterator[Path]:
    """Write samples to `folder/<class>/<id>_<name>.jpg` (`.png` for raw ones), yielding each path.

    The JPEG bytes are those in the file. Raises UserError when a file cannot be written.
    """
    folders = _class_folders(manifest.classes) if manifest is not None else []
    for sample_id in ids:
        label = int(beton.labels[sample_id])
        class_folder = folders[label] if 0 <= label < len(folders) else str(label)
        path = folder / class_folder / _file_name(beton, manifest, sample_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if beton.modes[sample_id] == RAW_MODE:
                Image.fromarray(decode_sample(beton, sample_id)).save(path)
            else:
                path.write_bytes(beton.read_bytes(sample_id))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
        yield path


def _class_folders(classes: Sequence[str]) -> list[str]:
    """A folder name for each class, no two alike: names that would be get their label behind them."""
    names = [_safe(name) for name in classes]
    # again, as a name with its label may be that of a third class; no two names with labels are alike
    while twice := {name for name, count in Counter(names).items() if count > 1}:
        names = [f"{name}_{label}" if name in twice else name for label, name in enumerate(names)]
    return names


def _file_name(beton: Beton, manifest: Manifest | None, sample_id: int) -> str:
    source = manifest.names[sample_id] if manifest is not None and sample_id < len(manifest.names) else ""
    stem = _safe(source.rpartition("/")[2].rpartition(".")[0])
    suffix = ".png" if beton.modes[sample_id] == RAW_MODE else ".jpg"
    return f"{sample_id:07d}_{stem}{suffix}"


def _safe(name: str) -> str:
    """A file name that cannot leave its folder."""
    printable = "".join(c if c.isprintable() and c != "/" else "_" for c in name)
    visible = re.sub(r"^\.+", "_", printable)
    return visible.encode()[:_MAX_NAME].decode(errors="ignore") or "unnamed"
