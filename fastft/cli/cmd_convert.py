"""`fastft convert folder` and `fastft convert imagenet`."""

import argparse
from pathlib import Path

LAYOUTS = """\
train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, also inside Kaggle's ILSVRC/Data/CLS-LOC
flat val/*.JPEG with the devkit (folder or .tar.gz), LOC_val_solution.csv or val.txt beside it
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit, read without unpacking
train/n01440764.tar, ...: the train archive unpacked once
WebDataset shards: *train*.tar, *val*.tar (or *validation*)
parquet of the Hugging Face hub: train-*.parquet, validation-*.parquet, also inside data/"""


class Folder:
    """`fastft convert folder`."""

    HELP = "write one labelled set, a folder per class, to one .beton file"
    EXAMPLE = "fastft convert folder --data photos/train --out photos.beton --max-resolution 500"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        from fastft.cli.conversion import add_options

        kinds = (
            "one folder per class; or a .csv, a .parquet, a .tar, a quoted pattern of shards; the last three may be URLs "
            "(s3://, gs://, hf://, https://)"
        )
        parser.add_argument("--data", required=True, metavar="DIR", help=kinds)
        parser.add_argument("--out", type=Path, required=True, metavar="FILE.beton", help="the file to write")
        labels = (
            "number the classes as in this file; give the training file when converting the validation set"
        )
        parser.add_argument("--classes-of", type=Path, metavar="FILE.beton", help=labels)
        indices = "the folders' names are labels: folder 7 is class 7, as in ImageNet-V2 (default: classes in sorted order)"
        parser.add_argument("--class-indices", action="store_true", help=indices)
        add_options(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from beton_tools.base.progress_bar import progress
        from beton_tools.base.signals import hint_when_interrupted
        from beton_tools.write.convert import convert_folder, converted_path
        from fastft.cli.conversion import options_of, summary

        options = options_of(args)
        with progress(args.out.name) as show, hint_when_interrupted():
            manifest = convert_folder(
                args.data, args.out, options, show, args.overwrite, args.classes_of, args.class_indices
            )
        print(summary(converted_path(args.out, options), manifest))
        return 0


class Imagenet:
    """`fastft convert imagenet`."""

    HELP = "write ImageNet, in any of its common layouts, to train.beton and val.beton"
    EXAMPLE = "fastft convert imagenet --data /data/ILSVRC2012 --out in1k"
    TAKES_OPTIONS = False

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        from fastft.cli.conversion import add_options

        data = "folder with the data set; of tars and parquet files also a URL (s3://, gs://, hf://)"
        parser.add_argument("--data", required=True, metavar="DIR", help=data)
        parser.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder for train.beton and val.beton"
        )
        add_options(parser)
        parser.add_argument_group("layouts that are found below --data", LAYOUTS)

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        from beton_tools.base.progress_bar import progress
        from beton_tools.base.signals import hint_when_interrupted
        from beton_tools.write.convert import convert_imagenet, converted_path
        from fastft.cli.conversion import options_of, summary

        options = options_of(args)
        with hint_when_interrupted():
            manifests = convert_imagenet(args.data, args.out, options, progress, args.overwrite)
        for split, manifest in manifests.items():
            print(summary(converted_path(args.out / f"{split}.beton", options), manifest))
        return 0
