"""`fastft eval CKPT`: scores of a checkpoint, and how they are printed."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beton_tools.base import torchrun
from beton_tools.base.console import compact_table, print_table, say
from fastft.cli.arguments import add_checkpoint, add_shared, print_line, show
from fastft.run.evaluations import BALANCED_ACCURACY, BESIDE, SCORE_NAMES, TOP1, main_score

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXAMPLE = "fastft eval runs/final_b16 --data val.beton"
TAKES_OPTIONS = False
CLASS_COLUMNS = {
    "precision": "precision %", "recall": "recall %", "f1": "F1 %", "average_precision": "AP %", "threshold": "threshold %",
}  # fmt: skip
SHOWN_CLASSES, SHOWN_CONFUSIONS = 30, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    data = "default: the recipe's validation file; give it several times for a table of several files"
    parser.add_argument("--data", metavar="FILE.beton", type=Path, action="append", default=[], help=data)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the prediction for every image to a table")
    add_shared(parser, "logit-adjustment", "only-present-classes")
    add_shared(parser, "device", "json", "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.evaluate.evaluation import evaluate_files

    options = {"weights": args.weights, "logit_adjustment": args.logit_adjustment}
    options |= {"csv": args.csv, "overwrite": args.overwrite}
    evaluations = evaluate_files(
        args.checkpoint, args.data, args.device, only_present_classes=args.only_present_classes, **options
    )
    if torchrun.rank() != 0:  # every process has the same sums; rank 0 prints them
        return 0
    say(f"using the {evaluations[0]['weights']}")
    if len(evaluations) == 1:
        return show(evaluations[0], args.json, print_evaluation)
    return show(evaluations, args.json, print_table_of_files)


# what is printed -------------------------------------------------------------------------------------------------------


def print_evaluation(scores: Mapping[str, Any], console: "Console") -> None:
    """Print the figures, the classes (the worst by F1 if there are many), and the largest confusions."""
    lines = [_headline(scores), _means(scores)]
    for line in reversed(lines) if main_score(scores) == BALANCED_ACCURACY else lines:
        print_line(console, line)
    print_table(_class_table(scores["classes"]), console)
    if "confusions" in scores:
        largest = scores["confusions"][:SHOWN_CONFUSIONS]
        listed = ", ".join(f"{c['class']} as {c['predicted']} {c['images']}" for c in largest)
        print_line(console, f"largest confusions: {listed or 'none'}")


def _headline(s: Mapping[str, Any]) -> str:
    if "map" in s:
        return f"mAP {s['map']:.3f} %, loss {s['loss']:.4f}, {s['samples']} images"
    top5 = f"top-5 {s['top5']:.3f} %, " if "top5" in s else ""
    few = s["ranked_classes"] < len(s["classes"])
    ranked = f", ranked among the {s['ranked_classes']} classes with images" if few else ""
    return (
        f"top-1 {s['top1']:.3f} % (standard error {s['standard_error']:.3f}), {top5}loss {s['loss']:.4f}, "
        f"{s['samples']} images{ranked}"
    )


def _means(s: Mapping[str, Any]) -> str:
    scaled = f"{s['ece_scaled']:.3f} % at temperature {s['temperature']:.3f}; " if "temperature" in s else ""
    balanced = f"balanced accuracy {s['balanced_accuracy']:.3f} %, " if "balanced_accuracy" in s else ""
    ece = f"expected calibration error {s['ece']:.3f} % ({scaled}by chance {s['ece_by_chance']:.3f} %)"
    return f"{balanced}macro F1 {s['macro_f1']:.3f} %, {ece}"


def _class_table(classes: Sequence[Mapping[str, Any]]) -> "Table":
    with_images = [c for c in classes if c["images"]]
    shown, title = with_images, None
    if len(with_images) > SHOWN_CLASSES:
        shown = sorted(with_images, key=lambda c: c["f1"])[:SHOWN_CLASSES]
        title = f"the {SHOWN_CLASSES} classes with the lowest F1 (--json gives all)"
    columns = {key: words for key, words in CLASS_COLUMNS.items() if any(c.get(key) is not None for c in classes)}
    rows = (
        [c["name"], str(c["images"]), *("-" if c[key] is None else f"{c[key]:.1f}" for key in columns)] for c in shown
    )
    return compact_table(title, ["class", "images", *columns.values()], rows)


def figure(s: Mapping[str, Any], score: str, digits: int) -> str:
    """A score; top-1 with its standard error."""
    error = f" ± {s['standard_error']:.{digits}f}" if score == TOP1 else ""
    return f"{s[score]:.{digits}f}{error}" if score in s else "-"


def print_table_of_files(files: Sequence[Mapping[str, Any]], console: "Console") -> None:
    """Print one row of figures for each evaluated file."""
    score = main_score(files[0])
    second, name = BESIDE[score]
    rows = [
        [
            Path(s["data"]).stem, f"{s['samples']:,}", f"{s['ranked_classes']:,}",
            figure(s, score, 2), figure(s, second, 2), f"{s['loss']:.4f}", f"{s['ece']:.2f}",
        ]
        for s in files
    ]  # fmt: skip
    header = ["file", "images", "classes", SCORE_NAMES[score], name, "loss", "ECE"]
    title = "in percent; classes: those that predictions are ranked among"
    print_table(compact_table(title, header, rows), console)
