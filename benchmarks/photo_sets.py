"""Build the small image sets that photo_runs.py trains on, from public sources, the same on every machine.

python benchmarks/photo_sets.py SETS --cache CACHE [--cifar10 FOLDER] [name ...]

Each set becomes SETS/NAME/{train,test}/CLASS/*.jpg: RGB, transparency on white, at most 224 pixels on the short side, so
that all methods read the same pixels and none spends its time on decoding. Wheels, Debian packages and clones are kept in
CACHE (a clone as CACHE/NAME.git). CIFAR-10 is read from train.parquet and test.parquet in FOLDER, with Hugging Face's
columns, and is left out without it.

The images of one group (a house, a part) are on one side. Images with equal bytes are used once. A set that came with a
split keeps it. Sets with `judge` had no part in any choice of a value: they were marked before the first run.
"""

import argparse
import hashlib
import random
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from fastft.jobs.demo_files import IMAGES, extract_cells, fetch

SIDE, QUALITY, SEED = 224, 95, 0
SPLITS = "train", "test"


@dataclass(frozen=True)
class Photo:
    """content: equal for equal bytes. group: photos of one group are on one side. split: the source's side, or None."""

    label: str
    read: Callable[[], bytes]
    content: object
    group: str
    split: str | None = None


@dataclass(frozen=True)
class PhotoSet:
    """per_class: at most this many (training, test) images of a class. fewest: classes with fewer images are left out."""

    title: str
    source: str
    licence: str
    per_class: tuple[int, int]
    read: Callable[[Path], Iterable[Photo]]
    judge: bool = False
    fewest: int = 20


# sources ------------------------------------------------------------------------------------------------------------------


def debian(package: str, below: str, skip: str, limit: int = 10**6) -> Callable[[Path], Iterable[Photo]]:
    """Read the PNG files of a Debian package. The class is the folder below `below`."""

    def read(cache: Path) -> Iterable[Photo]:
        root = cache / package
        if not root.exists():
            subprocess.run(["apt-get", "download", package], cwd=cache, check=True, capture_output=True)
            (file,) = cache.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", file, root], check=True)
        for path in sorted((root / below).rglob("*.png")):
            name = path.relative_to(root / below)
            if len(name.parts) > 1 and not re.search(skip, str(name)) and path.stat().st_size < limit:
                yield _of_file(name.parts[0], path, str(name))

    return read


def github(
    repository: str, commit: str, pattern: str, group: str = "", splits: dict[str, str] | None = None
) -> Callable[[Path], Iterable[Photo]]:
    """Read the files at a commit whose whole path matches `pattern`.

    pattern: its groups are `label`, and perhaps `split`, which `splits` maps to train or test. group: a pattern whose first
    group identifies the photos that belong together; by default every photo is on its own.
    """

    def read(cache: Path) -> Iterable[Photo]:
        git = ["git", f"--git-dir={cache / Path(repository).name}.git"]
        if not (cache / f"{Path(repository).name}.git").exists():
            subprocess.run([*git, "init", "--bare", "--quiet"], check=True)
            address = f"https://github.com/{repository}"
            subprocess.run([*git, "fetch", "--quiet", "--depth=1", address, commit], check=True)
        listed = _output([*git, "ls-tree", "-rz", commit])
        for entry in sorted(listed.decode().split("\0")[:-1], key=lambda e: e.partition("\t")[2]):
            head, _, path = entry.partition("\t")
            if (match := re.fullmatch(pattern, path)) is None:
                continue
            blob = head.split()[2]
            show = partial(_output, [*git, "cat-file", "blob", blob])
            key = re.search(group, path)[1] if group else path  # type: ignore[index]
            named = match.groupdict()
            yield Photo(named["label"].strip(), show, blob, key, (splits or {}).get(named.get("split", "")))

    return read


def of_github(
    title: str, repository: str, commit: str, pattern: str, licence: str, per_class: tuple[int, int], *, group: str = "",
    splits: dict[str, str] | None = None, origin: str = "", judge: bool = False, fewest: int = 20,
) -> PhotoSet:  # fmt: skip
    """Describe a set in a repository. origin: where its images are from. The others are arguments of `github` and `PhotoSet`."""
    source = f"GitHub {repository}" + (f" ({origin})" if origin else "")
    return PhotoSet(
        title, source, licence, per_class, github(repository, commit, pattern, group, splits), judge, fewest
    )


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


