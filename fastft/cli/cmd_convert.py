"""`fastft convert folder` and `fastft convert imagenet`."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from beton_tools.base.console import by_suffix, counted, format_bytes, print_printable, say
from beton_tools.base.progress_bar import progress
from beton_tools.base.signals import hint_when_interrupted
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder, convert_imagenet, converted_path
from beton_tools.write.images import (
    KEPT,
    LOSSLESS_QUALITY,
    LOSSLESS_SUBSAMPLING,
    QUALITY,
    RAW,
    SUBSAMPLING,
    SUBSAMPLINGS,
    WRITE_MODES,
    count_notes,
)
from beton_tools.write.writer import ON_ERROR, WriteOptions, limits

SHOWN = 5  # images named on the screen. The manifest lists all
LAYOUTS = """\
train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, also inside Kaggle's ILSVRC/Data/CLS-LOC
flat val/*.JPEG with the devkit (folder or .tar.gz), LOC_val_solution.csv or val.txt beside it
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit, read without unpacking
train/n01440764.tar, ...: the train archive unpacked once
WebDataset shards: *train*.tar, *val*.tar (or *validation*)
parquet of the Hugging Face hub: train-*.parquet, validation-*.parquet, also inside data/"""


class Folder:
    """`fastft convert folder`."""

    EXAMPLE = "fastft convert folder --data photos/train --out photos.beton --max-resolution 500"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        kinds = (
            "a folder with one folder per class, a .csv, a .parquet, a .tar, or a quoted pattern of shards. The last three "
            "may be URLs (s3://, gs://, hf://, https://)"
        )
        parser.add_argument("--data", required=True, metavar="DIR", help=kinds)
        parser.add_argument("--out", type=Path, required=True, metavar="FILE.beton", help="the file to write")
        labels = "number the classes as in this file. Give the training file when converting the validation set"
        parser.add_argument("--classes-of", type=Path, metavar="FILE.beton", help=labels)
        indices = "use the folders' names as labels: folder 7 is class 7, as in ImageNet-V2 (default: classes in sorted order)"
        parser.add_argument("--class-indices", action="store_true", help=indices)
        single = 'read a label cell such as "cat;dog" as one class name (default: as several labels)'
        parser.add_argument("--single-label", action="store_true", help=single)
        _add_options(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        options = _options_of(args)
        with progress(args.out.name) as show, hint_when_interrupted():
            manifest = convert_folder(
                args.data,
                args.out,
                options,
                show,
                args.overwrite,
                args.classes_of,
                args.class_indices,
                args.single_label,
                args.classes_by_position,
                say,
            )
        if "labels" in manifest.source:
            print_printable(f"{manifest.source['labels']}. --single-label reads each as one class name")
        path = converted_path(args.out, options)
        _print_summary(path, manifest)
        _print_warnings(*(path,) if args.classes_of is None else (args.classes_of, path))
        return 0


class Imagenet:
    """`fastft convert imagenet`."""

    EXAMPLE = "fastft convert imagenet --data /data/ILSVRC2012 --out in1k"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        data = "folder with the dataset, or for tars and parquet files a URL (s3://, gs://, hf://)"
        parser.add_argument("--data", required=True, metavar="DIR", help=data)
        out = "folder for train.beton and val.beton"
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=out)
        _add_options(parser)
        parser.add_argument_group("--data may have one of these layouts", LAYOUTS)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        options = _options_of(args)
        with hint_when_interrupted():
            manifests = convert_imagenet(
                args.data, args.out, options, progress, args.overwrite, args.classes_by_position, say
            )
        paths = {split: converted_path(args.out / f"{split}.beton", options) for split in manifests}
        for split, manifest in manifests.items():
            _print_summary(paths[split], manifest)
        _print_warnings(*paths.values())
        return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    default = WriteOptions()

    def number(group: argparse._ArgumentGroup, name: str, metavar: str, meaning: str, **more: Any) -> None:
        text = meaning.format(limits(name))
        group.add_argument(f"--{name.replace('_', '-')}", type=int, metavar=metavar, help=text, **more)

    images, file = parser.add_argument_group("images"), parser.add_argument_group("file")
    number(images, "max_resolution", "PX",
           "shrink images whose longer side has more pixels, {} (default: keep every size)")  # fmt: skip
    quality = (
        f"quality of re-encoded images, {{}} (default: {QUALITY}, for PNG and other lossless files {LOSSLESS_QUALITY})"
    )
    number(images, "quality", "Q", quality)
    chroma = (
        f"chroma subsampling of re-encoded images (default: {SUBSAMPLING}, for lossless files {LOSSLESS_SUBSAMPLING})"
    )
    images.add_argument("--subsampling", choices=SUBSAMPLINGS, help=chroma)
    background = "colour that replaces transparency: a name or '#rrggbb' (default: white)"
    images.add_argument("--background", metavar="COLOUR", default=default.background, help=background)
    reencode = "re-encode every image, as FFCV does (default: JPEGs that fit keep their coefficients, bit for bit)"
    images.add_argument("--reencode", action="store_true", help=reencode)
    mode = (
        "store JPEGs, or raw pixels, which are ten times as large and need no decoding (default: auto, which stores raw "
        "pixels for lossless files up to 128 x 128 pixels, and otherwise JPEGs)"
    )
    images.add_argument("--write-mode", choices=WRITE_MODES, default=default.write_mode, help=mode)
    error = f"stop at an image that cannot be stored, or skip and list it (default: {default.on_error})"
    images.add_argument("--on-error", choices=ON_ERROR, default=default.on_error, help=error)
    number(file, "subset_per_class", "N", "keep only N images per class ({}), chosen at random with --shuffle-seed")
    number(
        file,
        "shuffle_seed",
        "SEED",
        "shuffle the images with this seed, {} (default: they are sorted by class and name)",
    )
    part = "write only this part of the images (3/16 goes to FILE-03-of-16.beton). Classes and order are as in the whole dataset"
    file.add_argument("--part", metavar="K/N", help=part)
    number(file, "workers", "N", "number of processes that encode, {} (default: one for every usable CPU)")
    positions = (
        "take labels that are numbers for those of the training file, whatever their classes are called (default: match classes "
        "by id, then by name)"
    )
    parser.add_argument("--classes-by-position", action="store_true", help=positions)
    overwrite = "replace a file that was made from other images or with other options"
    file.add_argument("--overwrite", action="store_true", help=overwrite)


def _options_of(args: argparse.Namespace) -> WriteOptions:
    """Make WriteOptions from parsed flags. Raises UserError if a value is outside its limits."""
    values = {field.name: getattr(args, field.name) for field in fields(WriteOptions) if hasattr(args, field.name)}
    values["lossless"] = not args.reencode
    return WriteOptions(**values | {"part": None if args.part is None else Part.parse(args.part)})


def _print_warnings(*paths: Path) -> None:
    """Print what you should know about the images. The last of the files was written now, the first has training images."""
    from fastft.data.warnings import data_warnings, describe_betons  # loads SciPy

    for text in data_warnings(*describe_betons(*map(BetonSet.open, paths))):
        print_printable(f"  warning: {text}")


def _print_summary(path: Path, manifest: Manifest) -> None:
    images = f"{counted(manifest.num_samples, 'images')} in {counted(manifest.num_classes, 'classes')}"
    print_printable(f"{path}: {images}, {format_bytes(manifest.file_size)}")
    if "columns" in manifest.source:
        print_printable(f"  {manifest.source['columns']}")
    if "notes" in manifest.source:
        print_printable(f"  warning: {manifest.source['notes']}")
    kept = manifest.encodings.get(KEPT, 0)
    raw = sum(count for how, count in manifest.encodings.items() if how.startswith(RAW))
    others = [f"{n:,} {how}" for how, n in manifest.encodings.items() if how != KEPT and not how.startswith(RAW)]
    print_printable(
        f"  {kept:,} kept bit for bit"
        + (f", {raw:,} stored as raw pixels" if raw else "")
        + (f". Re-encoded: {', '.join(others)}" if others else "")
    )
    for text, count in count_notes(manifest.encodings).items():
        print_printable(f"  {count:,} with {text}")
    if manifest.left_out:
        print_printable(f"  left out: {by_suffix(manifest.left_out)}")
    skipped = [f"{name}: {reason}" for name, reason in manifest.skipped]
    for what, names in (("with damage, stored as Pillow reads them", manifest.damaged), ("skipped", skipped)):
        if names:
            print_printable(f"  {len(names):,} {what} (all in {manifest_path(path).name}):")
            for name in names[:SHOWN]:
                print_printable(f"    {name}")
