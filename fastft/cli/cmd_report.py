"""`fastft report RUN [OTHER_RUN ...]`, `fastft report BENCH.json [OTHER.json ...]`."""

import argparse
from pathlib import Path

from beton_tools.base.atomic import check_output, check_writable
from beton_tools.base.console import print_printable
from beton_tools.base.errors import UserError, report_disk_errors
from fastft.cli.arguments import add_shared
from fastft.recipe.constants import AUTO

EXAMPLE = (
    "fastft report runs/final_b16 --price 2.48\n  fastft report runs/mine runs/second\n"
    "  fastft report bench/all.json other-machine/all.json"
)
TAKES_OPTIONS = False
COMPARED = "comparison.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "run directories, or result files of fastft bench. With several, the page compares them"
    add("paths", metavar="RUN|BENCH.json", type=Path, nargs="+", help=what)
    where = f"default: report.html in the run directory, NAME.html for results, {COMPARED} beside the first of several"
    add("--out", type=Path, metavar="FILE", help=where)
    add_shared(parser, "price")
    mistakes = "show the validation images with the worst predictions (auto: with a GPU, or if there are few images)"
    add("--mistakes", choices=(AUTO, "always", "never"), default=AUTO, help=mistakes)
    add_shared(parser, "weights")
    replace = "replace the file that --out names. The default page is replaced without this"
    add("--overwrite", action="store_true", help=replace)


def run(args: argparse.Namespace) -> int:
    from fastft.report.run_compare import load_compared, write_comparison
    from fastft.report.run_report import SUFFIXES, write_run_page

    results = [path for path in args.paths if path.is_file() or path.suffix == ".json"]
    if len(args.paths) == 1 and not results:
        print_printable(
            str(write_run_page(args.paths[0], args.out, args.mistakes, args.weights, args.price, args.overwrite))
        )
        return 0
    if args.out is not None:
        check_output(args.out, SUFFIXES, args.overwrite)
    if results and len(results) == len(args.paths):
        print_printable(str(write_results_page(args)))
        return 0
    if results:
        raise UserError("give run directories, or JSON files of fastft bench, not both")
    for name in ("mistakes", "weights"):
        if getattr(args, name) != AUTO:
            raise UserError(f"--{name} needs a page about one run. Leave it out, or give one run directory")
    print_printable(
        str(
            write_comparison(
                load_compared(args.paths), args.out or args.paths[0].absolute().parent / COMPARED, args.price
            )
        )
    )
    return 0


def write_results_page(args: argparse.Namespace) -> Path:
    """Write the page with benchmark results, and return its path."""
    from fastft.machine.bench_result import read_result
    from fastft.report.bench_report import write_bench_page

    if args.price is not None or args.mistakes != AUTO or args.weights != AUTO:
        raise UserError("--price, --mistakes and --weights apply to runs. Leave them out for benchmark results")
    first = args.paths[0]
    out = args.out or (first.with_suffix(".html") if len(args.paths) == 1 else first.with_name(COMPARED))
    check_writable(out)
    results = [read_result(path) for path in args.paths]
    with report_disk_errors(out, "Choose another --out"):
        write_bench_page(results, out)
    return out
