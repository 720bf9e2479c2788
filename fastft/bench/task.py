"""What a contender is asked to do, and what it enters: read by the harness, and again in the contender's own process.

A contender is a file in `contenders/` with its `ENTRIES`, each built as the library's own documentation recommends.
fastft's own entries are in the file of the benchmark, and those of its loader in ours.py.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from fastft.bench import own


class Work:
    """The kinds of work that a contender may be asked to do."""

    RECIPE, CROP, EVALUATION = "recipe", "crop", "eval"  # loaders: the whole recipe, crop and flip, evaluation
    DECODE, MEMORY = "decode", "memory"  # from bytes in memory: a crop's pixels, the whole recipe
    CONVERT, STEP, TRAIN = "convert", "step", "train"


class Part:
    """The parts of the time that one image takes. Decoding by other libraries is divided into ENTROPY and PIXELS."""

    READ, ENTROPY, PIXELS, RESIZE = "read", "entropy decoding", "inverse DCT and colour", "resize"
    OPS, FINISH, HAND_OVER = "ops", "normalise and erase", "hand-over"
    DECODED = PIXELS


PARTS = (Part.READ, Part.ENTROPY, Part.PIXELS, Part.RESIZE, Part.OPS, Part.FINISH, Part.HAND_OVER)
WHOLE = ("decodes the whole image",)
AUGMENT, ERASE = "rand-m9-mstd0.5-inc1", 0.25  # the paper's
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # for random resized crops; every library's default
ATTEMPTS = 10  # to draw a crop that fits
BETON, FOLDER, SHARDS = "beton", "folder", "shards"  # what an entry reads

Pass = Callable[[], Iterator[int]]  # one pass over the images; yields the size of each batch
Stages = Sequence[tuple[str, Callable[[Any], Any]]]  # a transform in named parts, from a file's bytes to a tensor


@dataclass(frozen=True)
class Task:
    """Deliver these images `repeat` times per pass, as normalised float32 in channels-last memory.

    work: Work.RECIPE is random resized crop (bicubic), flip, RandAugment, normalise, random erasing. Work.CROP is random resized
    crop and flip alone. Work.EVALUATION is resize and centre crop.
    files: "beton", and the same JPEGs as "folder" (class folders), "shards" (a WebDataset pattern) and "scratch" (a
    folder for a loader's own format).
    """

    work: str
    files: Mapping[str, str]
    size: int
    batch: int
    threads: int
    repeat: int = 1
    device: str = "cpu"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def paths(self) -> list[Path]:
        """The JPEGs in class folders, once each."""
        return sorted(Path(self.files["folder"]).glob("*/*"))


@dataclass(frozen=True)
class Entry:
    """A row in the tables. work: what it can do -> differences from what fastft delivers.

    make(task, **options) returns the pass for a loader, and whatever the work's measure runs otherwise. reads: BETON,
    FOLDER or SHARDS. gpu: it augments on the GPU. prepare(task): writes the loader's own format before its start is
    timed. stages(size): its transform in the parts of the recipe, which does Work.MEMORY too. limit: not a library, but
    what a codec allows.
    """

    name: str
    package: str
    make: Callable[..., Any]
    work: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    reads: str = FOLDER
    gpu: bool = False
    prepare: Callable[[Task], object] | None = None
    stages: Callable[[int], Stages] | None = None
    limit: bool = False


def peer_module(name: str) -> str:
    return f"fastft.bench.contenders.{name}"


def entries(module: str) -> Sequence[Entry]:
    """Return the entries in a module. For FILE.py:FUNCTION it is the user's own loader."""
    if ":" in module:
        return [Entry(module, "", own.make, dict.fromkeys(own.works(module), (own.DIFFERENCE,)), {"where": module})]
    found: Sequence[Entry] = import_module(module).ENTRIES
    return found


def random_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Draw a random resized crop as torchvision does. Returns y, x, h, w."""
    for _ in range(ATTEMPTS):
        area = height * width * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def decoding(decoder: Callable[[], Callable[[bytes], Any]]) -> Callable[[Task], Pass]:
    """Return `make` for Work.DECODE: whole images, one after another, from memory."""

    def make(task: Task) -> Pass:
        files, decode = [path.read_bytes() for path in task.paths], decoder()
        return lambda: (1 for file in files if decode(file) is not None)

    return make


def chain(functions: Iterable[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    ordered = list(functions)
    return lambda value: reduce(lambda result, function: function(result), ordered, value)


def staged(decode: Callable[[bytes], Any], transforms: Iterable[Callable[[Any], Any]]) -> Stages:
    """Return the parts of a decoder and of a list of transforms: crop, flip, ops, and then those that finish the image."""
    crop, flip, ops, *finish = transforms
    return (Part.DECODED, decode), (Part.RESIZE, chain([crop, flip])), (Part.OPS, ops), (Part.FINISH, chain(finish))


def in_memory(task: Task, stages: Callable[[int], Stages]) -> Pass:
    """Return the pass for Work.MEMORY: each image's bytes through all stages, one image after another."""
    import torch

    torch.set_num_threads(1)
    apply = chain(stage for _, stage in stages(task.size))
    files = [path.read_bytes() for path in task.paths]
    return lambda: (1 for file in files if apply(file) is not None)


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()
