"""A contact sheet of the images of a `.beton`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest
from beton_tools.write.images import decode_sample

_GAP, _CAPTION, _FONT_SIZE = 12, 34, 13  # pixels
_PAPER, _INK, _GREY, _BAD = "#ffffff", "#1f2933", "#7b8794", "#b3261e"
_MAX_PIXELS = 178_956_970  # Pillow opens no larger image: 2 * Image.MAX_IMAGE_PIXELS
_LINE = 15  # pixels from one line of a caption to the next


def draw_sheet(
    beton: Beton, manifest: Manifest | None, ids: Sequence[int], columns: int, cell: int
) -> Image.Image:
    """Draw each sample in a square of `cell` pixels, with its class and id below; a red box if it cannot be decoded.

    Raises:
        UserError: the sheet would be too large, or the file changed while it was being read.
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
    sheet: Image.Image,
    beton: Beton,
    manifest: Manifest | None,
    sample_id: int,
    corner: tuple[int, int],
    cell: int,
) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    x, y = corner
    try:
        image = _fit(decode_sample(beton, sample_id), cell)
    except UserError:
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=_BAD)
        draw.text((x + cell // 2, y + cell // 2), "cannot be decoded", _BAD, font, anchor="mm")
    else:
        sheet.paste(image, (x + (cell - image.width) // 2, y + cell - image.height))
    title = _shorten(draw, font, _class_name(beton, manifest, sample_id), cell)
    draw.text((x, y + cell + 3), title, _INK, font)
    size = f"#{sample_id}   {beton.widths[sample_id]} x {beton.heights[sample_id]}"
    draw.text((x, y + cell + 3 + _LINE), _shorten(draw, font, size, cell), _GREY, font)


def _fit(pixels: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _class_name(beton: Beton, manifest: Manifest | None, sample_id: int) -> str:
    label = int(beton.labels[sample_id])
    if manifest is None or not 0 <= label < manifest.num_classes:
        return f"class {label}"
    return printable(manifest.class_label(label).split(",")[0])  # WordNet lists synonyms


def _shorten(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int
) -> str:
    text = text[: width + 1]  # a character takes a pixel at least
    if draw.textlength(text, font) <= width:
        return text
    kept = (
        bisect_right(range(len(text)), width, key=lambda n: round(draw.textlength(text[:n] + "...", font)))
        - 1
    )
    return text[: max(kept, 0)].rstrip(" ,") + "..."