def solar_cells(cache: Path) -> Iterable[Photo]:
    folder = cache / "cells"
    if not folder.exists():
        extract_cells(fetch(IMAGES, cache), folder, {"all": 200})
    for path in sorted(folder.rglob("*.png")):
        yield _of_file(path.parent.name, path, path.name)


def _of_file(label: str, path: Path, group: str) -> Photo:
    return Photo(label, path.read_bytes, hashlib.sha256(path.read_bytes()).digest(), group)


def cifar10(cache: Path) -> Iterable[Photo]:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for split in SPLITS:
        for row in pq.read_table(cache / f"{split}.parquet").to_pylist():
            data = row["image"]["bytes"]
            yield Photo(names[row["label"]], partial(bytes, data), data, str(row["image"]["path"]), split)


CLIP_ART = (
    "^(computer|shapes|signs_and_symbols|special|unsorted|logos|buttons|containers|decorations|geography|science)/"
)
SETS = {
    # values may be chosen on these
    "stamps": PhotoSet(
        "stamps", "Debian tuxpaint-stamps-default", "GPL-2", (45, 35),
        debian("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", "cartoon|mirror|flip|^symbols"), fewest=10,
    ),
    "clipart": PhotoSet(
        "Open Clip Art", "Debian openclipart-png", "public domain", (36, 40),
        debian("openclipart-png", "usr/share/openclipart/png", CLIP_ART, 500_000), fewest=50,
    ),
    "cifar": PhotoSet("CIFAR-10", "CIFAR-10, parquet", "research use", (30, 40), cifar10),
    "cells": PhotoSet("solar cells", "PyPI elpv-dataset", "CC BY-NC-SA 4.0", (60, 100), solar_cells),
    "hands": of_github(
        "hand signs", "ardamavi/Sign-Language-Digits-Dataset", "4b09433ef9d5c60602e8805bb54b8aa2428527f8",
        r"Dataset/(?P<label>\d)/.*\.JPG", "CC BY-SA 4.0", (25, 40),
    ),
    "groceries": of_github(
        "groceries by phone", "marcusklasson/GroceryStoreDataset", "fc80ba90f803d79d0383df52c5a4ac5de99ff6fc",
        r"dataset/(?P<split>train|test)/(?:Fruit|Packages)/(?P<label>[^/]+)/.*\.jpg", "MIT", (20, 25),
        splits={"train": "train", "test": "test"}, fewest=55,
    ),
    # it judged until it showed that images were squeezed in training and not in evaluation
    "tiles": of_github(
        "magnetic tiles", "abin24/Magnetic-tile-defect-datasets.", "cc4eb530b57b9cb7225bf76023873043ffd50655",
        r"MT_(?P<label>[A-Za-z]+)/Imgs/.*\.jpg", "research use", (50, 55),
    ),
    # judge only
    "clothes": of_github(
        "clothes", "alexeygrigorev/clothing-dataset-small", "11961516512414bf9f6c150a832cfd21b54a6b54",
        r"(?P<split>train|validation|test)/(?P<label>[^/]+)/.*\.jpg", "CC0", (32, 45),
        splits={"train": "train", "validation": "test", "test": "test"}, judge=True,
    ),
    "rooms": of_github(
        "rooms of houses", "emanhamed/Houses-dataset", "5e148219500558089cf5cf121b626b17fdde9b92",
        r"Houses Dataset/\d+_(?P<label>[a-z]+)\.jpg", "research use", (75, 100), group=r"/(\d+)_", judge=True,
    ),
    "flowers": of_github(
        "flowers", "martinwestin/flower_classification", "c169e7e4038bc0e0e2fe80090b6dc8919539816f",
        r"flowers/(?P<label>[^/]+)/.*\.jpg", "CC BY", (60, 80), origin="Flickr", judge=True,
    ),
    "waste": of_github(
        "waste", "congduytran12/Trash-Classification-", "00212f2c18dcdb9045c74481eaae5baaf72537df",
        r"dataset-resized/(?P<label>[^/]+)/.*\.jpg", "MIT", (55, 65), origin="TrashNet", judge=True,
    ),
    "pets": of_github(
        "cats and dogs", "ardamavi/Dog-Cat-Classifier", "9e4f1e1b8eb00fb52c7b1f7e271e573cbe5a2d2f",
        r"Data/Train_Data/(?P<label>[^/]+)/.*\.jpg", "Apache 2.0", (150, 200), judge=True,
    ),
    "textures": of_github(
        "textures", "pan8915/DeepTexture", "522f46f683af11e93673bff29f81df14f49edfb2",
        r"images/(?P<label>[^/]+)/.*\.jpg", "research use", (30, 40), origin="DTD", judge=True,
    ),
    "insects": of_github(
        "ants and bees", "zhangtao7750/syn", "f0503091488f67b6809a6da2eaa43c25f2f277fc",
        r"hymenoptera_data/(?P<split>train|val)/(?P<label>[^/]+)/.*\.jpg", "research use", (123, 83),
        splits={"train": "train", "val": "test"}, origin="PyTorch's tutorial", judge=True,
    ),
    "steel": of_github(
        "steel strip", "siddhartamukherjee/NEU-DET-Steel-Surface-Defect-Detection", "351bee21b56bbf97a1e1d18262bceb202eb7ef41",
        r"IMAGES/(?P<label>[a-z_-]+)_\d+\.jpg", "research use", (50, 60), judge=True,
    ),
    # without the photos of 4 MiB and more
    "weather": of_github(
        "weather", "haileyesus34/image-classification-using-RandomForest", "41f3be001b78af6b1d17d317c8eedb6820a63b31",
        r"data/(?:train|val)/(?P<label>[^/]+)/(?!rain137|sunrise(?:7|16|23)\.).*\.jpe?g", "CC BY 4.0", (75, 100), judge=True,
    ),
    "paintings": of_github(
        "paintings", "MachineLearning2020/Homework3-PACS", "d586a6cf3db84896fb6cc465c7bf51bdaf6d65d8",
        r"PACS/art_painting/(?P<label>[^/]+)/.*\.jpg", "research use", (43, 57), origin="PACS", judge=True,
    ),
    "xrays": of_github(
        "X-rays of lungs", "szallik/Neural_networks_binary_classification", "13b5ee8c7a77d1244a1d4e00c8d0a9f8819423db",
        r"data/(?:train|val|test)/(?P<label>NORMAL|PNEUMONIA)/.*\.jpeg", "CC BY 4.0", (150, 200),
        group=r"/(?:NORMAL2-)?(person\d+|IM-\d+)[_-]", judge=True,
    ),
    # judge only, and added after `CAUTION` had been chosen, to decide between two values of it
    "monkeys": of_github(
        "monkeys", "nikhildutta333/Monkey-Species-Classification", "cb62130b182246b59ed74614734320e61eb6aacc",
        r"(?P<split>training|validation)/(?P<label>n\d)/.*\.jpg", "research use", (30, 25),
        splits={"training": "train", "validation": "test"}, origin="10 Monkey Species", judge=True,
    ),
    # its folders have names of brain tumours and hold pizza, popcorn, doughnuts and fried balls
    "snacks": of_github(
        "snacks", "Shyam-daniel/testing12", "4926a00e69bd7bd9828b4df02b3efa8d7b40f2c3",
        r"(?:Training|Testing)/(?P<label>\w+)/.*\.jpg", "research use", (65, 50), judge=True,
    ),
    "rice": of_github(
        "diseases of rice", "aldrin233/RiceDiseases-DataSet", "80f0ef4121826aa91ef3a8e0dd1cca937d363b44",
        r"(?P<label>[^/]+)/[oO]rig/.*\.(?:jpg|JPG|jpeg|png)", "research use", (50, 40), judge=True,
    ),
    "fire": of_github(
        "fire", "mrlinux1/SmokeSensor", "8a229532a3430419f92f260966c9bac642a14de1",
        r"dataset/(?:train|validation)/(?P<label>\w+)/.*\.png", "research use", (140, 100), judge=True,
    ),
    "vegetables": of_github(
        "vegetables", "mrlinux1/SmokeSensor", "8a229532a3430419f92f260966c9bac642a14de1",
        r"clean-dataset/(?:train|validation)/(?P<label>\w+)/.*\.jpg", "research use", (100, 100), judge=True,
    ),
    "seedlings": of_github(
        "seedlings", "sergeyvilov/plant_seedings", "fcbfafe3630f7e604ffd45fab3e5dfc3c4e2b8b2",
        r"train/(?P<label>[^/]+)/.*\.png", "CC BY-SA 4.0", (25, 30), origin="Aarhus University", judge=True,
    ),
    "scenes": of_github(
        "scenes", "jaaumeadrover/Landscape-Image-Classification", "7985b6b6e532f94f96da7dee74eb9a0ae7972083",
        r"data/train/(?P<label>[^/]+)/.*\.jpg", "research use", (20, 25), origin="15 Scenes", judge=True,
    ),
    # without the copies of "disgust" that its owner drew
    "faces": of_github(
        "expressions of faces", "RecepTahirGunlu/Duygu-Tanima", "8d429277ec5ff4aa605657546f26dd8139204fa0",
        r"(?P<split>train|test)/(?P<label>\w+)/\w+_\d+\.jpg", "research use", (45, 50),
        splits={"train": "train", "test": "test"}, origin="FER2013", judge=True,
    ),
    # without augmented copies; a mask was drawn on each face, so both images of a face are on one side
    "masks": of_github(
        "masks", "prajnasb/observations", "cdcf4501bf7fdec7ac8a4ee245e343b187fa53c7",
        r"experiements/data/(?P<label>\w+)/\d+(?:-with-mask)?\.jpg", "research use", (140, 200),
        group=r"/(\d+)", judge=True,
    ),
    "aerial": of_github(
        "aerial photographs", "alexcg1/scenex-geospacial", "ff6f91dc5c8fcbbdb2837e98eac2bd832be2c390",
        r"data/nwpu/(?P<label>\w+)/.*\.jpg", "research use", (6, 4), origin="NWPU-RESISC45", judge=True, fewest=10,
    ),
}  # fmt: skip


