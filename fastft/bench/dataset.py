"""The images that all contenders read, in the formats that they need."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beton_tools.base.errors import UserError
from beton_tools.read.format import (
    DEFAULT_PAGE_SIZE,
    RAW_MODE,
    SAMPLE_DTYPE,
    Beton,
    align_up,
    first_page_offset,
    write_tables,
)
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE

if TYPE_CHECKING:
    from beton_tools.sources import Source

IMAGENET_LENGTH = IMAGENET_TRAIN_SIZE
SAMPLE_VARIABLE = "FASTFT_IMAGENET_SAMPLE"
MAX_SIDE, QUALITY = 500, 90  # FFCV's recommendation for ImageNet
FEW = 64  # below this number, encoding is faster than starting processes
PACKAGED = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
RESIZED, ORIGINAL = f"longest side {MAX_SIDE}, q{QUALITY}, 4:2:0", "as they are, lossless"


@dataclass(frozen=True)
class Images:
    """JPEG files in class folders; `what` describes them in the notes, `folder` is the folder they were chosen from."""

    paths: list[Path]
    what: str
    folder: Path | None = None


class Workspace:
    """A temporary folder; each format of the images is written on first use."""

    def __init__(self, folder: Path, images: Images, given: Path | None = None) -> None:
        self.folder, self.images, self.given = folder, images, given

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the file sets that are compared. The JPEGs of a given .beton are converted again, losslessly."""
        return (ORIGINAL,) if self.given else (RESIZED, ORIGINAL)

    def source(self) -> "Source":
        """These images, as class folders of links."""
        from beton_tools.sources import open_source  # here: a contender's process should not hold pyarrow

        root = self.folder / "originals"
        if not root.exists():
            for number, path in enumerate(self.images.paths):
                link = root / path.parent.name / f"{number:06}{path.suffix}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        return open_source(root)

    def beton(self, name: str) -> Path:
        """The images as a .beton; `name` is one of `sets`."""
        from beton_tools.write.writer import WriteOptions, write_beton

        path = self.folder / ("resized.beton" if name == RESIZED else "original.beton")
        if not path.exists():
            given: dict[str, Any] = {}
            if name == RESIZED:
                given = {
                    "max_resolution": MAX_SIDE,
                    "quality": QUALITY,
                    "subsampling": "4:2:0",
                    "lossless": False,
                }
            workers = 0 if len(self.images.paths) <= FEW else None
            write_beton(path, self.source(), WriteOptions(workers=workers, **given))
        return path

    def jpegs(self, name: str) -> Path:
        """The JPEGs of that .beton, in class folders."""
        root = self.beton(name).with_suffix(".folder")
        if not root.exists():
            extract(Beton.open(self.beton(name)), root)
        return root

    def shards(self, name: str, number: int) -> str:
        """The same JPEGs as WebDataset shards; returns the pattern of their names."""
        import tarfile

        stem = self.beton(name).with_suffix("")
        files = sorted(self.jpegs(name).glob("*/*.jpg"))
        for shard in range(number):
            path = Path(f"{stem}-{shard:06}.tar")
            if not path.exists():
                with tarfile.open(path, "w") as tar:
                    for file in files[shard::number]:
                        tar.add(file, file.name)
        return f"{stem}-{{000000..{number - 1:06}}}.tar"

    def long(self) -> Path:
        """A sparse .beton with the tables of 1,281,167 images and holes for their bytes."""
        path = self.folder / "long.beton"
        if not path.exists():
            write_imagenet_length(path)
        return path


