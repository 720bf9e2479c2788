"""The results of an evaluation on the console and as a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beton_tools.base.atomic import atomic_path
from beton_tools.base.console import printable
from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.run.metrics import Predictions

SHOWN_CLASSES, SHOWN_CONFUSIONS = 30, 5
COLUMNS = ("image", "file", "class", "predicted", "probability", "class_probability")


def print_evaluation(scores: Mapping[str, Any], console: Console) -> None:
    """Print the figures, the classes (the worst by F1 if there are many), and the largest confusions."""
    _print_line(console, _headline(scores))
    _print_line(console, _means(scores))
    if "knn" in scores:
        _print_line(
            console, f"by the {scores['knn']} nearest of {scores['knn_train_images']:,} training images"
        )
    console.print(_class_table(scores["classes"]))
    largest = scores["confusions"][:SHOWN_CONFUSIONS]
    listed = ", ".join(f"{c['class']} as {c['predicted']} {c['images']}" for c in largest)
    _print_line(console, f"largest confusions: {listed or 'none'}")


def _headline(s: Mapping[str, Any]) -> str:
    top5 = f"top-5 {s['top5']:.3f} %, " if "top5" in s else ""
    ranked = f", ranked among the {s['ranked_classes']} classes with images" if is_ranked_among_few(s) else ""
    return (
        f"top-1 {s['top1']:.3f} % (standard error {s['standard_error']:.3f}), {top5}loss {s['loss']:.4f}, "
        f"{s['samples']} images{ranked}"
    )


def is_ranked_among_few(s: Mapping[str, Any]) -> bool:
    """Whether some of the model's classes were left out of the ranking."""
    return s["ranked_classes"] < len(s["classes"])


def print_table_of_files(files: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one row of figures for each evaluated file."""
    table = Table(title="in percent; classes: those that predictions are ranked among", title_justify="left")
    table.add_column("file", overflow="fold")
    for name in ("images", "classes", "top-1", "top-5", "loss", "ECE"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in files:
        top1, top5 = (
            f"{s['top1']:.2f} ± {s['standard_error']:.2f}",
            f"{s['top5']:.2f}" if "top5" in s else "-",
        )
        counts = f"{s['samples']:,}", f"{s['ranked_classes']:,}"
        table.add_row(
            Text(printable(Path(s["data"]).stem)),
            *counts,
            top1,
            top5,
            f"{s['loss']:.4f}",
            f"{s['ece']:.2f}",
        )
    console.print(table)


def _means(s: Mapping[str, Any]) -> str:
    scaled = f" ({s['ece_scaled']:.3f} % at temperature {s['temperature']:.3f})" if "temperature" in s else ""
    return (
        f"balanced accuracy {s['balanced_accuracy']:.3f} %, macro F1 {s['macro_f1']:.3f} %, "
        f"expected calibration error {s['ece']:.3f} %{scaled}"
    )


def _class_table(classes: Sequence[Mapping[str, Any]]) -> Table:
    with_images = [c for c in classes if c["images"]]
    shown, title = with_images, None
    if len(with_images) > SHOWN_CLASSES:
        shown = sorted(with_images, key=lambda c: c["f1"])[:SHOWN_CLASSES]
        title = f"the {SHOWN_CLASSES} classes with the lowest F1 (--json gives all)"
    table = Table("class", title=title, title_justify="left")
    for name in ("images", "precision %", "recall %", "F1 %"):
        table.add_column(name, justify="right")
    for c in shown:
        figures = ("-" if c[k] is None else f"{c[k]:.1f}" for k in ("precision", "recall", "f1"))
        table.add_row(Text(printable(c["name"])), str(c["images"]), *figures)
    return table


def _print_line(console: Console, text: str) -> None:
    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)


def write_predictions_table(
    predictions: Predictions, names: Sequence[str], data: str | Path, path: Path
) -> None:
    """Write a CSV file with one row per image, in the order of the file `data`.

    image: index in the file. file: its name in the source, if the manifest has it. class, predicted: names.
    probability, class_probability: softmax probability of the predicted and of the true class.

    Raises:
        UserError: it cannot be written.
    """
    files = BetonSet.open(data).read_names() or [""] * len(predictions.labels_N)
    columns = (predictions.labels_N, predictions.predicted_N, predictions.confidence_N, predictions.truth_N)
    try:
        with (
            atomic_path(path) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for image, (name, label, predicted, confidence, truth) in enumerate(
                zip(files, *(c.tolist() for c in columns), strict=True)
            ):
                row = [image, name, names[label], names[predicted], f"{confidence:.6f}", f"{truth:.6f}"]
                writer.writerow(row)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
