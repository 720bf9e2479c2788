"""The tables with modelled costs, which tables.py makes, and the traced traffic that they read."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from datetime import date
from functools import cache
from itertools import product
from pathlib import Path

import yaml
from markupsafe import Markup

from beton_tools.base.console import markdown_table as markdown
from fastft.cost.explanation import NOT_RUN, ListedRecipe, list_recipes
from fastft.cost.price import MACHINE_GPUS, estimate, format_hours, predict, with_cores
from fastft.cost.roofline import ATTENTION_SHARE, PATHS, PLANS, Mfu, Plan, chosen_path, roofline_mfu
from fastft.cost.traffic import KERNELS, trace_image, traffic_key
from fastft.cost.work import recipe_flops
from fastft.jobs.sweep import as_published
from fastft.machine.gpus import GPUS, MAIN_GPUS, Gpu
from fastft.model import count_flops, load_arch
from fastft.model.recipe_model import recipe_arch
from fastft.model.timm_arch import pretrained_cfg
from fastft.recipe import Recipe, load_recipe
from fastft.recipe.constants import TIMM
from fastft.recipe.paper import LARGE, paper_recipe
from fastft.recipe.recipe_file import TABLES, recipe_names
from fastft.recipe.tables import load_sweep
from fastft.recipe.training_images import expected_top1
from fastft.report.charts import Canvas, svg_file, svg_text

README_RECIPES = "probe_dinov2_b14", "probe_dinov2_l14", "probe_dinov3_l16", "brief_b16_half", "final_b16", "final_l14"
PAPER_ROWS = {"baseline_b16": "baseline", "final_b16": "no mixup or CutMix", "final_b16_384": "resolution 384"}
PUBLISHED = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class PublishedRun:
    """A row in published.yaml, which explains the keys. It has either mfu or images_per_second."""

    gpu: str
    name: str
    arch: str
    source: str
    mfu: float | None = None
    images_per_second: float | None = None
    image_size: int = 224
    remark: str = ""
    path: str | None = None
    plans: tuple[str, ...] = ()
    read: date | None = None

    @property
    def recipe(self) -> Recipe:
        options = [f"arch={self.arch}", f"image_size={self.image_size}", "freeze_conv1=false", "weights=random"]
        return load_recipe("final_b16", [f"--model.{option}" for option in options])

    @property
    def model_mfu(self) -> float:
        if self.mfu is not None:
            return self.mfu
        flops = recipe_flops(self.recipe, recipe_arch(self.recipe)).train
        return (self.images_per_second or 0.0) * flops / GPUS[self.gpu].peak_flops

    @property
    def k(self) -> float:
        """The run's MFU, divided by its model's roofline on its GPU in the precision in which it trained."""
        roofline = roofline_mfu(self.recipe, GPUS[self.gpu], MACHINE_GPUS, self.path)
        assert roofline is not None
        return self.model_mfu / roofline.value


@cache
def published(kind: str) -> list[PublishedRun]:
    """Return the runs to plan with ('plan'), or the 'others'."""
    return [PublishedRun(**row) for row in PUBLISHED[kind]]


def planned_with(plan: Plan) -> list[PublishedRun]:
    """Return the runs whose shares of the roofline are in `plan`."""
    return [run for run in published("plan") if plan.name in run.plans]


def hours_at(recipe: Recipe, k: float, gpu: Gpu = GPUS[MAIN_GPUS[0]]) -> float:
    """Return the GPU-hours at a share k of the roofline."""
    roofline = roofline_mfu(recipe, gpu, MACHINE_GPUS)
    assert roofline is not None
    return estimate(recipe, gpu, MACHINE_GPUS, Mfu(k * roofline.value, "", ""), with_cores(gpu.cores)).gpu_hours


def recipes() -> str:
    """Tabulate recipes with an expected top-1 or a published head for their tower, cheapest first."""
    rows = []
    for priced in _by_hours():
        recipe = load_recipe(priced.name)
        if recipe.name in PUBLISHED["heads"]:
            rows.append(_head_row(recipe))
        if priced.expected_top1 is None:
            continue
        source = str(recipe.about.source)
        source = f"best epoch of one log, {source}" if source.startswith("paper") else source
        paper_hours = PUBLISHED["paper_hours"].get(PAPER_ROWS.get(recipe.name), "")
        rows.append([f"`{recipe.name}`", source, f"{priced.expected_top1:.1f}", *_hours(recipe),
                     f"{paper_hours:.1f}" if paper_hours else ""])  # fmt: skip
        if recipe.name == BEFORE_START:
            rows.append(_better_start())
    return f"{markdown(RECIPE_HEAD, rows, 2)}\n\n{sentence()}"


def readme() -> str:
    """Tabulate some recipes for the README."""
    rows = []
    for priced in _by_hours():
        if priced.name not in README_RECIPES:
            continue
        recipe, top1 = load_recipe(priced.name), str(priced.expected_top1)
        if recipe.name in PUBLISHED["heads"]:
            theirs = PUBLISHED["heads"][recipe.name]
            top1 = f"{theirs['top1']}, others' linear probe on this tower{_size_note(recipe)}"
        elif str(recipe.about.source).startswith("paper"):
            top1 += ", the authors' result"
        else:
            top1 += ", extrapolated from the authors' log"
        rows.append([f"`{recipe.name}`", top1, *_hours(recipe, ("V100", "H100"))])
    own = PUBLISHED["paper_hours"][PAPER_ROWS["final_b16"]]
    return (
        f"{markdown(['recipe', 'ImageNet top-1 %', 'V100-hours', 'H100-hours'], rows, 2)}\n\nHours are modelled. "
        "Nobody has measured them on a GPU yet. Each range goes from the fastest to the slowest of the published trainings that "
        f"[resemble fastft's](docs/measurements/published.md). The paper's own B/16 took {own} V100-hours."
    )


RECIPE_HEAD = [
    "recipe", "source of the top-1", "expected top-1", *(f"{gpu}-hours" for gpu in MAIN_GPUS),
    "the paper's own V100-hours",
]  # fmt: skip
BEFORE_START, LABEL, SERIES = (
    "frugal_b16_half",
    "laion2b, 12k",
    "half frozen",
)  # the recipe before it; its names in starts.yaml


def _size_note(recipe: Recipe) -> str:
    size = recipe.model.image_size
    return "" if size == TIMM_SIZE else f" at {size} px"


def _head_row(recipe: Recipe) -> list[str]:
    """Make the row for a recipe that stops at a linear probe.

    The accuracy is what others' heads on the same tower reach.
    """
    theirs, weights = PUBLISHED["heads"][recipe.name], pretrained_cfg(recipe.model.arch.removeprefix(TIMM))
    head = f"others' head on this frozen tower, trained {theirs['head']} ({theirs['source']})"
    source = f"not run; {head}; weights: {weights.license}"
    return [f"`{recipe.name}`", source, f"({theirs['top1']})", *_hours(recipe), ""]


def _better_start() -> list[str]:
    """Make the row for a start that has seen ImageNet-12k. timm's result for it is for the whole schedule."""
    recipe, top1 = _start_recipe()
    source = (
        "not run; timm's figure for these weights (laion2b, then ImageNet-12k), trained whole with its own schedule"
    )
    return [f"`starts[{SERIES}, {LABEL}]`", source, f"({as_published(top1)})", *_hours(recipe), ""]


