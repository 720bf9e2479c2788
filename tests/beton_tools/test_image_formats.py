"""Images of the listed formats are opened; no other reader of Pillow is started."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from beton_tools.image_formats import FORMATS, MAX_FILE_BYTES, open_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_opened_from_a_path_and_from_bytes(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3)).save(buffer, form)
    path = tmp_path / "image.jpg"
    path.write_bytes(buffer.getvalue())
    for source in (path, str(path), buffer.getvalue()):
        image = open_image(source)
        assert (image.format, image.convert("RGB").size) == (form, (5, 3))


def test_postscript_named_jpg_is_refused_without_starting_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, started = tmp_path / "image.jpg", tmp_path / "started"
    path.write_bytes(EPS)
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnidentifiedImageError):
        open_image(path).load()
    assert not started.exists()


def test_only_regular_files_of_limited_size_are_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "fifo.jpg")
    for name in ("sparse.jpg", "fifo.jpg", "missing.jpg", "nul\0.jpg"):
        with pytest.raises(OSError) as caught:
            open_image(tmp_path / name)
        assert caught.value.strerror
