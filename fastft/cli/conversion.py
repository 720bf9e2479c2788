"""Arguments and output that `fastft convert folder` and `fastft convert imagenet` share."""

import argparse
from pathlib import Path

from beton_tools.base import console
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.read.parts import Part
from beton_tools.write.images import KEPT, SUBSAMPLINGS
from beton_tools.write.writer import ON_ERROR, WriteOptions, limits

_SHOWN = 5  # images named on the screen; the manifest lists all


def add_options(parser: argparse.ArgumentParser) -> None:
    _add_image_options(parser.add_argument_group("images"))
    _add_file_options(parser.add_argument_group("file"))


def _add_image_options(group: argparse._ArgumentGroup) -> None:
    default = WriteOptions()
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


def _add_file_options(group: argparse._ArgumentGroup) -> None:
    subset = f"only N images of each class, {limits('subset_per_class')}, drawn by the seed"
    group.add_argument("--subset-per-class", type=int, metavar="N", help=subset)
    seed = f"write in this seeded order, {limits('shuffle_seed')} (default: sorted by class and name)"
    group.add_argument("--shuffle-seed", type=int, metavar="SEED", help=seed)
    part = "write only this part of the images, to FILE-03-of-16.beton for 3/16; classes and order are those of the whole"
    group.add_argument("--part", metavar="K/N", help=part)
    workers = f"processes that encode, {limits('workers')} (default: one for every usable CPU)"
    group.add_argument("--workers", type=int, metavar="N", help=workers)
    overwrite = "replace a file that was made of other images or options"
    group.add_argument("--overwrite", action="store_true", help=overwrite)


def options_of(args: argparse.Namespace) -> WriteOptions:
    """WriteOptions from parsed flags.

    Raises:
        UserError: a value outside its limits.
    """
    return WriteOptions(
        max_resolution=args.max_resolution,
        quality=args.quality,
        subsampling=args.subsampling,
        lossless=not args.reencode,
        index=not args.no_index,
        workers=args.workers,
        subset_per_class=args.subset_per_class,
        shuffle_seed=args.shuffle_seed,
        part=None if args.part is None else Part.parse(args.part),
        on_error=args.on_error,
    )


def summary(path: Path, manifest: Manifest) -> str:
    """Summary of a conversion, in a few lines."""
    lines = [
        f"{path}: {manifest.num_samples:,} images in {manifest.num_classes:,} classes, "
        f"{console.format_bytes(manifest.file_size)}"
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
