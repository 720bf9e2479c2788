"""Conversion speed compared with FFCV's own writer, which decodes and re-encodes every image."""

import os
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastft.bench.child import Arm
from fastft.bench.dataset import MAX_SIDE, ORIGINAL, QUALITY
from fastft.bench.harness import (
    Contender,
    Figure,
    Findings,
    Options,
    Planned,
    alternate,
    case,
    per_cpu_second,
    per_second,
)  # fmt: skip
from fastft.machine.bench_result import Measure

SIDES: dict[str, int | None] = {"kept": None, f"at most {MAX_SIDE} px": MAX_SIDE}
REPEAT = 2  # passes over the images, so that a round is long compared with its start


def speed(options: Options) -> Findings:
    """Measure wall time on all cores, and CPU time including all worker processes, in the same rounds."""
    options.workspace.beton(ORIGINAL)  # writes the class folders
    arguments: dict[str, Any] = {
        "root": str(options.workspace.folder / "originals"), "out": str(options.workspace.folder / "converted"),
        "workers": options.threads, "repeat": 1 if options.quick else REPEAT,
    }  # fmt: skip
    modes = {"fastft": (True, ()), "fastft, re-encoding": (False, ("decodes and encodes every image",))}
    encodes = ("decodes and encodes every image", "writes no crop index")
    contenders = options.wanted({
        "fastft": [Contender(n, ours, {**arguments, "lossless": keep}, d, "fastft") for n, (keep, d) in modes.items()],
        "ffcv": [Contender("FFCV DatasetWriter", ffcv, arguments, encodes, "ffcv")],
    })  # fmt: skip
    rounds = alternate(contenders, options.rounds, threads=options.threads)
    figures: dict[str, tuple[str, Figure]] = {
        "convert.speed": ("images/s", per_second), "convert.core": ("images per CPU second", per_cpu_second)
    }  # fmt: skip
    for key, (unit, figure) in figures.items():
        yield Measure(
            key=key, bench="convert", title="Conversion", unit=unit,
            about="Original JPEGs in class folders to a .beton, by image size.",
            cases=[case(rounds, size, figure, {"size": size}) for size in SIDES],
            setting={
                "images": options.images * arguments["repeat"], "workers": options.threads, "rounds": options.rounds
            },
        )  # fmt: skip


MEASURES = (Planned("convert.speed", speed, 200),)

# in the contender's process ------------------------------------------------------------------------------------------


def ours(root: str, out: str, workers: int, repeat: int, lossless: bool) -> dict[str, Arm]:
    import numpy as np

    from beton_tools.base.names import Names
    from beton_tools.sources import open_source
    from beton_tools.write.writer import WriteOptions, write_beton

    one = open_source(root)
    source = replace(one, names=Names.of(list(one.names) * repeat), labels=np.tile(one.labels, repeat))

    def arm(side: int | None) -> Arm:
        settings = WriteOptions(max_resolution=side, workers=workers, lossless=lossless)

        def run() -> int:
            path = Path(f"{out}-{os.getpid()}.beton")
            write_beton(path, source, settings)
            for left in path.parent.glob(f"{path.name}*"):
                left.unlink()
            return len(source.labels)

        return run

    return {name: arm(side) for name, side in SIDES.items()}


class Folder:
    """An indexable data set of (Pillow image, label), which FFCV's documentation passes to its writer."""

    def __init__(self, root: Path, repeat: int) -> None:
        self.paths = sorted(root.glob("*/*")) * repeat

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.open(self.paths[i]).convert("RGB"), 0


def ffcv(root: str, out: str, workers: int, repeat: int) -> dict[str, Arm]:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    dataset = Folder(Path(root), repeat)

    def arm(side: int | None) -> Arm:
        def run() -> int:
            path = Path(f"{out}-ffcv.beton")
            image = RGBImageField("jpg", max_resolution=side, jpeg_quality=QUALITY)
            with Path(os.devnull).open("w") as quiet, redirect_stderr(quiet):  # hides its progress bar
                writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=workers)
                writer.from_indexed_dataset(dataset)
            path.unlink()
            return len(dataset)

        return run

    return {name: arm(side) for name, side in SIDES.items()}
