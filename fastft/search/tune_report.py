"""The result of a search: table, JSON, and the tuned recipe."""

import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from beton_tools.base.atomic import write_text
from beton_tools.base.console import compact_table, format_duration, markdown_table, print_table
from beton_tools.base.errors import report_disk_errors
from fastft.recipe.schema import AUTO
from fastft.run.evaluations import TOP1
from fastft.search.estimate import Result, ShortRun
from fastft.search.runs import DOCUMENT, SPACE, TABLE, write_results
from fastft.search.settings import DEFAULT, FACTORS, count_epochs, grid, mid_lr, with_setting
from fastft.train.augmentation_choice import DECIDED

TUNED = "tuned.yaml"
MIDDLE, BEST = "middle lr", " (best)"


def write_report(result: Result, folder: Path) -> None:
    """Write tuned.yaml, table.md and results.json, each atomically. Raises UserError: the disk is full or fails."""
    with report_disk_errors(folder, SPACE):
        write_text(folder / TUNED, tuned_recipe(result, folder))
    title = f"Learning rates of {result.recipe.name}"
    parts = [markdown_table(*_table(result)), *conclusion(result)]
    write_results(folder, title, parts, as_json(result))


def print_result(result: Result, folder: Path, console: Console) -> None:
    header, lines = _table(result)
    shown = [k for k, name in enumerate(header) if name != MIDDLE]  # for a terminal of 80 columns
    rows = ([line[k] for k in shown] for line in lines)
    table = compact_table(f"validation {_measure(result)} in percent", [header[k] for k in shown], rows)
    table.columns[0].no_wrap = True
    print_table(table, console)
    for sentence in [*conclusion(result), f"written: {folder}/{', '.join([TUNED, TABLE, DOCUMENT])}"]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def conclusion(result: Result) -> list[str]:
    """The setting that was found, the images that its figure is from, and trainings that did not fit the budget, as sentences."""
    best, rungs = result.best, result.rungs
    optim = best.run.recipe.optim
    lines = [f"best: {best.setting.title} (lr {optim.lr:g}, layer_decay {optim.layer_decay:g})", _accuracy(result)]
    if best.rung == 0 and not result.complete and best.setting == DEFAULT:
        lines = [
            f"too little time: only runs of {count_epochs(rungs[0])} of {rungs[-1]} have ended, which are too short to choose "
            "by: the recipe's own learning rates are kept"
        ]
    if result.complete and {best.setting.head, best.setting.mid} & {FACTORS[0], FACTORS[-1]}:
        lines.append("it is at the edge of the grid: a search around the tuned recipe may find a better one")
    if result.skipped:
        listed = ", ".join(f"{setting.title} ({count_epochs(epochs)})" for setting, epochs in result.skipped)
        lines.append(
            f"did not fit into the budget ({format_duration(result.spent)} spent): {listed}; the same command with a larger "
            "--budget continues"
        )
    return lines


def _measure(result: Result) -> str:
    return "top-1" if result.best.measure == TOP1 else "balanced accuracy"


def _accuracy(result: Result) -> str:
    best, f = result.best, result.figures
    if f is not None:
        found = f.top1 if best.measure == TOP1 else f.balanced_accuracy
        use = (
            f"{f.shared:,} of them training or validation images"
            if f.shared
            else "none of which has the bytes of a training or validation image"
        )
        text = f"test {_measure(result)} {found.value:.2f} ± {found.standard_error:.2f} % of {f.images:,} images, {use}"
        if best.measure != TOP1:
            text += f" (top-1 {f.top1.value:.2f} %)"
        if found.gain is None or best.setting == DEFAULT:
            return text
        gain = f"gain {found.gain:+.2f} ± {found.gain_standard_error:.2f} points on the same images"
        return f"{text}; the recipe's own setting {found.default:.2f} %, {gain}"
    assert best.score is not None and result.optimism is not None
    corrected = best.score - result.optimism
    text = (
        f"validation {_measure(result)} {best.score:.2f} % after {count_epochs(best.epochs)}; these images also chose the "
        f"setting. Corrected by a bootstrap of the choice: {corrected:.2f} %"
    )
    if result.test is not None:
        return f"{text}. {result.test} is not evaluated before a setting is trained in full"
    return text if result.complete else f"{text}. Not trained in full"


def tuned_recipe(result: Result, folder: Path) -> str:
    """The recipe with the best setting as a YAML file that `fastft train` takes as it is."""
    recipe = with_setting(result.recipe, result.best.setting, result.layers)
    for option in result.recipe.automatic & DECIDED:
        recipe = recipe.with_option(option, AUTO)
    sections = json.loads(json.dumps(recipe.as_dict()))  # tuples become lists
    sections["train"]["run_dir"] = None
    comments = [f"fastft train {folder / TUNED}", "", f"Found by fastft tune {result.recipe.name}."]
    head = "".join(f"# {line}".rstrip() + "\n" for line in [*comments, *conclusion(result)])
    return head + yaml.safe_dump(sections, sort_keys=False)


def as_json(result: Result) -> dict[str, Any]:
    return {
        "recipe": result.recipe.name,
        "rungs": list(result.rungs),
        "complete": result.complete,
        "measure": result.best.measure,
        "seconds": result.spent,
        "best": _trial_json(result, result.best),
        "test": None if result.figures is None else {"file": str(result.test), **result.figures.as_dict()},
        "optimism": result.optimism,
        "conclusion": conclusion(result),
        "trials": [_trial_json(result, trial) for trial in result.trials],
        "skipped": [{"setting": setting.title, "epochs": epochs} for setting, epochs in result.skipped],
    }


def _trial_json(result: Result, trial: ShortRun) -> dict[str, Any]:
    return {
        "setting": trial.setting.title,
        "lr": trial.run.recipe.optim.lr,
        "layer_decay": trial.run.recipe.optim.layer_decay,
        "mid_lr": mid_lr(trial.run.recipe, result.layers),
        "rung": trial.rung,
        "epochs": trial.epochs,
        "score": trial.score,
        "error": trial.failure,
        "run": str(trial.run.folder),
    }


def _table(result: Result) -> tuple[list[str], list[list[str]]]:
    """(header, a line per setting)."""
    header = ["setting", "lr", "layer_decay", MIDDLE, *map(count_epochs, result.rungs)]
    cells = {(trial.setting, trial.rung): trial for trial in result.trials}
    lines = []
    for setting in grid(result.recipe, result.layers):
        recipe = with_setting(result.recipe, setting, result.layers)
        mid = f"{mid_lr(recipe, result.layers):.2e}"
        marked = f"{setting.title}{BEST}" if setting == result.best.setting else setting.title
        scores = [_cell(cells.get((setting, rung))) for rung in range(len(result.rungs))]
        lines.append([marked, f"{recipe.optim.lr:.3g}", f"{recipe.optim.layer_decay:.3f}", mid, *scores])
    return header, lines


def _cell(trial: ShortRun | None) -> str:
    if trial is None:
        return "-"
    return "failed" if trial.score is None else f"{trial.score:.2f}"
