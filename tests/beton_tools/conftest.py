"""Real photographs from scikit-image and scikit-learn, as folders, tars and parquet files."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import skimage
import sklearn.datasets
from PIL import Image

from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"


def photograph(name: str) -> Image.Image:
    """A packaged photograph, e.g. "chelsea.png", "china.jpg", "retina.jpg"."""
    folder = _SKLEARN if name in ("china.jpg", "flower.jpg") else _SKIMAGE
    return Image.open(folder / name)


def jpeg_of(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def damaged(jpeg: bytes) -> bytes:
    """The JPEG without a part of its scan, which Pillow fills in without a warning."""
    return jpeg[: len(jpeg) // 2] + jpeg[len(jpeg) * 3 // 4 :]


def crops(name: str, count: int, seed: int = 0) -> list[Image.Image]:
    """`count` random crops of a photograph, 40 to 160 pixels a side."""
    image, rng = photograph(name).convert("RGB"), np.random.default_rng(seed)
    boxes = []
    for _ in range(count):
        width, height = rng.integers(40, 160, 2)
        x, y = rng.integers(0, image.width - width), rng.integers(0, image.height - height)
        boxes.append((x, y, x + width, y + height))
    return [image.crop(box) for box in boxes]


# class -> photograph
WNIDS = {"n01440764": "coffee.png", "n02123045": "chelsea.png", "n04008634": "rocket.jpg"}


@pytest.fixture(scope="session")
def photo_jpegs() -> dict[str, list[bytes]]:
    """wnid -> eight small JPEGs cut from one photograph: 4:2:0, 4:4:4 and 4:2:2 in turn."""
    return {
        wnid: [jpeg_of(crop, subsampling=(2, 0, 1)[i % 3]) for i, crop in enumerate(crops(name, 8))]
        for wnid, name in WNIDS.items()
    }


@pytest.fixture
def photo_folder(tmp_path: Path, photo_jpegs: dict[str, list[bytes]]) -> Path:
    """<wnid>/<wnid>_<i>.JPEG"""
    root = tmp_path / "photos"
    write_folder(root, photo_jpegs)
    return root


@pytest.fixture
def photo_beton(photo_folder: Path) -> Path:
    """`photo_folder` converted, with such small pages that there are several."""
    path = photo_folder.with_suffix(".beton")
    write_beton(path, open_source(photo_folder), WriteOptions(workers=0, page_size=1 << 16))
    return path


def write_folder(root: Path, jpegs: dict[str, list[bytes]]) -> None:
    for wnid, images in jpegs.items():
        (root / wnid).mkdir(parents=True)
        for i, data in enumerate(images):
            (root / wnid / f"{wnid}_{i}.JPEG").write_bytes(data)


def tar_of(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar with these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


Pairs = list[tuple[bytes, int]]


def labelled(jpegs: dict[str, list[bytes]]) -> Pairs:
    """Images with labels; the classes alternate."""
    return [pair for row in zip(*jpegs.values(), strict=True) for pair in zip(row, range(len(row)), strict=True)]


def shard_of(pairs: Pairs, labels_first: bool = False) -> bytes:
    """A shard of WebDataset."""
    files = {}
    for i, (image, label) in enumerate(pairs):
        parts = {f"{i:06}.jpg": image, f"{i:06}.cls": b"%d" % label}
        files |= dict(reversed(parts.items())) if labels_first else parts
    return tar_of(files)


def train_tar(jpegs: dict[str, list[bytes]]) -> bytes:
    """A tar of tars as ILSVRC2012_img_train.tar, members in no particular order."""
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{i}.JPEG": images[i] for i in reversed(range(len(images)))})
        for wnid, images in reversed(jpegs.items())
    }
    return tar_of(inner)


def devkit_files(wnid_of_image: list[str]) -> dict[str, bytes]:
    """The two files of the devkit that are read. ILSVRC ids are in another order than wnids, as in the real one."""
    wnids = sorted(set(wnid_of_image), reverse=True)
    ids = {wnid: i + 1 for i, wnid in enumerate(wnids)}
    synsets = np.zeros(len(wnids) + 1, [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, wnid in zip(synsets, wnids, strict=False):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(ids[wnid]), wnid, f"a photograph, {wnid}"
    synsets[-1]["ILSVRC2012_ID"], synsets[-1]["WNID"], synsets[-1]["words"] = 1001.0, "n00001740", "entity"
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{ids[wnid]}\n" for wnid in wnid_of_image)
    return {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}


@pytest.fixture(scope="session")
def val_images(photo_jpegs: dict[str, list[bytes]]) -> dict[str, tuple[str, bytes]]:
    """File name -> (wnid, JPEG), classes in turn as in ImageNet's flat validation set."""
    pairs = [(wnid, images[i]) for i in range(3) for wnid, images in photo_jpegs.items()]
    return {f"ILSVRC2012_val_{i + 1:08d}.JPEG": pair for i, pair in enumerate(pairs)}