def _start_recipe() -> tuple[Recipe, float]:
    """Return this start's recipe, and timm's top-1."""
    sweep = load_sweep(TABLES / "starts.yaml")
    row = next(row for row in sweep.rows if (row.label, row.series) == (LABEL, SERIES))
    top1 = next(row.paper for row in sweep.rows if row.label == LABEL and row.paper is not None)
    return load_recipe(sweep.reference(row)), top1


def sentence() -> str:
    """Explain the hours of `final_b16`, and what makes them differ from the paper's own."""
    final, gpu, plan = load_recipe("final_b16"), MAIN_GPUS[0], PLANS[0]
    paper = PUBLISHED["paper_hours"][PAPER_ROWS[final.name]]
    fastest, slowest = _hours(final, [gpu])[0].split("-")
    stopped = load_recipe("brief_b16_half", ["--model.trainable_layers=none"])
    whole, unfrozen, brief = (
        predict(recipe, [gpu])[gpu].hours or math.nan for recipe in (final, stopped, load_recipe("brief_b16_half"))
    )
    return (
        "Hours are modelled and have not been measured. Each range goes from the fastest to the slowest of the [published "
        f"trainings](measurements/published.md) that resemble fastft's. `final_b16` takes {fastest} to {slowest} "
        f"V100-hours on eight GPUs: {fastest} if the step is as fast as {plan.fastest_run}, and {slowest} if it is as fast as "
        f"{plan.slowest_run}. The paper's authors needed {paper}, with evaluation. In the middle of the range, `brief_b16_half` "
        f"needs {brief:.1f} hours, {paper / brief:.1f} times less than the authors. Stopping early contributes a "
        f"factor of {whole / unfrozen:.1f}, freezing {unfrozen / brief:.1f}, and the "
        f"assumed speed {paper / whole:.1f}. An expected "
        "top-1 comes from one run. Four runs of MAE's B/16 scatter by 0.08 points (its FINETUNE.md), so a recipe with an "
        "expected 85.0 has about an even chance to reach 85.0 or more."
    )


