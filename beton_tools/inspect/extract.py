"""Images of a `.beton` as ordinary files, or on one contact sheet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from beton_tools.base.atomic import atomic_path
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError, report_disk_errors
from beton_tools.read.format import RAW_MODE, Beton
from beton_tools.read.manifest import Manifest
from beton_tools.read.sample_table import classes_of
from beton_tools.write.images import decode_sample

_GAP, _CAPTION, _FONT_SIZE = 12, 34, 13  # pixels
_PAPER, _INK, _GREY, _BAD = "#ffffff", "#1f2933", "#7b8794", "#b3261e"
_MAX_PIXELS = 178_956_970  # Pillow opens no larger image: 2 * Image.MAX_IMAGE_PIXELS
_LINE = 15  # pixels from one line of a caption to the next
_MAX_NAME = 200  # bytes, of the 255 of a file name; names come from the manifest and can be of any length


def choose_samples(
    beton: Beton, ids: Iterable[int] | None, label: int | None, limit: int | None, seed: int = 0
) -> list[int]:
    """Sample ids in ascending order.

    ids: restrict to these samples; None: all.
    label: restrict to the samples of this label.
    limit: draw at most this many of them, by `seed`.
    Raises UserError: an id is out of range, or nothing is left.
    """
    wanted = range(len(beton)) if ids is None else sorted(set(ids))
    for sample_id in (*wanted[:1], *wanted[-1:]):  # may be beyond int64
        beton.check_id(sample_id)
    chosen = np.array(wanted, np.int64)
    if label is not None:
        of_class = [k for k, found in enumerate(beton.labels[chosen]) if label in classes_of(found)]
        chosen = chosen[of_class]
    if limit is not None and limit < chosen.size:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, limit, replace=False))
    if chosen.size == 0:
        raise UserError(f"{beton.path}: no such samples; `beton stats` lists the classes")
    return chosen.tolist()


def extract(beton: Beton, manifest: Manifest | None, ids: Iterable[int], folder: Path) -> Iterator[Path]:
    """Write samples to `folder/<class>/<id>_<name>.jpg` (`.png` for raw ones), yielding each path.

    JPEG bytes are written as they are stored. The folder of several labels is named by all of them, "cat;dog", or "none".
    Raises UserError: a sample cannot be read, the `.beton` changed while it was being read, a file cannot be written, a class
    folder is a link, or the manifest belongs to another file.
    """
    if manifest is not None and manifest.num_samples != len(beton):
        raise UserError(
            f"{beton.path}: has {len(beton)} samples, its manifest {manifest.num_samples}; delete the manifest"
        )
    folders = _class_folders(manifest.classes) if manifest is not None else []
    for sample_id in ids:
        labels = classes_of(beton.labels[sample_id])
        named = [folders[label] if 0 <= label < len(folders) else str(label) for label in labels]
        class_folder = ";".join(named) or "none"
        path = folder / class_folder / _file_name(beton, manifest, sample_id)
        with report_disk_errors(f"{path}:", "give another --out"):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.is_symlink():
                raise UserError(f"{path.parent}: a link, not a folder; remove it, or give another --out")
            with atomic_path(path) as partial:
                if beton.modes[sample_id] == RAW_MODE:
                    Image.fromarray(decode_sample(beton, sample_id)).save(partial)
                else:
                    partial.write_bytes(beton.read_bytes(sample_id))
        yield path
    beton.check_unchanged()


def _class_folders(classes: Sequence[str]) -> list[str]:
    """A unique folder name for each class: where two would be equal, the label is appended."""
    names = [_safe(name) for name in classes]
    # repeated, because a name with its label may be the name of a third class; names with labels are all different
    while repeated := {name for name, count in Counter(names).items() if count > 1}:
        names = [f"{name}_{label}" if name in repeated else name for label, name in enumerate(names)]
    return names


def _file_name(beton: Beton, manifest: Manifest | None, sample_id: int) -> str:
    source = manifest.names[sample_id] if manifest is not None else ""
    stem = _safe(source.rpartition("/")[2].rpartition(".")[0])
    suffix = ".png" if beton.modes[sample_id] == RAW_MODE else ".jpg"
    return f"{sample_id:07d}_{stem}{suffix}"


def _safe(name: str) -> str:
    """A printable file name without a path separator or leading dots."""
    shown = "".join(c if c.isprintable() and c != "/" else "_" for c in name)
    visible = re.sub(r"^\.+", "_", shown)
    return visible.encode()[:_MAX_NAME].decode(errors="ignore") or "unnamed"


def draw_sheet(beton: Beton, manifest: Manifest | None, ids: Sequence[int], columns: int, cell: int) -> Image.Image:
    """Draw each sample in a square of `cell` pixels, with its class and id below; a red box if it cannot be decoded.

    Raises UserError: the sheet would be too large, or the file changed while it was being read.
    """
    columns = min(columns, len(ids))
    rows = -(-len(ids) // columns)
    width, height = _GAP + columns * (cell + _GAP), _GAP + rows * (cell + _CAPTION + _GAP)
    if width * height > _MAX_PIXELS:
        raise UserError(
            f"a sheet of {len(ids):,} images of {cell} pixels has more than {_MAX_PIXELS:,} pixels; reduce --limit or --cell"
        )
    sheet = Image.new("RGB", (width, height), _PAPER)
    for place, sample_id in enumerate(ids):
        row, column = divmod(place, columns)
        corner = (_GAP + column * (cell + _GAP), _GAP + row * (cell + _CAPTION + _GAP))
        _draw_sample(sheet, beton, manifest, sample_id, corner, cell)
    beton.check_unchanged()  # not "cannot be decoded"
    return sheet


def _draw_sample(
    sheet: Image.Image, beton: Beton, manifest: Manifest | None, sample_id: int, corner: tuple[int, int], cell: int
) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    x, y = corner
    try:
        image = Image.fromarray(decode_sample(beton, sample_id))
        width, height = (max(1, side * cell // max(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    except UserError:
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=_BAD)
        draw.text((x + cell // 2, y + cell // 2), "cannot be decoded", _BAD, font, anchor="mm")
    else:
        sheet.paste(image, (x + (cell - image.width) // 2, y + cell - image.height))
    title = _shorten(draw, font, _class_name(beton, manifest, sample_id), cell)
    draw.text((x, y + cell + 3), title, _INK, font)
    size = f"#{sample_id}   {beton.widths[sample_id]} x {beton.heights[sample_id]}"
    draw.text((x, y + cell + 3 + _LINE), _shorten(draw, font, size, cell), _GREY, font)


def _class_name(beton: Beton, manifest: Manifest | None, sample_id: int) -> str:
    labels = classes_of(beton.labels[sample_id])
    if manifest is None or not all(0 <= label < manifest.num_classes for label in labels):
        return f"class {'; '.join(map(str, labels))}"
    return printable("; ".join(manifest.class_label(label).split(",")[0] for label in labels))  # WordNet lists synonyms


def _shorten(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int
) -> str:
    text = text[: width + 1]  # a character takes a pixel at least
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text.rstrip(" ,") + "..."
