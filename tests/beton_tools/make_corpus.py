"""Write the small, valid files in `corpus/` from which the fuzz tests start: python -m tests.beton_tools.make_corpus."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from beton_tools.base.names import Names
from beton_tools.jpeg import add_index
from beton_tools.read.format import (
    ALLOC_DTYPE,
    FIELD_DTYPE,
    HEADER_DTYPE,
    JPEG_MODE,
    RAW_MODE,
    VERSION,
    align_up,
    metadata_dtype,
)
from beton_tools.read.manifest import Manifest, pack_names

CORPUS = Path(__file__).with_name("corpus")
PAGE_SIZE = 4096  # FFCV's writer uses 2 MiB or more; any power of two is valid
FLOAT, INT, IMAGE, BYTES, JSON = 0, 1, 2, 3, 5


def jpeg(size: tuple[int, int], **options: object) -> bytes:
    width, height = size
    pixels = (
        np.add.outer(7 * np.arange(height), 11 * np.arange(3 * width))
        .astype(np.uint8)
        .reshape(height, width, 3)
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40, **options)
    return buffer.getvalue()


def beton(fields: dict[str, int], images: list[tuple[int, int, int, bytes]], table_order: list[int]) -> bytes:
    """A file whose images are (mode, width, height, bytes); other columns than the image's hold the sample id."""
    descriptors = np.zeros(len(fields), FIELD_DTYPE)
    rows = np.zeros(len(images), metadata_dtype(list(fields.values())))
    start = align_up(HEADER_DTYPE.itemsize + descriptors.nbytes + rows.nbytes, PAGE_SIZE)
    head = np.array([(VERSION, len(fields), PAGE_SIZE, len(images), start + PAGE_SIZE)], HEADER_DTYPE)
    table = np.zeros(len(images), ALLOC_DTYPE)
    for number, (name, type_id) in enumerate(fields.items()):
        descriptors[number]["type_id"] = type_id
        descriptors[number]["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        if type_id in (INT, FLOAT):
            rows[f"f{number}"] = np.arange(len(images))
    column = f"f{list(fields.values()).index(IMAGE)}"
    page = b""
    for i, (mode, width, height, data) in enumerate(images):
        rows[column][i] = (mode, width, height, start + len(page))
        table[i] = (i, start + len(page), len(data))
        page += data
    tables = head.tobytes() + descriptors.tobytes() + rows.tobytes()
    return tables.ljust(start, b"\0") + page.ljust(PAGE_SIZE, b"\0") + table[table_order].tobytes()


def betons() -> dict[str, bytes]:
    small, grey = jpeg((16, 24)), add_index(jpeg((40, 20), subsampling=2), 1)
    raw = bytes(range(5 * 4 * 3))
    ours = {"image": IMAGE, "label": INT}
    return {
        "indexed.beton": beton(
            ours, [(JPEG_MODE, 40, 20, grey), (JPEG_MODE, 16, 24, add_index(small))], [0, 1]
        ),
        "one.beton": beton(ours, [(JPEG_MODE, 16, 24, small)], [0]),
        "raw.beton": beton(
            ours, [(RAW_MODE, 5, 4, raw), (JPEG_MODE, 16, 24, small), (RAW_MODE, 4, 5, raw)], [2, 0, 1]
        ),
        "fields.beton": beton(
            {"weight": FLOAT, "note": JSON, "picture": IMAGE, "class": INT, "blob": BYTES},
            [(JPEG_MODE, 16, 24, small), (RAW_MODE, 5, 4, raw)],
            [1, 0],
        ),
    }


def manifests() -> dict[str, Manifest]:
    names = ["n01/a.JPEG", b"n02/caf\xe9.JPEG".decode("utf-8", "surrogateescape"), "n02/日本.png"]
    plain = Manifest(
        fingerprint="0123456789abcdef",
        num_samples=3,
        page_size=PAGE_SIZE,
        data_start=PAGE_SIZE,
        file_size=2 * PAGE_SIZE + 72,
        tables_crc32=1,
        page_crc32=[(1 << 32) - 1],
        classes=["n01", "n02"],
        class_names=None,
        source={"kind": "folder", "root": "photos"},
        options={"quality": 90, "max_resolution": None, "lossless": True, "subsampling": "4:2:0"},
        encodings={"kept": 2, "PNG": 1},
        skipped=[],
        damaged=[],
        left_out={},
        packed_names=pack_names(Names.of(names)),
    )
    rich = replace(
        plain,
        class_names=["tench, Tinca tinca", "Katze \x1b[31m"],
        skipped=[("n01/b.JPEG", "empty file")],
        damaged=["n01/a.JPEG"],
        left_out={".txt": 3, "": 1},
    )
    return {"plain.json": plain, "rich.json": rich}


if __name__ == "__main__":
    for name, data in betons().items():
        (CORPUS / name).write_bytes(data)
    for name, manifest in manifests().items():
        manifest.save(CORPUS / name)
