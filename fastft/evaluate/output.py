"""Evaluations and predictions on the console and as CSV files."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from beton_tools.base.atomic import atomic_path
from beton_tools.base.console import compact_table, make_console, print_table, printable
from beton_tools.base.errors import UserError
from fastft.evaluate.prediction import Prediction
from fastft.run.metrics import Predictions

SHOWN_CLASSES, SHOWN_CONFUSIONS = 30, 5


def print_evaluation(scores: Mapping[str, Any], console: Console) -> None:
    """Print the figures, the classes (the worst by F1 if there are many), and the largest confusions."""
    print_line(console, _headline(scores))
    print_line(console, _means(scores))
    if "knn" in scores:
        bank = f"{scores['knn_train_images']:,} training images"
        print_line(console, f"by the {scores['knn']} nearest of {bank}")
    print_table(_class_table(scores["classes"]), console)
    largest = scores["confusions"][:SHOWN_CONFUSIONS]
    listed = ", ".join(f"{c['class']} as {c['predicted']} {c['images']}" for c in largest)
    print_line(console, f"largest confusions: {listed or 'none'}")


def print_line(console: Console, text: str) -> None:
    console.print(printable(text), soft_wrap=True)


def _headline(s: Mapping[str, Any]) -> str:
    top5 = f"top-5 {s['top5']:.3f} %, " if "top5" in s else ""
    few = s["ranked_classes"] < len(s["classes"])
    ranked = f", ranked among the {s['ranked_classes']} classes with images" if few else ""
    return (
        f"top-1 {s['top1']:.3f} % (standard error {s['standard_error']:.3f}), {top5}loss {s['loss']:.4f}, "
        f"{s['samples']} images{ranked}"
    )


def _means(s: Mapping[str, Any]) -> str:
    scaled = ""
    if "temperature" in s:
        lower = f"{s['ece_scaled']:.3f} % at temperature {s['temperature']:.3f}"
        scaled = f" ({lower if s['ece_scaled'] < s['ece'] else 'no temperature lowers it'})"
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
    rows = ([c["name"], str(c["images"]), *(_percent(c[k]) for k in ("precision", "recall", "f1"))] for c in shown)
    return compact_table(title, ["class", "images", "precision %", "recall %", "F1 %"], rows)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def print_table_of_files(files: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one row of figures for each evaluated file."""
    header = ["file", "images", "classes", "top-1", "top-5", "loss", "ECE"]
    rows = [
        [
            Path(s["data"]).stem, f"{s['samples']:,}", f"{s['ranked_classes']:,}",
            f"{s['top1']:.2f} ± {s['standard_error']:.2f}", f"{s['top5']:.2f}" if "top5" in s else "-",
            f"{s['loss']:.4f}", f"{s['ece']:.2f}",
        ]
        for s in files
    ]  # fmt: skip
    title = "in percent; classes: those that predictions are ranked among"
    print_table(compact_table(title, header, rows), console)


def print_predictions(predictions: Iterable[Prediction]) -> None:
    """Print one line per image file."""
    console = make_console()
    for p in predictions:
        pairs = zip(p.classes, p.probabilities, strict=True)
        classes = ", ".join(f"{name} {probability:.1%}" for name, probability in pairs)
        print_line(console, f"{p.path}: {classes or f'not read: {p.error}'}")


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write a CSV file with one row per image file and rank.

    Raises:
        UserError: it cannot be written.
    """

    def rows() -> Iterator[Sequence[object]]:
        for p in predictions:
            if p.error is not None:
                yield [p.path, "", "", "", p.error]
            for rank, (name, probability) in enumerate(zip(p.classes, p.probabilities, strict=True), 1):
                yield [p.path, rank, name, f"{probability:.6f}", ""]

    write_csv(path, ["file", "rank", "class", "probability", "error"], rows())


def write_predictions_table(predictions: Predictions, names: Sequence[str], data: str | Path, path: Path) -> None:
    """Write a CSV file with one row per image, in the order of the file `data`.

    image: index in the file. file: its name in the source, if the manifest has it. class, predicted: names.
    probability, class_probability: softmax probability of the predicted and of the true class.

    Raises:
        UserError: it cannot be written.
    """
    from beton_tools.read.beton_set import BetonSet  # loads Numba, which predictions of image files do without

    p = predictions
    files = BetonSet.open(data).read_names() or [""] * len(p.labels_N)
    columns = (values.tolist() for values in (p.labels_N, p.predicted_N, p.confidence_N, p.truth_N))
    rows = (
        [image, file, names[label], names[predicted], f"{confidence:.6f}", f"{truth:.6f}"]
        for image, (file, label, predicted, confidence, truth) in enumerate(zip(files, *columns, strict=True))
    )
    write_csv(path, ["image", "file", "class", "predicted", "probability", "class_probability"], rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, which appears under its name when it is complete. Names that are not UTF-8 keep their bytes.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with (
            atomic_path(path) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
