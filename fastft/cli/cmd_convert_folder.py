"""`fastft convert folder`."""

import argparse
from pathlib import Path

HELP = "write one labelled set, a folder per class, to one .beton file"
EXAMPLE = "fastft convert folder --data photos/train --out photos.beton --max-resolution 500"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fastft.cli.conversion import add_options

    kinds = (
        "one folder per class; or a .csv, a .parquet, a .tar, a quoted pattern of shards; the last three may be URLs "
        "(s3://, gs://, hf://, https://)"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help=kinds)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.beton", help="the file to write")
    labels = "number the classes as in this file; give the training file when converting the validation set"
    parser.add_argument("--classes-of", type=Path, metavar="FILE.beton", help=labels)
    indices = "the folders' names are labels: folder 7 is class 7, as in ImageNet-V2 (default: classes in sorted order)"
    parser.add_argument("--class-indices", action="store_true", help=indices)
    add_options(parser)


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
