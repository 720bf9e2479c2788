"""`fastft convert imagenet`."""

import argparse
from pathlib import Path

HELP = "write ImageNet, in any of its common layouts, to train.beton and val.beton"
EXAMPLE = "fastft convert imagenet --data /data/ILSVRC2012 --out in1k"
TAKES_OPTIONS = False

LAYOUTS = """\
train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, also inside Kaggle's ILSVRC/Data/CLS-LOC
flat val/*.JPEG with the devkit (folder or .tar.gz), LOC_val_solution.csv or val.txt beside it
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit, read without unpacking
train/n01440764.tar, ...: the train archive unpacked once
WebDataset shards: *train*.tar, *val*.tar (or *validation*)
parquet of the Hugging Face hub: train-*.parquet, validation-*.parquet, also inside data/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fastft.cli.conversion import add_options

    data = "folder with the data set; of tars and parquet files also a URL (s3://, gs://, hf://)"
    parser.add_argument("--data", required=True, metavar="DIR", help=data)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for train.beton and val.beton"
    )
    add_options(parser)
    parser.add_argument_group("layouts that are found below --data", LAYOUTS)


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