def find_images(folder: Path | None, beton: Path | None, scratch: Path, count: int) -> Images:
    """At most `count` images, evenly spread, from `beton`, from `folder`, from the ImageNet sample, or packaged photographs.

    Raises:
        UserError: nothing there, or nothing installed.
    """
    if beton is not None:
        opened = Beton.open(beton)
        if (opened.modes == RAW_MODE).any():
            raise UserError(f"{beton} holds raw pixels, which no peer reads; give a file with JPEGs")
        extract(opened, scratch / "given", count)
        paths = sorted((scratch / "given").glob("*/*"))
        return Images(paths, f"{len(paths)} images of {beton.name}")
    root = folder or Path(os.environ.get(SAMPLE_VARIABLE, ""))
    if folder is None and not (os.environ.get(SAMPLE_VARIABLE) and root.is_dir()):
        return _packaged(scratch / "photographs", count)
    paths = sorted(p for p in root.glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"{root} holds no <class>/*.jpg; give --images a folder with one folder per class")
    chosen = [paths[k] for k in evenly(len(paths), count)]
    return Images(chosen, f"{len(chosen)} images of {root.name}", root)


def _packaged(root: Path, count: int) -> Images:
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            f"no images to measure on; give --images DIR, set {SAMPLE_VARIABLE}, or: pip install scikit-image"
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


def evenly(number: int, count: int) -> list[int]:
    """`count` evenly spaced indices of `number`; all if there are fewer."""
    count = min(number, count)
    return [k * number // count for k in range(count)]


def extract(beton: Beton, root: Path, count: int | None = None) -> None:
    """Write `count` JPEGs of a .beton, evenly spread, into class folders."""
    for i in evenly(beton.num_samples, beton.num_samples if count is None else count):
        target = root / f"{beton.labels[i]:04}" / f"{i:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(beton.read_bytes(i))


def write_imagenet_length(path: Path, num_bytes: int = 1024) -> None:
    rows = np.zeros(IMAGENET_LENGTH, SAMPLE_DTYPE)
    first = first_page_offset(IMAGENET_LENGTH, DEFAULT_PAGE_SIZE)
    pointers = first + num_bytes * np.arange(IMAGENET_LENGTH, dtype=np.uint64)
    end = align_up(int(pointers[-1]) + num_bytes, DEFAULT_PAGE_SIZE)
    rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = MAX_SIDE, MAX_SIDE * 3 // 4, pointers
    rows["f1"] = np.arange(IMAGENET_LENGTH) % 1000
    sizes = np.full(IMAGENET_LENGTH, num_bytes)
    with path.open("wb") as file:
        write_tables(file, rows, sizes, page_size=DEFAULT_PAGE_SIZE, data_start=first, data_end=end)


# in a contender's process --------------------------------------------------------------------------------------------


class JpegSet:
    """The JPEGs of a .beton in memory, and its metadata; data_ptr is the image's index."""

    def __init__(self, path: Path) -> None:
        beton = Beton.open(path)
        self.path = path
        self.data = np.concatenate([beton.image_bytes(k) for k in range(beton.num_samples)])
        self.ends = np.concatenate([[0], np.cumsum(beton.sizes)]).astype(np.int64)
        self.metadata = beton.image_column.copy()
        self.metadata["data_ptr"] = np.arange(beton.num_samples)

    def __len__(self) -> int:
        return len(self.metadata)

    @property
    def shapes(self) -> tuple[np.ndarray, np.ndarray]:
        """Heights and widths (N, 2), int64."""
        return self.metadata["height"].astype(np.int64), self.metadata["width"].astype(np.int64)


def forget_pages(paths: list[Path]) -> None:
    """Drop files from the page cache; this process's memory maps, which would keep them there, are dropped first."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    names = {str(path.resolve()) for path in paths}
    for begin, end in _mapped(names):
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


MADV_DONTNEED = 4  # linux/mman.h


def _mapped(names: set[str]) -> Iterator[tuple[int, int]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        columns = line.split(maxsplit=5)
        if len(columns) == 6 and columns[5] in names:
            begin, end = columns[0].split("-")
            yield int(begin, 16), int(end, 16)


def disk_bytes(pids: Callable[[], list[int]]) -> int:
    """Bytes that this process and `pids` have read from the disk."""
    total = 0
    for pid in ["self", *map(str, pids())]:
        try:
            text = Path(f"/proc/{pid}/io").read_text()
        except OSError:
            continue
        total += int(text.partition("\nread_bytes: ")[2].split()[0])
    return total
