"""`fastft eval CKPT`: scores of a checkpoint, and how they are printed."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beton_tools.base import torchrun
from beton_tools.base.console import compact_table, counted, print_table, say
from fastft.cli.arguments import add_checkpoint, add_shared, print_line, show
from fastft.run.evaluations import BALANCED_ACCURACY, BESIDE, SCORE_NAMES, TOP1

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fastft.evaluate.file_report import FileReport, NamedClass

EXAMPLE = "fastft eval runs/final_b16 --data val.beton"
TAKES_OPTIONS = False
CLASS_COLUMNS = {
    "precision": "precision %", "recall": "recall %", "f1": "F1 %", "average_precision": "AP %", "threshold": "threshold %",
}  # fmt: skip
SHOWN_CLASSES, SHOWN_CONFUSIONS = 30, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    data = "file to evaluate on (default: the recipe's validation file). Repeat the option for a table of several files"
    parser.add_argument("--data", metavar="FILE.beton", type=Path, action="append", default=[], help=data)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the predictions to a table")
    add_shared(parser, "logit-adjustment", "only-present-classes")
    positions = "take equal labels for the same classes in the file and the model, whatever the classes are called"
    parser.add_argument("--classes-by-position", action="store_true", help=positions)
    add_shared(parser, "device", "json", "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.evaluate.evaluation import evaluate_files

    options = {"weights": args.weights, "logit_adjustment": args.logit_adjustment}
    options |= {"csv": args.csv, "overwrite": args.overwrite, "classes_by_position": args.classes_by_position}
    evaluations = evaluate_files(
        args.checkpoint, args.data, args.device, only_present_classes=args.only_present_classes, **options
    )
    if torchrun.rank() != 0:  # every process has the same sums, and rank 0 prints them
        return 0
    say(f"using the {evaluations[0].weights}")
    for report in evaluations:
        if report.note:
            say(f"warning: {report.note}")
    if len(evaluations) == 1:
        return show(evaluations[0], args.json, print_evaluation)
    return show(evaluations, args.json, print_table_of_files)


# what is printed -------------------------------------------------------------------------------------------------------


def print_evaluation(report: "FileReport", console: "Console") -> None:
    """Print the scores, the classes (the worst by F1 if there are many), and the largest confusions."""
    lines = [_headline(report), _means(report)]
    for line in reversed(lines) if report.best_by == BALANCED_ACCURACY else lines:
        print_line(console, line)
    print_table(_class_table(report.classes), console)
    if report.confusions is not None:
        largest = report.confusions[:SHOWN_CONFUSIONS]
        listed = ", ".join(f"{c.truth} as {c.predicted} {c.images}" for c in largest)
        print_line(console, f"largest confusions: {listed or 'none'}")


def _headline(r: "FileReport") -> str:
    if r.map is not None:
        return f"mAP {r.map:.3f} %, loss {r.loss:.4f}, {counted(r.samples, 'images')}"
    top5 = "" if r.top5 is None else f"top-5 {r.top5:.3f} %, "
    few = r.ranked_classes < len(r.classes)
    ranked = f", ranked among the {r.ranked_classes} classes with images" if few else ""
    error = f"(standard error {r.standard_error:.3f})"
    return f"top-1 {r.top1:.3f} % {error}, {top5}loss {r.loss:.4f}, {counted(r.samples, 'images')}{ranked}"


def _means(r: "FileReport") -> str:
    scaled = "" if r.temperature is None else f", {r.ece_scaled:.3f} % at temperature {r.temperature:.3f}"
    balanced = "" if r.balanced_accuracy is None else f"balanced accuracy {r.balanced_accuracy:.3f} %, "
    ece = f"expected calibration error {r.ece:.3f} %{scaled} (a perfectly calibrated model: {r.ece_by_chance:.3f} %)"
    return f"{balanced}macro F1 {r.macro_f1:.3f} %, {ece}"


def _class_table(classes: Sequence["NamedClass"]) -> "Table":
    shown, title = [c for c in classes if c.images], None
    if len(shown) > SHOWN_CLASSES:
        shown = sorted(shown, key=lambda c: c.f1 or 0.0)[:SHOWN_CLASSES]
        title = f"the {SHOWN_CLASSES} classes with the lowest F1 (--json gives all)"
    columns = {key: words for key, words in CLASS_COLUMNS.items() if any(getattr(c, key) is not None for c in classes)}
    figures = ([getattr(c, key) for key in columns] for c in shown)
    rows = (
        [c.name, str(c.images), *("-" if value is None else f"{value:.1f}" for value in values)]
        for c, values in zip(shown, figures, strict=True)
    )
    return compact_table(title, ["class", "images", *columns.values()], rows)


def figure(value: float | None, digits: int, error: float | None = None) -> str:
    """Format a score, with its standard error if that is known."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def print_table_of_files(files: Sequence["FileReport"], console: "Console") -> None:
    """Print one row of scores for each evaluated file."""
    score = files[0].best_by
    second, name = BESIDE[score]
    rows = [
        [
            Path(r.data).stem, f"{r.samples:,}", f"{r.ranked_classes:,}",
            *(figure(getattr(r, s), 2, r.standard_error if s == TOP1 else None) for s in (score, second)),
            f"{r.loss:.4f}", f"{r.ece:.2f}",
        ]
        for r in files
    ]  # fmt: skip
    header = ["file", "images", "classes", SCORE_NAMES[score], name, "loss", "ECE"]
    title = "in percent. classes: the classes among which predictions are ranked"
    print_table(compact_table(title, header, rows), console)
