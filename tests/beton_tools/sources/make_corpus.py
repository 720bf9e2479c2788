"""Write the small tars and parquet files in `corpus/` from which the fuzz targets of sources start:
python -m tests.beton_tools.sources.make_corpus. The images in them are a few bytes of no format."""

import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from beton_tools.read.format import MAX_CLASSES

CORPUS = Path(__file__).with_name("corpus")
VALID, HOSTILE = "valid-", "hostile-"
_END = bytes(1024)  # two empty blocks; tar programs add more
SAMPLE = {"a.cls": b"1", "a.jpg": b"x" * 20}


def member(name: str, data: bytes, size: int | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Header and contents of a member whose header claims `size` bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def tar(files: Mapping[str, bytes]) -> bytes:
    return b"".join(member(name, data) for name, data in files.items()) + _END


def pax(records: Mapping[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header; keys and values must be short."""
    lines = (f" {key}={value}\n" for key, value in records.items())
    return member("pax", "".join(f"{len(line) + 2:02d}{line}" for line in lines).encode(), kind=kind)


def tars() -> dict[str, bytes]:
    inner = tar({"n01440764_0.JPEG": b"x" * 10})
    sparse = member("a.jpg", b"x" * 20, kind=tarfile.GNUTYPE_SPARSE)
    return {
        "valid-shard": tar(SAMPLE | {"b.jpg": b"y", "b.json": b'{"label": 0}'}),
        "valid-train": tar({"n01440764.tar": inner}),
        "valid-long-name": member("x" * 120 + ".jpg", b"x") + tar({"x" * 120 + ".cls": b"1"}),
        "valid-pax-size": pax({"size": "5"}) + member("a.jpg", b"x" * 5, size=0) + tar({"a.cls": b"0"}),
        "valid-links": member("l.jpg", b"", kind=tarfile.SYMTYPE) + tar(SAMPLE),
        "hostile-extended-header-of-8-gib": member("pax", b"", (1 << 33) - 1, tarfile.XHDTYPE) + tar(SAMPLE),
        "hostile-long-name-of-8-gib": member("l", b"", (1 << 33) - 1, tarfile.GNUTYPE_LONGNAME) + tar(SAMPLE),
        "hostile-negative-size": member("a.jpg", b"x" * 20, -1024) + tar({"a.cls": b"0"}),
        "hostile-pax-size-of-2-to-the-70": pax({"size": str(1 << 70)}) + tar(SAMPLE),
        "hostile-pax-sparse-map": pax({"GNU.sparse.map": "0,0,x", "GNU.sparse.size": "9"}) + tar(SAMPLE),
        "hostile-sparse-beyond-the-end": sparse[:386] + b"\xff" * 24 + sparse[410:] + tar(SAMPLE),
        "hostile-inner-tar-reaches-out": tar({"n01440764.tar": member("n01440764_0.JPEG", b"", 2048) + _END}),
        "hostile-label-too-large": tar(SAMPLE | {"a.cls": b"%d" % MAX_CLASSES}),
        "hostile-label-nested": tar({"a.jpg": b"x", "a.json": b'{"label":' + b"[" * 400}),
        "hostile-cut-in-the-contents": tar(SAMPLE)[: 3 * tarfile.BLOCKSIZE + 7],
        "hostile-broken-checksum": tar(SAMPLE)[:1100] + b"\xff" * 40 + tar(SAMPLE)[1140:],
    }


def parquet(labels: pa.Array | None = None, metadata: str | None = None, **options: object) -> bytes:
    images = [{"bytes": bytes([i]) * 30, "path": f"{i}.jpg"} for i in range(5)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([0, 1, 2, 1, 0]) if labels is None else labels
    table = pa.table({"image": pa.array(images, kind), "label": labels})
    metadata = (
        '{"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}' if metadata is None else metadata
    )
    buffer = io.BytesIO()
    settings = {"row_group_size": 3, "write_statistics": False} | options
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), buffer, **settings)
    return buffer.getvalue()


def parquets() -> dict[str, bytes]:
    plain = parquet(compression="none", use_dictionary=False)
    footer = int.from_bytes(plain[-8:-4], "little")
    return {
        "valid-plain": plain,
        "valid-snappy": parquet(compression="snappy"),
        "valid-zstd-pages-2": parquet(compression="zstd", data_page_version="2.0"),
        "valid-gzip-without-schema": parquet(compression="gzip", store_schema=False),
        "valid-text-labels": parquet(
            pa.array(["cup", "cat", "cat", "cup", "rocket"]), "", compression="none"
        ),
        "hostile-footer-longer-than-the-file": plain[:-8] + struct.pack("<I", 1 << 30) + b"PAR1",
        "hostile-footer-of-ones": plain[: -8 - footer] + b"\xff" * footer + plain[-8:],
        "hostile-label-of-2-to-the-62": parquet(pa.array([0, 1, 1 << 62, 1, 0])),
        "hostile-label-missing": parquet(pa.array([0, 1, None, 1, 0])),
        "valid-class-names-nested": parquet(metadata="[" * 1200, store_schema=False),
        "hostile-columns-overwritten": plain[:4] + b"\xff" * 200 + plain[204:],
    }


if __name__ == "__main__":
    CORPUS.mkdir(exist_ok=True)
    for suffix, files in ((".tar", tars()), (".parquet", parquets())):
        for name, data in files.items():
            (CORPUS / f"{name}{suffix}").write_bytes(data)
