"""Conversion speed compared with FFCV's own writer, which decodes and re-encodes every image."""

import os
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beton_tools.base.names import Names
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton
from fastft.bench.child import Arm
from fastft.bench.dataset import MAX_SIDE, QUALITY
from fastft.bench.harness import (
    Contender,
    Findings,
    Options,
    alternate,
    measure,
    per_cpu_second,
    per_second,
)

SIDES: dict[str, int | None] = {"kept": None, f"at most {MAX_SIDE} px": MAX_SIDE}
REPEAT = 2  # passes over the images, so that a round is long compared with its start


def run(options: Options) -> Findings:
    """Wall time on all cores, and CPU time including all worker processes, from the same rounds."""
    arguments: dict[str, Any] = {
        "root": str(options.workspace.folder / "originals"), "out": str(options.workspace.folder / "converted"),
        "workers": options.threads, "repeat": 1 if options.quick else REPEAT,
    }  # fmt: skip
    options.workspace.source()
    modes = {"fastft": True, "fastft, re-encoding": False}
    contenders = options.wanted({
        "fastft": [Contender(n, ours, {**arguments, "lossless": keep}) for n, keep in modes.items()],
        "ffcv": [Contender("FFCV DatasetWriter", ffcv, arguments)],
    })  # fmt: skip
    rounds = alternate(contenders, options.rounds, threads=options.threads)
    images = options.images * arguments["repeat"]
    for unit, figure in (("images/s", per_second), ("images/s per core", per_cpu_second)):
        for size in SIDES:
            setting = {"size": size, "images": images, "workers": options.threads}
            yield measure("Conversion", rounds, size, figure, unit, setting)


def ours(root: str, out: str, workers: int, repeat: int, lossless: bool) -> dict[str, Arm]:
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
    """An indexable data set of (Pillow image, label), as FFCV's documentation passes to its writer."""

    def __init__(self, root: Path, repeat: int) -> None:
        self.paths = sorted(root.glob("*/*")) * repeat

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return Image.open(self.paths[i]).convert("RGB"), 0


def ffcv(root: str, out: str, workers: int, repeat: int) -> dict[str, Arm]:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    dataset = Folder(Path(root), repeat)

    def arm(side: int | None) -> Arm:
        def run() -> int:
            path = Path(f"{out}-ffcv.beton")
            image = RGBImageField("jpg", max_resolution=side, jpeg_quality=QUALITY)
            with Path(os.devnull).open("w") as quiet, redirect_stderr(quiet):  # its progress bar
                writer = DatasetWriter(str(path), {"image": image, "label": IntField()}, num_workers=workers)
                writer.from_indexed_dataset(dataset)
            path.unlink()
            return len(dataset)

        return run

    return {name: arm(side) for name, side in SIDES.items()}
