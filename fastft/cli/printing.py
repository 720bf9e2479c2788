"""Tables that the commands print: explanations, prices, recipes and checks."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beton_tools.base.console import compact_table, counted, print_table
from beton_tools.base.typed_json import UNSET
from fastft.cli.doctor import FAIL, OK, WARN, Checks
from fastft.cost.explanation import Cost, Explanation, RecipeList, Schedule
from fastft.cost.gpu_memory import SHARD, describe_no_fit
from fastft.cost.price import LOADER_LIMITS, EstimateRow, Prices, Sum, format_hours, format_range
from fastft.cost.roofline import FASTEST, SLOWEST
from fastft.jobs.choices_table import print_choices
from fastft.recipe import AskedRecipe
from fastft.recipe.check import show_value
from fastft.recipe.constants import EPOCHS
from fastft.recipe.published import Preprocessing
from fastft.recipe.schema import PUBLISHED, option_fields
from fastft.recipe.training_images import NO_EXPECTATION

LISTED_LRS = 100  # learning rates shown at most. --json has the learning rates of all epochs
WIDE = 80  # characters. From this width on, tables show several GPUs
NOTE = "modelled from FLOPs and memory traffic, not measured"
MEASURED_NOTE = "measured: images/s from fastft bench. The others are modelled"
ENDS = (
    "hours and MFU: from the fastest to the slowest published training that resembles this one. fastft cost names them"
)

# fastft explain ----------------------------------------------------------------------------------------------------------


def print_explanation(
    values: Explanation, recipe: AskedRecipe, console: Console, gpus: Sequence[str], verbose: bool
) -> None:
    """Print the run, then its cost on some GPUs.

    With `verbose`, also print every option, parameter group and learning rate.

    Args:
        recipe: the one that is explained.
    """
    schedule = values.schedule
    console.rule(recipe.name)
    lines = {"training": _describe_training(recipe)}
    lines["schedule"] = f"{counted(schedule.total_steps, 'steps')}, {schedule.steps_per_epoch:,} per epoch"
    if schedule.total_steps == 0:
        lines = {"training": "none: the run stops at the linear probe"}
    elif verbose:
        lines["schedule"] += _listed_lrs(schedule)
    lines |= {"augment": "\n".join(values.augment), "images": _describe_images(values.images, recipe)}
    lines |= {"accuracy": values.expectation}
    lines |= {"cost": _describe_hours(values.cost, gpus)} | ({} if values.here is UNSET else {"time": values.here})
    _print_lines(lines, console)
    for warning in values.warnings:
        console.print(f"warning: {warning}")
    print_choices(values.choices, console)
    _print_cost(values.cost, values.gpus, gpus, console)
    if verbose:
        _print_groups(values, console)
        sections = {name: options for name, options in recipe.as_dict().items() if name != "about"}
        shown = {s: ", ".join(f"{k} {show_value(v)}" for k, v in sections[s].items()) for s in sections}
        _print_lines(shown, console)
    else:
        console.print("--verbose adds other GPUs, every option, parameter group and learning rate")


def _describe_training(recipe: AskedRecipe) -> str:
    """Describe what you ask first about a run: its length, batch size, learning rates and EMA."""
    optim, schedule, decay = recipe.optim, recipe.schedule, recipe.ema.decay
    epochs, stop = schedule.epochs, schedule.stop_epoch
    whole = counted(epochs, "epochs")
    length = whole if stop is None else f"{stop} of {whole}"
    if schedule.budget is not None and EPOCHS in recipe.automatic:
        length = f"at most {length}"
    return (
        f"{length}, batch size {optim.batch_size:,}, lr {optim.lr:g} with layer decay {optim.layer_decay:g}, "
        f"{schedule.warmup_epochs:g} epochs of warm-up, {f'EMA decay {decay:g}' if decay else 'no EMA'}"
    )


def _describe_images(published: Preprocessing, recipe: AskedRecipe) -> str:
    """Describe how the weights want their images and who says so, and where the recipe does otherwise."""
    options = {
        key: field.metadata["published"] for key, field in option_fields().items() if field.metadata["published"]
    }
    now = recipe.flat()
    others = [
        f"{key} is {show_value(now[key])}, published is {show_value(getattr(published, stated))} (--{key}={PUBLISHED})"
        for key, stated in options.items()
        if show_value(now[key]) != show_value(getattr(published, stated))
    ]
    described = f"{published.in_words()} (from {published.source})"
    return "\n".join([described, *others])


def _describe_hours(cost: Cost, gpus: Sequence[str]) -> str:
    """Return the GPU-hours on the GPUs that are shown and whose hours are counted."""
    assumed = cost.assumptions
    hours = [f"{format_hours(assumed[gpu]).rstrip('*')} on {gpu}" for gpu in gpus if assumed[gpu].estimates]
    return f"GPU-hours {', '.join(hours)} (modelled)" if hours else "GPU-hours not counted"


def _print_lines(lines: dict[str, str], console: Console) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    for name, text in lines.items():
        table.add_row(name, Text(text))
    print_table(table, console)


def _listed_lrs(schedule: Schedule) -> str:
    lrs = [f"{lr:.3g}" for lr in schedule.lr_by_epoch]
    every = -(-len(lrs) // LISTED_LRS)
    of = "each epoch" if every == 1 else f"every {every} epochs"
    return f", lr at the start of {of}: " + " ".join(lrs[::every])


def _print_groups(values: Explanation, console: Console) -> None:
    header = ["layer", "lr scale", "weight decay", "parameters"]
    rows = [[str(g.layer_id), f"{g.lr_scale:.6g}", f"{g.weight_decay:g}", f"{g.parameters:,}"] for g in values.groups]
    title = f"{values.trainable_parameters:,} trainable parameters"
    print_table(compact_table(title, header, rows, left=0), console)


def _print_cost(cost: Cost, count: int, gpus: Sequence[str], console: Console) -> None:
    gflop, val = cost.train_flops_per_image / 1e9, cost.val_images
    hours = "GPU-hours on 8 GPUs" if count > 1 else "hours on one GPU"
    rows, misfits = [], []
    for name in gpus:
        cost_here, need = cost.assumptions[name], cost.assumptions[name].memory
        mfus = {row.basis: f"{100 * row.mfu:.0f}" for row in cost_here.estimates}
        cells = [name, "not", "counted"]
        if mfus:
            cells = [name, format_hours(cost_here), f"{mfus[SLOWEST]}-{mfus[FASTEST]} %", f"{mfus['roofline']} %"]
        if need is not None and not need.fits:
            misfits.append(f"{name}: {describe_no_fit(need)}")
            cells = [name, "does", "not fit"]
        elif need is not None:
            cells += [f"{need.gb:.0f} of {need.card_gb:.0f}", str(need.micro_batch)]
        rows.append(cells)
    header = ["GPU", "hours", "MFU", "roofline", "GB", "images"]
    print_table(compact_table(f"{gflop:.1f} GFLOP per training image, {hours} (modelled)", header, rows), console)
    star = [LOADER_LIMITS] if any("*" in row[1] for row in rows) else []
    memory = "GB: memory used on each GPU, modelled for a forward pass with this many images"
    for line in [ENDS, f"{val.what}: {val.value:,.0f}", *star, memory, *misfits, *([SHARD] if misfits else [])]:
        console.print(line)


# fastft cost -------------------------------------------------------------------------------------------------------------


def print_prices(values: Sequence[Prices], console: Console) -> None:
    """Print a table and its assumptions for each GPU kind. Shared assumptions are printed once, at the end."""
    legends = [_legend(prices) for prices in values]
    shared = [line for line in legends[0] if len(values) > 1 and all(line in legend for legend in legends)]
    for prices, legend in zip(values, legends, strict=True):
        console.print(_prices_title(prices))
        print_table(_prices_table(prices), console)
        for line in legend:
            if line not in shared:
                console.print(line, soft_wrap=True)
    for line in shared:
        console.print(line, soft_wrap=True)


def _prices_title(values: Prices) -> str:
    measured = any(e.basis == "measured" for recipe in values.recipes for e in recipe.estimates)
    title = (
        f"{values.gpus} x {values.gpu} ({values.peak_flops / 1e12:g} TFLOP/s): {MEASURED_NOTE if measured else NOTE}"
    )
    if values.total is None:
        return title
    return f"{title}, {counted(values.total.rows, 'rows')}, {counted(values.total.trainings, 'runs')}"


def _prices_table(values: Prices) -> Table:
    money = values.price is not None
    table = compact_table(None, ["recipe", "top-1", "MFU", "", "wall h", "GPU-h", "steps", *["money"] * money])
    table.columns[3].justify = "left"
    for recipe in values.recipes:
        top1 = "-" if recipe.expected_top1 is None else f"{recipe.expected_top1:g}"
        first = [recipe.recipe, top1]
        for e in recipe.estimates:
            table.add_row(*map(Text, (*first, *_cells(e))))
            first = ["", ""]
        table.add_section()
    for k, of_all in enumerate(values.total.estimates if values.total else ()):
        cells = of_all.basis, *_hours(of_all), "", *_money(of_all)
        table.add_row("" if k else "total", "", "", *cells, style="bold")
    return table


def _legend(values: Prices) -> list[str]:
    """Explain the table's rows and columns, and list what is assumed."""
    estimates = [e for recipe in values.recipes for e in recipe.estimates]
    lines = ["MFU is relative to the GPU's peak. steps: share of the wall time. The rest is evaluation and start-up."]
    lines += [f"  {basis:<9} {source}" for basis, source in dict.fromkeys((e.basis, e.source) for e in estimates)]
    lines += [f"  {row.basis:<9} {row.what}: {_number(row.value)}" for row in values.assumptions]
    unexpected: dict[str, list[str]] = {}  # why recipes have no expected accuracy, each reason once
    for recipe in values.recipes:
        if recipe.expected_top1 is None and recipe.expectation != NO_EXPECTATION:
            unexpected.setdefault(recipe.expectation, []).append(recipe.recipe)
    lines += [f"{', '.join(names)}: {reason}" for reason, names in unexpected.items()] + values.remarks
    return lines + [LOADER_LIMITS] * any(e.limited_by == "loader" for e in estimates)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def _cells(e: EstimateRow) -> list[str]:
    s = e.seconds
    steps = (s.train + s.stall) / (s.train + s.stall + s.evaluate + s.start)
    star = "*" if e.limited_by == "loader" else ""
    wall, gpu = _hours(e)
    return [f"{e.value:.1%}", e.basis, wall, f"{gpu}{star}", f"{steps:.0%}", *_money(e)]


