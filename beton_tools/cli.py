"""The `beton` command: inspect `.beton` files.

Exit codes: 0 success, 1 `verify` found problems, 2 bad input (one line on stderr), 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from beton_tools.base.signals import imports_of, leave, raise_on_stop_signals

with imports_of("beton"):
    from beton_tools.base.atomic import refuse_existing, save_picture
    from beton_tools.base.console import (
        ENDINGS,
        EXIT_BAD_INPUT,
        counted,
        end_command,
        format_bytes,
        print_error,
        print_printable,
        start_command,
    )
    from beton_tools.base.parser import CommandParser, at_least, positive, refuse_unknown
    from beton_tools.base.progress_bar import progress
    from beton_tools.read.format import Beton
    from beton_tools.read.manifest import Manifest

EXIT_PROBLEMS = 1
_SHOWN_PROBLEMS = 20  # on the screen. --json prints all


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    if not start_command("beton"):
        return EXIT_BAD_INPUT
    args, rest = build_parser().parse_known_args(argv)
    command = f"beton {args.command}"
    try:
        with raise_on_stop_signals(command):
            refuse_unknown(args.parser, rest)
            code = args.run(args)
            sys.stdout.flush()  # an error, such as a full disk, is reported here
            return code
    except ENDINGS as error:
        code = end_command(error, partial(print_error, command))
        if argv is None and isinstance(error, KeyboardInterrupt):
            leave(code)
        return code


def build_parser() -> CommandParser:
    parser = CommandParser(prog="beton", description="Inspect FFCV .beton files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _command(commands, "info", _run_info, "show what the file contains and how it was made", "val.beton")
    help = "check tables, checksums and crop indexes, and decode every image"
    verify = _command(commands, "verify", _run_verify, help, "train.beton --workers 8")
    tables = "check tables and checksums only, which is as fast as the disk"
    verify.add_argument("--no-decode", action="store_true", help=tables)
    verify.add_argument(
        "--workers", type=positive(int), metavar="N", help="number of threads (default: one per usable CPU)"
    )
    help = "draw images with their classes on one contact sheet"
    sheet = _command(commands, "sheet", _run_sheet, help, "val.beton --out sheet.png --limit 60", json=False)
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="picture to write")
    _add_selection(sheet, limit=40)
    sheet.add_argument("--columns", type=positive(int), default=8, metavar="N", help="images per row (default: 8)")
    sheet.add_argument("--cell", type=at_least(16), default=160, metavar="PX", help="pixels per image (default: 160)")
    help = "write images to files, byte for byte as they are stored"
    extract = _command(commands, "extract", _run_extract, help, "val.beton --out photos --label 207")
    extract.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the images, <class>/<id>_<name>.jpg"
    )
    _add_selection(extract, limit=None)
    for command in (sheet, extract):
        command.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, example: str, json: bool = True
) -> CommandParser:
    parser: CommandParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  beton {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("file", type=Path, metavar="FILE.beton")
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_selection(parser: argparse.ArgumentParser, limit: int | None) -> None:
    parser.add_argument("--ids", type=int, nargs="+", metavar="ID", help="these samples")
    parser.add_argument("--label", type=int, metavar="L", help="only samples with this label")
    how_many = f"at most N samples (default: {'all' if limit is None else limit})"
    parser.add_argument("--limit", type=positive(int), default=limit, metavar="N", help=how_many)
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed for the selection by --limit (default: 0)")


def _print_json(values: Any) -> int:
    print(json.dumps(values, indent=1))
    return 0


def _run_info(args: argparse.Namespace) -> int:
    beton, manifest = Beton.open(args.file), Manifest.of_beton(args.file)
    fields = [f.name for f in beton.fields]
    values = {
        "path": str(args.file),
        "file_size": beton.file_size,
        "num_samples": len(beton),
        "fields": fields,
        "page_size": beton.page_size,
        "pages": beton.num_pages,
        "classes": None if manifest is None else [manifest.class_label(i) for i in range(manifest.num_classes)],
        "manifest": manifest.summary() if manifest is not None else None,
    }
    if args.json:
        return _print_json(values)
    print_printable(f"{args.file}: {counted(len(beton), 'images')}, {format_bytes(beton.file_size)}")
    print_printable(f"  fields    {', '.join(fields)}")
    print_printable(f"  pages     {beton.num_pages:,} of {beton.page_size >> 10:,} KiB")
    if manifest is None:
        print_printable(
            "  manifest  none, as with files from stock FFCV, so there are no class names, checksums or source names"
        )
    else:
        _print_manifest(manifest)
    return 0


def _print_manifest(manifest: Manifest) -> None:
    names = [manifest.class_label(i) for i in range(min(3, manifest.num_classes))]
    more = "; ..." if manifest.num_classes > len(names) else ""
    if manifest.class_names is not None:
        names = [
            f"{name} ({own})" for name, own in zip(manifest.class_names, manifest.classes[: len(names)], strict=False)
        ]
    source, options = manifest.source, (f"{k} {v}" for k, v in manifest.options.items())
    contents, groups = manifest.contents, manifest.groups
    content = "not stored (version 1)" if contents is None else f"{len(set(contents.tolist())):,} different images"
    part = "" if manifest.part is None else f", part {manifest.part}"
    encoded = (f"{count:,} x {how}" for how, count in manifest.encodings.items())
    for title, text in (
        ("classes", f"{manifest.num_classes:,}: {'; '.join(names)}{more}"),
        ("source", f"{source.get('kind')} {source.get('root')}"),
        ("dataset", f"{manifest.dataset or 'not stored (version 1)'}{part}"),
        ("content", content + ("" if groups is None else f", {len({*groups} - {''}):,} groups")),
        ("options", ", ".join(options)),
        ("encoded", "; ".join(encoded)),
        ("skipped", f"{len(manifest.skipped):,}"),
    ):
        print_printable(f"  {title:9} {text}")


def _run_verify(args: argparse.Namespace) -> int:
    from beton_tools.inspect.verify import verify

    with progress(args.file.name) as show:
        report = verify(args.file, args.workers, not args.no_decode, show)
    if args.json:
        _print_json(asdict(report) | {"ok": report.ok})
    else:
        for where, what in report.problems[:_SHOWN_PROBLEMS]:
            print_printable(f"{args.file}: {where}: {what}")
        pages = counted(report.pages_checked, "pages")
        verdict = "ok" if report.ok else counted(len(report.problems), "problems")
        print_printable(
            f"{args.file}: {verdict}, {report.images_decoded:,} of {report.num_samples:,} images decoded "
            f"({report.num_indexed:,} with crop index), checksums compared on {pages}"
            + ("" if report.has_labels else ", no class labels")
        )
    return 0 if report.ok else EXIT_PROBLEMS


def _choose(args: argparse.Namespace, beton: Beton) -> list[int]:
    from beton_tools.inspect.extract import choose_samples

    return choose_samples(beton, args.ids, args.label, args.limit, args.seed)


def _run_sheet(args: argparse.Namespace) -> int:
    from beton_tools.inspect.extract import draw_sheet

    refuse_existing(args.out, args.overwrite)
    beton = Beton.open(args.file)
    manifest, ids = Manifest.of_opened(beton, tables=True), _choose(args, beton)
    save_picture(args.out, draw_sheet(beton, manifest, ids, args.columns, args.cell).save)
    print_printable(f"{args.out}: {counted(len(ids), 'images')}")
    return 0


def _run_extract(args: argparse.Namespace) -> int:
    from beton_tools.inspect.extract import extract

    beton = Beton.open(args.file)
    manifest, ids = Manifest.of_opened(beton, tables=True), _choose(args, beton)
    paths = []
    with progress(args.file.name) as show:
        for path in extract(beton, manifest, ids, args.out, args.overwrite):
            paths.append(str(path))
            show(len(paths), len(ids), 0)
    if args.json:
        return _print_json(paths)
    print_printable(f"{args.out}: {counted(len(paths), 'images')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