# picture

GAP = 7  # pixels between a line and its label
SHOWN = {  # recipe: (label, kind); a label that ends in a space stands to the left
    "probe_dinov2_b14": ("DINOv2 B", "probe"), "probe_dinov2_l14_reg": ("DINOv2 L, registers", "probe"),
    "probe_dinov3_b16": ("DINOv3 B", "probe"), "probe_dinov3_l16": ("DINOv3 L ", "probe"),
    "probe_dinov3_h16_plus": ("DINOv3 H+ ", "probe"),
    "brief_b16_half": ("brief_b16_half", "short"), "frugal_b16": ("frugal_b16 ", "short"),
    "quick_l14_half": ("quick_l14_half", "short"), "frugal_l14": ("frugal_l14 ", "short"),
    "final_b16": ("B/16", "paper"), "final_b16_384": ("B/16, 384 px ", "paper"), "final_l14": ("L/14", "paper"),
    "final_l14_336": ("L/14, 336 px ", "paper"),
}  # fmt: skip
KINDS = {  # kind: (style of chart.css, legend)
    "paper": ("accent", "the paper's rows"),
    "short": ("peer-1", "the same, stopped early or half frozen (from the authors' logs)"),
    "probe": ("peer-2", "linear probes of others on frozen towers"),
    "start": ("peer-3", "timm's fine-tuned CLIP, at the hours of frugal_b16_half"),
}
HOURS, TOP1 = (0.25, 120.0), (84.0, 88.6)  # ranges of the axes
PICTURE = "H100"  # whose hours it shows


def points() -> list[tuple[str, str, tuple[float, float], float]]:
    """Return (label, kind, modelled hours, top-1) for the rows in the picture."""
    found = []
    for name, (label, kind) in SHOWN.items():
        recipe = load_recipe(name)
        theirs = PUBLISHED["heads"].get(name)
        top1 = theirs["top1"] if theirs else expected_top1(recipe)
        assert top1 is not None, name
        found.append((label, kind, _ends(recipe), top1))
    start, top1 = _start_recipe()
    return [*found, ("laion2b, then ImageNet-12k", "start", _ends(start), top1)]


def _ends(recipe: Recipe) -> tuple[float, float]:
    ends = predict(recipe, [PICTURE])[PICTURE].hours_range
    assert ends is not None
    return ends[0], ends[1]


def picture(theme: str) -> str:
    """Draw accuracy over modelled hours: lines from the fastest to the slowest of the plan."""
    canvas = Canvas("narrow", 480, 456, (math.log(HOURS[0]), math.log(HOURS[1])), TOP1, left=44, right=16, bottom=116)
    return svg_file(list(_drawing(canvas)), canvas.width, canvas.height, theme)