def _hours(e: EstimateRow | Sum) -> tuple[str, str]:
    hours, minutes = divmod(round(60 * e.wall_hours), 60)
    return f"{hours}:{minutes:02}", f"{e.gpu_hours:.1f}"


def _money(e: EstimateRow | Sum) -> list[str]:
    return [] if e.money is None else [f"{e.money:,.2f}"]


# fastft recipes, doctor -----------------------------------------------------------------------------------------

RECIPE_NAMES = (
    "final trains the paper's whole schedule. frugal stops it where the EMA is best in the paper's log, and quick and brief stop "
    "earlier (for B/16, with 0.2 and 0.5 points less). fitted is short and starts from a fitted head. probe stops at a linear "
    "probe on a frozen tower. _half freezes the lower half of the blocks.",
    "Start with photos for your own photographs. For ImageNet, start with frugal_b16_half, or with "
    "frugal_b16, whose accuracy is in a log.",
    "Hours are GPU-hours on eight GPUs. They are modelled, not measured. They go from the fastest to the slowest "
    "published training that resembles fastft's. fastft cost NAME names these trainings, and fastft explain NAME the "
    "source of the top-1.",
    "CLIP weights that were fine-tuned on ImageNet-12k before reach a higher accuracy in the same hours. The table 'starts' has "
    "them, with these schedules, such as 'starts[half frozen, laion2b, 12k]'.",
    "Train a whole table with fastft sweep NAME, or one row with fastft train 'NAME[ROW]'.",
)


