"""`fastft report RUN [OTHER_RUN ...]`, `fastft report BENCH.json [OTHER.json ...]`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from beton_tools.base.atomic import check_output, check_writable
from beton_tools.base.console import print_printable
from beton_tools.base.errors import UserError, report_disk_errors
from fastft.cli.arguments import add_shared, share
from fastft.recipe.constants import AUTO

if TYPE_CHECKING:
    from fastft.bench.page.comparison import Comparison

EXAMPLE = (
    "fastft report runs/final_b16 --price 2.48\n  fastft report runs/mine runs/second\n"
    "  fastft report bench/all.json other-machine/all.json\n"
    "  fastft report main.json branch.json --fail-below 0.95"
)
TAKES_OPTIONS = False
COMPARED = "comparison.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "run directories, or result files from fastft bench. With several, the page compares them"
    add("paths", metavar="RUN|BENCH.json", type=Path, nargs="+", help=what)
    where = f"default: report.html in the run directory, NAME.html for results, {COMPARED} beside the first of several"
    add("--out", type=Path, metavar="FILE", help=where)
    add_shared(parser, "price")
    mistakes = "show the validation images with the worst predictions (auto: with a GPU, or if there are few images)"
    add("--mistakes", choices=(AUTO, "always", "never"), default=AUTO, help=mistakes)
    add_shared(parser, "weights")
    replace = "replace the file that --out names. The default page is replaced without this"
    add("--overwrite", action="store_true", help=replace)
    fail = "exit code 1 if a fastft figure in the last benchmark result is significantly below this share of the first"
    add("--fail-below", type=share, metavar="RATIO", help=fail)
    add("--json", action="store_true", help="print the benchmark comparison as JSON (docs/bench-schema.md)")


def run(args: argparse.Namespace) -> int:
    from fastft.report.run_compare import load_compared, write_comparison
    from fastft.report.run_report import SUFFIXES, write_run_page

    results = [path for path in args.paths if path.is_file() or path.suffix == ".json"]
    if (args.json or args.fail_below is not None) and not 1 < len(results) == len(args.paths):
        raise UserError("--json and --fail-below compare benchmark results. Give two JSON files from fastft bench")
    if len(args.paths) == 1 and not results:
        print_printable(
            str(write_run_page(args.paths[0], args.out, args.mistakes, args.weights, args.price, args.overwrite))
        )
        return 0
    if args.out is not None:
        check_output(args.out, SUFFIXES, args.overwrite)
    if results and len(results) == len(args.paths):
        return report_results(args)
    if results:
        raise UserError("give run directories, or JSON files from fastft bench, not both")
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


def report_results(args: argparse.Namespace) -> int:
    """Write the page with benchmark results. Returns 1 if a figure is significantly below `--fail-below`."""
    from fastft.bench.page.comparison import comparison_as_dict, write_bench_page
    from fastft.machine.bench_result import read_result

    if args.price is not None or args.mistakes != AUTO or args.weights != AUTO:
        raise UserError("--price, --mistakes and --weights apply to runs. Leave them out for benchmark results")
    first = args.paths[0]
    out = args.out or (first.with_suffix(".html") if len(args.paths) == 1 else first.with_name(COMPARED))
    check_writable(out)
    results = [read_result(path) for path in args.paths]
    quick = [str(path) for path, result in zip(args.paths, results, strict=True) if result.quick]
    if quick and args.fail_below is not None:
        raise UserError(f"{quick[0]} is from a quick run, whose figures mean nothing. Measure without --quick")
    with report_disk_errors(out, "Choose another --out"):
        comparison = write_bench_page(results, out, args.fail_below)
    failed = comparison is not None and bool(comparison.below)
    if comparison is not None and args.json:
        head = {
            "files": [str(p) for p in args.paths],
            "page": str(out),
            "fail_below": args.fail_below,
            "failed": failed,
        }
        print(json.dumps(head | comparison_as_dict(comparison), indent=1))
        return int(failed)
    for line in describe_comparison(comparison, args.fail_below) if comparison is not None else ():
        print_printable(line)
    print_printable(str(out))
    return int(failed)


def describe_comparison(comparison: "Comparison", threshold: float | None) -> Iterator[str]:
    """Say how many figures changed, name those that are worse or below the threshold, and what else differs."""
    from fastft.bench.page.comparison import counted
    from fastft.report.page import joined

    for change in comparison.changes:
        v = change.verdict
        if v is not None and (v.outcome == "worse" or v.below):
            where = joined(change.shared.measure.title, change.shared.setting)
            interval = f" (95% interval {v.low:.3f}-{v.high:.3f})" if v.low is not None else ""
            yield f"{'below' if v.below else 'worse'}: {where}: {v.ratio:.3f}x{interval}"
    yield from comparison.remarks
    yield counted(comparison).striptags()
    if threshold is not None:
        yield f"figures that are significantly below {threshold:g} of the first result: {len(comparison.below)}"
