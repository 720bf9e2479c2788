"""The images that all contenders read, in the formats that they need."""

import hashlib
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.format import DEFAULT_PAGE_SIZE, SAMPLE_DTYPE, Beton, align_up, first_page_offset, write_tables
from fastft.machine import bench_result

SAMPLE_VARIABLE = "FASTFT_IMAGENET_SAMPLE"
MAX_SIDE, QUALITY = 500, 90  # FFCV's recommendation for ImageNet
HOLE_BYTES = 1024  # size of an image in `write_long`; a page holds only whole images
HASHED_BYTES = 1 << 20  # at a time
FEW = 64  # below this number, encoding is faster than starting processes
PACKAGED = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
# RESIZED: longest side MAX_SIDE, quality QUALITY, 4:2:0. ORIGINAL: the files' unchanged coefficients
RESIZED, ORIGINAL = f"{MAX_SIDE} px files", "original files"


@dataclass(frozen=True)
class Images:
    """JPEG files in class folders. `what` describes them in the notes, and `folder` is where they were chosen from."""

    paths: list[Path]
    what: str
    folder: Path | None = None

    def described(self) -> bench_result.Images:
        mean = sum(path.stat().st_size for path in self.paths) / len(self.paths)
        lines = "".join(f"{sha256_of(path)}\n" for path in self.paths)  # as sha256sum prints them, without names
        return bench_result.Images(
            what=self.what, count=len(self.paths), mean_kb=round(mean / 1e3, 1),
            sha256=hashlib.sha256(lines.encode()).hexdigest(),
        )  # fmt: skip


