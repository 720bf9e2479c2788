"""HTML that notebooks show for a prediction (an image with its classes) and for a run (a table)."""

import base64
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path

from PIL import Image

from beton_tools.base.image_formats import open_image, orientation_of, upright_rgb

THUMBNAIL = 224  # longer side in pixels


def html_table(rows: Iterable[Sequence[object]], header: Sequence[object] = ()) -> str:
    """Return an HTML table in which every cell is escaped."""

    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    head = f"<thead>{row(header, 'th')}</thead>" if header else ""
    return f"<table>{head}<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table>"


def html_image(image: Image.Image | Path) -> str:
    """Return a thumbnail to embed in a page, turned as its Exif data says. Empty for an unreadable or deleted file."""
    with suppress(Exception):  # Pillow's plug-ins raise many different exceptions for damaged files
        opened = image if isinstance(image, Image.Image) else open_image(image)
        small, _ = upright_rgb(opened, orientation_of(opened))
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        small.save(file, "JPEG", quality=85)
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
    return ""