def _drawing(c: Canvas) -> Iterator[Markup]:
    floor = c.height - c.bottom
    for top1 in range(int(TOP1[0]), int(TOP1[1]) + 1):
        yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(c.left, c.y(top1), c.width - c.right)
        yield svg_text(c.left - 8, c.y(top1) + 4, f"{top1} %", "end")
    for hours in (0.3, 1, 3, 10, 30, 100):
        yield svg_text(c.x(math.log(hours)), floor + 18, f"{hours:g}", "middle")
    for label, kind, ends, reached in points():
        style, (low, high) = KINDS[kind][0], (c.x(math.log(hours)) for hours in ends)
        y, middle = c.y(reached), (low + high) / 2
        yield Markup('<path class="line {}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(style, low, y, high)
        yield Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(style, middle, y)
        left = label.endswith(" ")
        yield svg_text(low - GAP if left else high + GAP, y + 4, label.strip(), "end" if left else "start")
    caption = f"ImageNet top-1 over {PICTURE}-hours, which are modelled"
    yield svg_text((c.left + c.width - c.right) / 2, floor + 36, caption, "middle")
    for k, (style, legend) in enumerate(KINDS.values()):
        y = floor + 56 + 17 * k
        yield Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(style, c.left + 4, y - 4)
        yield svg_text(c.left + 14, y, legend, "start")


# more tables


def not_run() -> str:
    """Tabulate the ImageNet recipes whose accuracy nobody has measured."""
    names = [r.name for r in _by_hours() if r.group == NOT_RUN and r.name not in PUBLISHED["heads"]]
    recipes = list(map(load_recipe, names))
    rows = [[f"`{recipe.name}`", *_hours(recipe)] for recipe in recipes]
    return markdown(["recipe", *(f"{gpu}-hours" for gpu in MAIN_GPUS)], rows)


def starts() -> str:
    """Tabulate timm's results for other B/16 starts, and what the paper's schedule costs from them."""
    sweep, rows = load_sweep(TABLES / "starts.yaml"), []
    for label in sweep.labels:
        of_start = [row for row in sweep.rows if row.label == label]
        recipes = [load_recipe(sweep.reference(row)) for row in of_start]
        hours = " / ".join(format_hours(predict(recipe, ["V100"])["V100"]) for recipe in recipes)
        rows.append([label, f"`{recipes[0].model.weights}`", as_published(of_start[0].paper), hours])
    head = ["start", "`model.weights`", "timm's top-1", f"V100-hours, {' / '.join(sweep.series)}"]
    return f"{markdown(head, rows, 2)}\n\nTop-1: {sweep.source}. Nobody has run the paper's schedule from these starts."


@cache
def _by_hours() -> list[ListedRecipe]:
    priced = [(hours, r) for r in list_recipes().recipes if (hours := r.gpu_hours["V100"])]
    return [recipe for _, recipe in sorted(priced, key=lambda row: row[0])]


def _hours(recipe: Recipe, gpus: Sequence[str] = MAIN_GPUS) -> list[str]:
    """Return the GPU-hours by GPU, from the fastest to the slowest of the plans."""
    return [format_hours(predicted) for predicted in predict(recipe, gpus).values()]


def plans() -> str:
    """Explain the rows of `fastft cost`."""
    rows = [
        [plan.name, f"{plan.fastest:.2f}: {plan.fastest_run}", f"{plan.slowest:.2f}: {plan.slowest_run}",
         ", ".join(name for name in plan.gpus if name != plan.name)]
        for plan in PLANS
    ]  # fmt: skip
    head = ["GPU", "`fastest`, share of the roofline's speed", "`slowest`", "other GPUs with these shares"]
    return (
        f"{markdown(head, rows, 4)}\n\n`middle` is the geometric mean of both. `roofline` is the yardstick itself. Matrix "
        "products run at the rate that large products sustain, attention at "
        f"{ATTENTION_SHARE:.0%} of the peak, and all other memory traffic at the rate that streaming kernels sustain. Traffic is "
        "counted by tracing one step, operation by operation, as the trainer computes it on that GPU."
    )


def cost_published() -> str:
    """Tabulate the k of each published run."""
    parts = []
    for plan in PLANS:
        ks = [run.k for run in planned_with(plan)]
        parts.append(
            f"**To plan with on {plan.name}**: k from {min(ks):.2f} to {max(ks):.2f}.\n\n{_runs(planned_with(plan))}"
        )
    parts.append(f"**Others**, which no range contains:\n\n{_runs(published('others'))}")
    others = [run for run in published("others") if run.gpu == MAIN_GPUS[0]]
    fastest, slowest = max(others, key=lambda run: run.k), min(others, key=lambda run: run.k)
    final = load_recipe("final_b16")
    parts.append(
        f"The extremes on V100 are {fastest.name} (k {fastest.k:.2f}) and {slowest.name} (k {slowest.k:.2f}). `final_b16` would "
        f"take {hours_at(final, fastest.k):.0f} V100-hours at the first speed and {hours_at(final, slowest.k):.0f} at the second."
    )
    peaks = ", ".join(f"{gpu} {GPUS[gpu].peak_flops / 1e12:g}" for gpu in (*MAIN_GPUS, "RTX3090"))
    parts.append(f"An MFU is of the dense peak, in TFLOP/s: {peaks}.")
    return "\n\n".join(parts)


def _runs(runs: Sequence[PublishedRun]) -> str:
    columns: dict[str, Callable[[PublishedRun], str]] = {
        "training, what its source says": lambda r: f"{r.name}, {r.source}" + (f", read {r.read}" if r.read else ""),
        "GPU": lambda r: r.gpu,
        "precision": lambda r: PATHS[r.path or chosen_path(GPUS[r.gpu])],
        "model MFU": lambda r: f"{r.model_mfu:.1%}",
        "our roofline for its model": lambda r: f"{r.model_mfu / r.k:.1%}",
        "k": lambda r: f"{r.k:.2f}",
        "differs from ours in": lambda r: r.remark,
    }
    return markdown(list(columns), [[cell(run) for cell in columns.values()] for run in runs], 3)


# models


OWN = ("b16", "b16_384", "l14", "l14_336")  # suffixes of the paper's recipes
TIMM_SIZE = 224
TIMM_MODELS = (
    "vit_base_patch16_224.mae", "vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2",
    "vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_large_patch16_dinov3",
    "vit_base_patch16_siglip_224.v2_webli", "eva02_small_patch14_336", "eva02_base_patch16_clip_224",
    "vit_pe_core_base_patch16_224", "vit_pe_core_large_patch14_336", "convnext_tiny", "convnext_base",
    "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224",
)  # fmt: skip


def model_costs() -> str:
    """Make a row per model: size, work, GPU-hours for the final and the frugal recipe, weights."""
    head = ["model", "px", "M parameters", "GFLOP per image"]
    head += [f"{gpu}-hours, `final` / `frugal`" for gpu in MAIN_GPUS]
    rows = [*_own_rows(), *map(_timm_row, TIMM_MODELS)]
    return (
        f"{markdown([*head, 'pretrained weights'], rows)}\n\nImageNet-1k on eight GPUs. Hours are modelled, from the fastest to "
        "the slowest of the [published trainings](measurements/published.md) that resemble fastft's. FLOPs are those of a "
        "forward pass. timm's models have the epochs of B/16 or, from the size of L/14 on, of L/14. Nobody has measured the "
        "accuracy that they reach with these recipes."
    )


def _own_rows() -> list[list[str]]:
    rows = []
    for suffix in OWN:
        recipes = [load_recipe(f"{kind}_{suffix}") for kind in ("final", "frugal")]
        model = recipes[0].model
        rows.append(_cost_row(model.arch, f"open_clip, `{model.weights}`", recipes))
    return rows


def _timm_row(name: str) -> list[str]:
    options = [f"--model.arch={TIMM}{name}", "--model.weights=timm", f"--model.image_size={TIMM_SIZE}"]
    suffix = "l14" if paper_recipe(load_recipe("final_b16", options)) is LARGE else "b16"
    recipes = [load_recipe(f"{kind}_{suffix}", options) for kind in ("final", "frugal")]
    pretrained = pretrained_cfg(name)
    licence = f", {pretrained.license}" if pretrained.license else ""
    return _cost_row(f"{TIMM}{name}", f"timm, `{pretrained.tag}`{licence}", recipes)


def _cost_row(name: str, weights: str, recipes: Sequence[Recipe]) -> list[str]:
    recipe = recipes[0]
    arch, classes = load_arch(recipe.model.arch).at(recipe.model.image_size), recipe.data.num_classes
    final, frugal = (predict(r) for r in recipes)
    hours = (f"{format_hours(final[gpu])} / {format_hours(frugal[gpu])}" for gpu in MAIN_GPUS)
    size = f"{(arch.parameters + arch.width * classes) / 1e6:.0f}", f"{count_flops(arch, classes).forward / 1e9:.1f}"
    return [f"`{name}`", str(arch.image_size), *size, *hours, weights]


def traced_traffic() -> str:
    """Return the content of fastft/cost/traffic.json.

    With it, `recipes`, `explain` and `cost` need not trace fastft's own recipes.
    """
    traced = {}
    for recipe, path in product(map(load_recipe, recipe_names()), KERNELS):
        key = traffic_key(recipe, path)
        if key not in traced:
            image = trace_image(recipe, path)
            traced[key] = None if image is None else astuple(image)
    lines = (f" {json.dumps(key)}: {json.dumps(traced[key])}" for key in sorted(traced))
    return "{\n" + ",\n".join(lines) + "\n}\n"