def print_recipes(values: RecipeList, console: Console) -> None:
    """Print the recipes by group, then the tables. A narrow console gets only the first GPU's hours."""
    gpus = list(values.recipes[0].gpu_hours)[: None if console.width >= WIDE else 1]
    table = compact_table(None, ["recipe", "top-1", *(f"{gpu} h" for gpu in gpus), ""])
    table.columns[0].no_wrap, table.columns[-1].no_wrap, table.columns[-1].justify, group = True, False, "left", ""
    for recipe in values.recipes:
        if recipe.group != group:
            group = recipe.group
            table.add_row(Text(group, style="bold"))
        top1, hours = recipe.expected_top1, [recipe.gpu_hours_range[gpu] for gpu in gpus]
        cells = ["" if top1 is None else f"{top1:.1f}", *("" if h is None else format_range(*h) for h in hours)]
        table.add_row(*map(Text, (recipe.name, *cells, recipe.what)))
    print_table(table, console)
    for sentence in RECIPE_NAMES:
        console.print(sentence)
    rows = [[t.name, f"{t.source}: {t.title}", str(t.rows)] for t in values.tables]
    print_table(compact_table(None, ["table", "", "rows"], rows, left=2), console)


def print_checks(values: Checks, console: Console) -> None:
    colours = {OK: "green", WARN: "yellow", FAIL: "bold red"}
    for c in values.checks:
        line = Text.assemble((f"{c.status:<5}", colours[c.status]), f" {c.name:<12} {c.found}")
        console.print(line, soft_wrap=True)
        if c.fix:
            console.print(f"{'':<18} fix: {c.fix}", soft_wrap=True)
