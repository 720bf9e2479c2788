"""`fastft report RUN|BENCH.json`."""

import argparse
from pathlib import Path

from beton_tools.base.atomic import check_writable, refuse_existing
from beton_tools.base.errors import UserError
from fastft.cli.arguments import add_shared, positive, recipe_reference

EXAMPLE = "fastft report runs/final_b16 --price 2.48"
TAKES_OPTIONS = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="RUN|BENCH.json", type=Path, help="a run directory, or a benchmark file")
    add("--out", type=Path, metavar="FILE", help="default: report.html in the run, BENCH.html")
    add_shared(parser, "price")
    add("--gpus", type=positive(int), metavar="N", help="GPUs of the run, where its log does not say")
    add("--against", type=recipe_reference, metavar="RECIPE", help="recipe to compare with (default: final_*)")
    mistakes = "predict the validation images (auto: with a GPU, or where they are few)"
    add("--mistakes", choices=("auto", "always", "never"), default="auto", help=mistakes)
    add_shared(parser, "weights", "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.cost.benchmark_file import read_bench
    from fastft.report.bench_report import render_bench
    from fastft.report.run_report import SUFFIXES, write_page, write_run_page

    if not args.source.exists():
        raise UserError(f"{args.source} does not exist; give a run directory or a benchmark file")
    if args.out is not None:
        check_writable(args.out, suffixes=SUFFIXES)
        refuse_existing(args.out, args.overwrite)
    if args.source.is_dir():
        asked = {"gpus": args.gpus, "price": args.price, "against": args.against}
        print(write_run_page(args.source, args.out, args.mistakes, args.weights, **asked))
        return 0
    out = args.out or args.source.with_suffix(".html")
    check_writable(out, suffixes=SUFFIXES)
    write_page(render_bench(read_bench(args.source), args.source.name), out)
    print(out)
    return 0