# the folders ----------------------------------------------------------------------------------------------------------------


def build(name: str, folder: Path, cache: Path) -> dict[str, int]:
    """Write a set's folder. Returns the number of images by split."""
    made, counts = SETS[name], dict.fromkeys(SPLITS, 0)
    by_class: dict[str, list[Photo]] = defaultdict(list)
    seen: set[object] = set()
    for photo in made.read(cache):
        if photo.content not in seen:
            seen.add(photo.content)
            by_class[photo.label].append(photo)
    for label, photos in sorted(by_class.items()):
        if len(photos) < made.fewest:
            continue
        random.Random(f"{SEED}/{name}/{label}").shuffle(photos)
        for split, most in zip(SPLITS, made.per_class, strict=True):
            mine = [photo for photo in photos if (photo.split or _side(photo.group, made.per_class)) == split][:most]
            for number, photo in enumerate(mine):
                _write(photo.read(), folder / split / label / f"{number:03}.jpg")
            counts[split] += len(mine)
    return counts


def _side(group: str, per_class: tuple[int, int]) -> str:
    """Return the side of all photos of a group, drawn with the shares of `per_class`."""
    drawn = int.from_bytes(hashlib.sha256(f"{SEED}/{group}".encode()).digest()[:4], "big")
    return SPLITS[drawn >= 2**32 * per_class[0] / sum(per_class)]


def _write(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = Image.open(BytesIO(data))
    if opened.mode in ("RGBA", "LA", "P", "PA") or "transparency" in opened.info:
        shown = opened.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    else:
        image = opened.convert("RGB")
    if (ratio := min(image.size) / SIDE) > 1:
        width, height = (max(1, round(length / ratio)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    image.save(path, quality=QUALITY, subsampling=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path)
    options = parser.parse_intermixed_args()
    if unknown := [name for name in options.names if name not in SETS]:
        parser.error(f"{', '.join(unknown)}: no such set. Choose from {', '.join(SETS)}")
    options.cache.mkdir(parents=True, exist_ok=True)
    for name in options.names or SETS:
        out, partial = options.folder / name, options.folder / f"{name}.partial"
        if name == "cifar" and options.cifar10 is None:
            print("cifar: left out; it needs --cifar10=FOLDER")
        elif not out.exists():
            shutil.rmtree(partial, ignore_errors=True)
            counts = build(name, partial, options.cifar10 if name == "cifar" else options.cache)
            partial.rename(out)
            print(f"{name}: {counts}, {len(list((out / 'train').iterdir()))} classes", flush=True)


if __name__ == "__main__":
    main()