class Workspace:
    """A temporary folder in which each format of the images is written on first use."""

    def __init__(self, folder: Path, images: Images) -> None:
        self.folder, self.images = folder, images
        self.sha256: dict[str, str] = {}  # of the written .beton files, by kind

    def beton(self, name: str) -> Path:
        """Return the images as a .beton. `name` is RESIZED or ORIGINAL."""
        path = self.folder / ("resized.beton" if name == RESIZED else "original.beton")
        if not path.exists():
            links = [(f"{image.parent.name}/{n:06}{image.suffix}", image) for n, image in enumerate(self.images.paths)]
            resized = {"max_resolution": MAX_SIDE, "quality": QUALITY, "subsampling": "4:2:0", "lossless": False}
            self._convert(self._linked("originals", links), path, **resized if name == RESIZED else {})
            self.sha256[name] = sha256_of(path)
        return path

    def raw(self) -> Path:
        """Return the uncompressed pixels of RESIZED as a .beton."""
        return self._convert(self.jpegs(RESIZED), self.folder / "raw.beton", write_mode="raw")

    def _linked(self, name: str, links: Iterable[tuple[str, Path]]) -> Path:
        """Return a folder with class folders, in which links have these names."""
        root = self.folder / name
        for link, image in () if root.exists() else links:
            (root / link).parent.mkdir(parents=True, exist_ok=True)
            (root / link).symlink_to(image.resolve())
        return root

    def _convert(self, folder: Path, path: Path, **options: Any) -> Path:
        """Convert the folder, if that was not done yet."""
        from beton_tools.write.convert import convert_folder  # here, as contenders' processes should not hold pyarrow
        from beton_tools.write.writer import WriteOptions

        if not path.exists():
            workers = 0 if len(self.images.paths) <= FEW else None
            convert_folder(folder, path, WriteOptions(workers=workers, **options))
        return path

    def shards(self, name: str, number: int) -> str:
        """Write the same JPEGs as WebDataset shards, and return the pattern for their names."""
        stem = self.beton(name).with_suffix("")
        files = sorted(self.jpegs(name).glob("*/*.jpg"))
        for shard in range(number):
            path = Path(f"{stem}-{number}-{shard:06}.tar")
            if not path.exists():
                with tarfile.open(path, "w") as tar:
                    for file in files[shard::number]:
                        tar.add(file, file.name)
        return f"{stem}-{number}-{{000000..{number - 1:06}}}.tar"

    def files(self, name: str, threads: int) -> dict[str, str]:
        """Return one set of images in every loader's format; see `contenders.task.Task`."""
        beton, folder = self.beton(name), self.jpegs(name)
        scratch = beton.with_suffix(".scratch")
        scratch.mkdir(exist_ok=True)
        shards = self.shards(name, threads)
        return {"beton": str(beton), "folder": str(folder), "shards": shards, "scratch": str(scratch)}

    def repeated(self, num_bytes: int, page_size: int) -> Path:
        """Repeat the images of RESIZED until the shuffled .beton has about `num_bytes`."""
        path = self.folder / "repeated.beton"
        if not path.exists():
            files = sorted(self.jpegs(RESIZED).glob("*/*"))
            times = max(1, round(num_bytes / sum(file.stat().st_size for file in files)))
            links = ((f"{file.parent.name}/{copy:03}-{file.name}", file) for file in files for copy in range(times))
            self._convert(self._linked("repeated", links), path, page_size=page_size, shuffle_seed=0)
        return path

    def long(self, samples: int, parts: int = 1) -> str:
        """Write sparse files with the tables for so many images and holes for their bytes; return a path or pattern."""
        folder = self.folder / f"long-{samples}"
        if not folder.exists():
            folder.mkdir()
            for part in range(parts):
                write_long(folder / f"{part:03}.beton", samples // parts, part)
        return str(folder / ("000.beton" if parts == 1 else "*.beton"))

    def jpegs(self, name: str) -> Path:
        """Return the JPEGs in that .beton, in class folders."""
        root = self.beton(name).with_suffix(".folder")
        if not root.exists():
            beton = Beton.open(self.beton(name))
            for i in range(beton.num_samples):
                target = root / f"{beton.labels[i]:04}" / f"{i:06}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(beton.read_bytes(i))
        return root


def find_images(folder: Path | None, scratch: Path, count: int) -> Images:
    """Take at most `count` evenly spread images from `folder`, the ImageNet sample, or packaged photographs."""
    root = folder or Path(os.environ.get(SAMPLE_VARIABLE, ""))
    if folder is None and not (os.environ.get(SAMPLE_VARIABLE) and root.is_dir()):
        return _packaged(scratch / "photographs", count)
    paths = sorted(p for p in root.glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"{root} holds no <class>/*.jpg. Give --images a folder with one folder per class")
    chosen = [paths[k] for k in evenly(len(paths), count)]
    return Images(chosen, f"{len(chosen)} images of {root.name}", root)


def _packaged(root: Path, count: int) -> Images:
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            f"no images to measure on. Give --images DIR, set {SAMPLE_VARIABLE}, or run: pip install scikit-image"
        ) from None
    from PIL import Image

    pictures = [np.asarray(getattr(data, name)())[..., :3] for name in PACKAGED]
    paths = []
    for number in range(count):
        path = root / PACKAGED[number % len(PACKAGED)] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pictures[number % len(PACKAGED)])
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        image.save(path, quality=95, subsampling="4:4:4")
        paths.append(path)
    what = f"{count} JPEGs of {len(PACKAGED)} photographs packaged with scikit-image, as no folder was given"
    return Images(paths, what)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_long(path: Path, samples: int, label: int = 0) -> None:
    """Write a .beton with tables like ImageNet's, whose pages are a hole that takes no space on the disk.

    label: of the first image. Files with other labels are no copies of each other, which a loader would refuse.
    """
    rows = np.zeros(samples, SAMPLE_DTYPE)
    first = first_page_offset(samples, DEFAULT_PAGE_SIZE)
    pointers = first + HOLE_BYTES * np.arange(samples, dtype=np.uint64)
    end = align_up(int(pointers[-1]) + HOLE_BYTES, DEFAULT_PAGE_SIZE)
    rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = MAX_SIDE, MAX_SIDE * 3 // 4, pointers
    rows["f1"] = np.arange(label, label + samples) % 1000
    sizes = np.full(samples, HOLE_BYTES)
    with path.open("wb") as file:
        write_tables(file, rows, sizes, page_size=DEFAULT_PAGE_SIZE, data_start=first, data_end=end)


def evenly(number: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices out of `number`, or all if there are fewer."""
    count = min(number, count)
    return [k * number // count for k in range(count)]
