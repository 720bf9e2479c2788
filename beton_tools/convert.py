"""`fastft convert`: data sets to `.beton` files. Flags are declared here once, for every command that
converts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from beton_tools import console
from beton_tools.console import ProgressCallback
from beton_tools.errors import UserError
from beton_tools.images import KEPT, SUBSAMPLINGS
from beton_tools.manifest import Manifest, manifest_path
from beton_tools.sources import SPLITS, Source, find_split, open_source
from beton_tools.writer import ON_ERROR, WriteOptions, limits, write_beton

_SHOWN = 5  # images named on the screen; the manifest lists all

IMAGENET_LAYOUTS = """layouts that are found below --data:
  train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, also inside Kaggle's ILSVRC/Data/CLS-LOC
  flat val/*.JPEG with the devkit (folder or .tar.gz), LOC_val_solution.csv or val.txt beside it
  ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit, read without unpacking
  train/n01440764.tar, ...: the train archive unpacked once
  WebDataset shards: *train*.tar, *val*.tar (or *validation*)
  parquet of the Hugging Face hub: train-*.parquet, validation-*.parquet, also inside data/"""


def no_progress(split: str) -> AbstractContextManager[ProgressCallback | None]:
    return nullcontext()


def convert_folder(
    data: Path,
    out: Path,
    options: WriteOptions | None = None,
    progress: ProgressCallback | None = None,
    overwrite: bool = False,
    classes_of: Path | None = None,
) -> Manifest:
    """One set of labelled images (class folders, an archive, a pattern of shards) to one file.

    classes_of: a converted file, such as the training file, whose classes give the labels. Raises UserError.
    """
    classes = _classes_of(classes_of) if classes_of is not None else None
    return write_beton(out, open_source(data, classes=classes), options, progress, overwrite)


def _classes_of(path: Path) -> list[str]:
    manifest = Manifest.of_beton(path)
    if manifest is None:
        raise UserError(
            f"{path}: no manifest beside it says what its classes are; give a file that was converted here"
        )
    return manifest.classes


def convert_imagenet(
    data: Path,
    out: Path,
    options: WriteOptions | None = None,
    progress_of: Callable[[str], AbstractContextManager[ProgressCallback | None]] = no_progress,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """`train` and `val` below `data` to `out/train.beton` and `out/val.beton`; one of them may be missing.

    val counts classes as train does. Both are indexed before the first image is converted, so that a missing
    devkit is noticed at once. progress_of: split -> context manager that gives a progress callback. Raises
    UserError.
    """
    present = [split for split in SPLITS if find_split(data, split) is not None]
    if not present:
        raise UserError(
            f"{data}: no train or val images; see `fastft convert imagenet --help` for the layouts"
        )
    sources: dict[str, Source] = {}
    for split in present:
        sources[split] = open_source(data, split, sources["train"].classes if "train" in sources else None)
    manifests = {}
    for split, source in sources.items():
        with progress_of(split) as progress:
            manifests[split] = write_beton(out / f"{split}.beton", source, options, progress, overwrite)
    return manifests


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `fastft convert folder`; `run_folder` takes what they parse to."""
    kinds = "one folder per class; or a .tar, a .parquet, a quoted pattern of shards"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=kinds)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.beton", help="the file to write")
    labels = "count classes as this file does: a validation file must count as its training file"
    parser.add_argument("--classes-of", type=Path, metavar="FILE.beton", help=labels)
    _add_image_options(parser)
    _add_file_options(parser)


def add_imagenet_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `fastft convert imagenet`; `run_imagenet` takes what they parse to."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the data set")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for train.beton and val.beton"
    )
    _add_image_options(parser)
    _add_file_options(parser)


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    default, group = WriteOptions(), parser.add_argument_group("images")
    size = f"shrink images whose longer side has more pixels, {limits('max_resolution')} (default: keep every size)"
    group.add_argument("--max-resolution", type=int, metavar="PX", help=size)
    quality = f"of re-encoded images, {limits('quality')} (default: {default.quality})"
    group.add_argument("--quality", type=int, default=default.quality, metavar="Q", help=quality)
    chroma = f"of re-encoded images (default: {default.subsampling})"
    group.add_argument("--subsampling", choices=SUBSAMPLINGS, default=default.subsampling, help=chroma)
    reencode = (
        "re-encode every image, as FFCV does (default: JPEGs that fit keep their coefficients, bit for bit)"
    )
    group.add_argument("--reencode", action="store_true", help=reencode)
    index = "leave out the crop index: files about 1 %% smaller, but every image is decoded whole"
    group.add_argument("--no-index", action="store_true", help=index)
    error = f"stop at an image that cannot be stored, or skip and list it (default: {default.on_error})"
    group.add_argument("--on-error", choices=ON_ERROR, default=default.on_error, help=error)


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("file")
    subset = f"only N images of each class, {limits('subset_per_class')}, drawn by the seed"
    group.add_argument("--subset-per-class", type=int, metavar="N", help=subset)
    seed = f"write in this seeded order, {limits('shuffle_seed')} (default: sorted by class and name)"
    group.add_argument("--shuffle-seed", type=int, metavar="SEED", help=seed)
    workers = f"processes that encode, {limits('workers')} (default: one for every usable CPU)"
    group.add_argument("--workers", type=int, metavar="N", help=workers)
    overwrite = "replace a file that was made of other images or options"
    group.add_argument("--overwrite", action="store_true", help=overwrite)


def options_of(args: argparse.Namespace) -> WriteOptions:
    """The WriteOptions that parsed flags ask for. Raises UserError."""
    return WriteOptions(
        max_resolution=args.max_resolution,
        quality=args.quality,
        subsampling=args.subsampling,
        lossless=not args.reencode,
        index=not args.no_index,
        workers=args.workers,
        subset_per_class=args.subset_per_class,
        shuffle_seed=args.shuffle_seed,
        on_error=args.on_error,
    )


def run_folder(args: argparse.Namespace) -> int:
    """Convert with a progress bar, then say what was written. Raises UserError."""
    with console.progress(args.out.name) as progress, _hint_when_interrupted():
        manifest = convert_folder(
            args.data, args.out, options_of(args), progress, args.overwrite, args.classes_of
        )
    print(summary(args.out, manifest))
    return 0


def run_imagenet(args: argparse.Namespace) -> int:
    """As run_folder, for every split found."""
    with _hint_when_interrupted():
        manifests = convert_imagenet(args.data, args.out, options_of(args), console.progress, args.overwrite)
    for split, manifest in manifests.items():
        print(summary(args.out / f"{split}.beton", manifest))
    return 0


@contextmanager
def _hint_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        raise


def summary(path: Path, manifest: Manifest) -> str:
    """What a conversion did, in a few lines."""
    lines = [
        f"{path}: {manifest.num_samples:,} images in {manifest.num_classes:,} classes, "
        f"{console.size(manifest.file_size)}"
    ]
    kept = manifest.encodings.get(KEPT, 0)
    others = [f"{count:,} {how}" for how, count in manifest.encodings.items() if how != KEPT]
    lines.append(f"  {kept:,} kept bit for bit" + (f"; re-encoded: {', '.join(others)}" if others else ""))
    if manifest.left_out:
        lines.append(f"  left out: {console.by_suffix(manifest.left_out)}")
    for what, images in (
        ("with damage, stored as Pillow reads them", manifest.damaged),
        ("skipped", [f"{name}: {reason}" for name, reason in manifest.skipped]),
    ):
        if images:
            lines.append(f"  {len(images):,} {what} (all in {manifest_path(path).name}):")
            lines += [f"    {console.printable(image)}" for image in images[:_SHOWN]]
    return "\n".join(lines)
