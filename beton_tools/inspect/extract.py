"""Write the images in a `.beton` as ordinary files, or on one contact sheet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from beton_tools.base.atomic import atomic_path, refuse_existing
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.read.format import RAW_MODE, Beton
from beton_tools.read.manifest import Manifest
from beton_tools.read.sample_table import classes_of
from beton_tools.write.images import decode_sample

_GAP, _LINE, _FONT_SIZE, _CHARACTER = 12, 16, 13, 7  # pixels between pictures, and text sizes in pixels
_MOST_LINES = 4  # per caption
_PAPER, _INK, _BAD = "#ffffff", "#1f2933", "#b3261e"
_MAX_PIXELS = 178_956_970  # Pillow opens no larger image: 2 * Image.MAX_IMAGE_PIXELS
_MAX_NAME = 200  # bytes, out of 255 for a file name. Names come from the manifest and can have any length


def choose_samples(
    beton: Beton, ids: Iterable[int] | None, label: int | None, limit: int | None, seed: int = 0
) -> list[int]:
    """Choose sample ids, in ascending order.

    Args:
        ids: Restrict to these samples. None means all.
        label: Restrict to samples with this label.
        limit: Draw at most this many of them, by `seed`.

    Raises:
        UserError: An id is out of range, or nothing is left.
    """
    wanted = range(len(beton)) if ids is None else sorted(set(ids))
    for sample_id in (*wanted[:1], *wanted[-1:]):  # may be beyond int64
        beton.check_id(sample_id)
    chosen = np.array(wanted, np.int64)
    if label is not None:
        of_class = [k for k, labels in enumerate(beton.labels[chosen]) if label in classes_of(labels)]
        chosen = chosen[of_class]
    if limit is not None and limit < chosen.size:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, limit, replace=False))
    if chosen.size == 0:
        raise UserError(
            f"{beton.path}: no such samples. `beton info --json` lists the classes, and the first has label 0"
        )
    return chosen.tolist()


def extract(
    beton: Beton, manifest: Manifest | None, ids: Iterable[int], folder: Path, overwrite: bool = False
) -> Iterator[Path]:
    """Write samples to `folder/<class>/<id>_<name>.jpg` (`.png` for raw ones), yielding each path.

    JPEG bytes are written as they are stored. For a multi-label image, the folder is named by all its labels,
    "cat;dog", or "none".

    Args:
        overwrite: Replace existing files.

    Raises:
        UserError: A file exists (nothing is written then), a sample cannot be read, the `.beton` changed while it was
            being read, a file cannot be written, a class folder is a link, or the manifest belongs to another file.
    """
    if manifest is not None and manifest.num_samples != len(beton):
        raise UserError(
            f"{beton.path}: has {len(beton)} samples, but its manifest lists {manifest.num_samples}. Delete the manifest"
        )
    folders = _class_folders(manifest.classes) if manifest is not None else []
    paths: dict[int, Path] = {}
    for sample_id in ids:
        labels = classes_of(beton.labels[sample_id])
        named = [folders[label] if 0 <= label < len(folders) else str(label) for label in labels]
        class_folder = _safe(";".join(named) or "none")
        paths[sample_id] = folder / class_folder / _file_name(beton, manifest, sample_id)
        refuse_existing(paths[sample_id], overwrite)
    for sample_id, path in paths.items():
        with report_disk_errors(f"{path}:", "Give another --out"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.is_symlink():
                raise UserError(f"{path.parent}: a link, not a folder. Remove it, or give another --out")
            with atomic_path(path) as partial:
                if beton.modes[sample_id] == RAW_MODE:
                    Image.fromarray(decode_sample(beton, sample_id)).save(partial)
                else:
                    partial.write_bytes(beton.read_bytes(sample_id))
        yield path
    beton.check_unchanged()


def _class_folders(classes: Sequence[str]) -> list[str]:
    """Return a unique folder name for each class. Where two would be equal, the label is appended."""
    names = [_safe(name) for name in classes]
    # Repeated, because a name with its label may be a third class's name. Names with labels are all different.
    while repeated := {name for name, count in Counter(names).items() if count > 1}:
        names = [f"{name}_{label}" if name in repeated else name for label, name in enumerate(names)]
    return names


def _file_name(beton: Beton, manifest: Manifest | None, sample_id: int) -> str:
    source = manifest.names[sample_id] if manifest is not None else ""
    stem = _safe(source.rpartition("/")[2].rpartition(".")[0])
    suffix = ".png" if beton.modes[sample_id] == RAW_MODE else ".jpg"
    return f"{sample_id:07d}_{stem}{suffix}"


def _safe(name: str) -> str:
    """Return a printable file name without path separators or leading dots."""
    shown = "".join(c if c.isprintable() and c != "/" else "_" for c in name)
    visible = re.sub(r"^\.+", "_", shown)
    return visible.encode()[:_MAX_NAME].decode(errors="ignore") or "unnamed"


# pictures -------------------------------------------------------------------------------------------------------------


def draw_sheet(beton: Beton, manifest: Manifest | None, ids: Sequence[int], columns: int, cell: int) -> Image.Image:
    """Draw each sample in a square of `cell` pixels, with its class and id below.

    A sample that cannot be decoded is shown as a red box.

    Raises:
        UserError: The sheet would be too large, or the file changed while it was being read.
    """
    columns = min(columns, len(ids))
    if -(-len(ids) // columns) * columns * (cell + _GAP) * (cell + _GAP + 2 * _LINE) > _MAX_PIXELS:
        raise UserError(
            f"a sheet with {len(ids):,} images at {cell} pixels has more than {_MAX_PIXELS:,} pixels. Reduce --limit or --cell"
        )
    cells = []
    for sample_id in ids:
        try:
            image = _fitted(Image.fromarray(decode_sample(beton, sample_id)), cell)
        except UserError:
            image = None
        size = f"#{sample_id}   {beton.widths[sample_id]} x {beton.heights[sample_id]}"
        cells.append(Cell(image, f"{_class_name(beton, manifest, sample_id)}\n{size}"))
    beton.check_unchanged()  # a changed file must not be reported as "cannot be decoded"
    return draw_grid(cells, columns, cell)


def _class_name(beton: Beton, manifest: Manifest | None, sample_id: int) -> str:
    labels = classes_of(beton.labels[sample_id])
    if manifest is None or not all(0 <= label < manifest.num_classes for label in labels):
        return f"class {'; '.join(map(str, labels))}"
    return printable("; ".join(manifest.class_label(label).split(",")[0] for label in labels))  # WordNet lists synonyms


@dataclass(frozen=True)
class Cell:
    """One picture in a grid, None where it cannot be decoded, and the text below it."""

    image: Image.Image | None
    caption: str
    colour: str = _INK


def draw_grid(cells: Sequence[Cell], columns: int, side: int, footnote: str = "") -> Image.Image:
    """Draw pictures in squares of `side` pixels, with captions wrapped to their width, and a footnote at the end."""
    width = max(8, side // _CHARACTER)
    captions = [
        [
            line
            for text in cell.caption.split("\n")
            for line in wrap(text, width, max_lines=_MOST_LINES, placeholder="...")
        ]
        for cell in cells
    ]
    rows = range(0, len(cells), columns)
    heights = [side + _GAP + _LINE * max(map(len, captions[k : k + columns])) for k in rows]
    size = _GAP + columns * (side + _GAP), _GAP + sum(heights) + (_LINE if footnote else 0)
    grid = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(_FONT_SIZE)
    for k, (cell, lines) in enumerate(zip(cells, captions, strict=True)):
        x, y = _GAP + k % columns * (side + _GAP), _GAP + sum(heights[: k // columns])
        if cell.image is None:
            draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_BAD)
            draw.text((x + side // 2, y + side // 2), "cannot be decoded", _BAD, font, anchor="mm")
        else:
            image = _fitted(cell.image, side)
            grid.paste(image, (x + (side - image.width) // 2, y + side - image.height))
        for number, line in enumerate(lines):
            draw.text((x, y + side + 2 + _LINE * number), line, cell.colour, font)
    draw.text((_GAP, size[1] - _LINE - 4), footnote, _INK, font)
    return grid


def _fitted(image: Image.Image, side: int) -> Image.Image:
    width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
