"""The task of a loader, and how its result is presented."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

RECIPE, CROP, EVALUATION = "recipe", "crop", "eval"
AUGMENT, ERASE = "rand-m9-mstd0.5-inc1", 0.25  # the paper's
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # for random resized crops; every library's default

Pass = Callable[[], Iterator[int]]  # one pass over the images; yields the size of each batch


@dataclass(frozen=True)
class Task:
    """Deliver these images `repeat` times per pass, as normalised float32 in channels-last memory.

    work: RECIPE is random resized crop (bicubic), flip, RandAugment, normalise, random erasing. CROP is random resized
    crop and flip alone. EVALUATION is resize and centre crop.
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


@dataclass(frozen=True)
class Loader:
    """A row in the tables. work: what it can do -> differences from what fastft delivers.

    make(task, **options) returns the pass. gpu: it augments on the GPU. prepare(task): writes the loader's own format
    before its start is timed.
    """

    name: str
    package: str
    make: Callable[..., Pass]
    work: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    gpu: bool = False
    prepare: Callable[[Task], object] | None = None
