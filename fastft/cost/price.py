"""Predict hours and money for recipes.

Training takes FLOPs / (peak * MFU), or longer if the loader is slower. Evaluation and start-up are added. This is a
model, not a measurement, and it is marked as such wherever it is shown. Checkpoints are written while training goes
on, and cost nothing here. tests/cost/test_price.py compares the model with the wall times in the paper's own logs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from msgspec import structs

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Document
from fastft.cost.gpu_memory import MemoryNeed, MemoryRow, describe_no_fit, memory_need
from fastft.cost.measured import Measured
from fastft.cost.overheads import FASTFT, Assumption, Overheads, val_images_row, with_cores, with_measured
from fastft.cost.roofline import FASTEST, MIDDLE, SLOWEST, Mfu, chosen_path, describe_uncounted, known_mfus
from fastft.cost.work import probed_images, recipe_flops, recipe_work, train_images
from fastft.machine.gpus import GPUS, MAIN_GPUS, Gpu
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe
from fastft.recipe.training_images import assumed_val_images, describe_expectation, expected_top1

MACHINE_GPUS = 8  # in a usual cloud machine
LOADER_LIMITS = "* GPUs wait for the loader. Give it more cores, or convert to a smaller max resolution"


# one recipe on one GPU kind ----------------------------------------------------------------------------------------------


class Seconds(Document):
    """Wall seconds by activity."""

    train: float
    stall: float
    evaluate: float
    start: float


class EstimateRow(Document):
    """An `Estimate` in JSON. value, basis and source describe the MFU. money: None without a price."""

    value: float
    basis: str
    source: str
    wall_hours: float
    gpu_hours: float
    money: float | None
    images_per_second_per_gpu: float
    limited_by: str
    seconds: Seconds


@dataclass(frozen=True)
class Estimate:
    """Wall seconds for one recipe by activity, on `gpus` GPUs at one MFU."""

    mfu: Mfu
    gpus: int
    images_per_second: float  # per GPU, with data stalls, while training (if there is none, while fitting the head)
    train: float  # steps at this MFU
    stall: float  # waiting for a loader slower than the GPUs, in steps (if there are none, while fitting the head)
    evaluate: float
    start: float

    @property
    def wall_hours(self) -> float:
        return (self.train + self.stall + self.evaluate + self.start) / 3600

    @property
    def gpu_hours(self) -> float:
        return self.wall_hours * self.gpus

    @property
    def limited_by(self) -> str:
        return "loader" if self.stall > 0 else "GPU"

    def row(self, price: float | None) -> EstimateRow:
        """price: money per GPU-hour."""
        return EstimateRow(
            **asdict(self.mfu), wall_hours=self.wall_hours, gpu_hours=self.gpu_hours,
            money=None if price is None else self.gpu_hours * price, images_per_second_per_gpu=self.images_per_second,
            limited_by=self.limited_by,
            seconds=Seconds(train=self.train, stall=self.stall, evaluate=self.evaluate, start=self.start),
        )  # fmt: skip


def estimate(
    recipe: Recipe, gpu: Gpu, gpus: int, mfu: Mfu, over: Overheads = FASTFT, val_images: int | None = None
) -> Estimate:
    """Estimate a recipe's wall time. Evaluation runs at the training's MFU, or at its loader's speed.

    Args:
        val_images: number of validation images (default: `assumed_val_images`).
    """
    arch = recipe_arch(recipe)
    val_images = assumed_val_images(recipe) if val_images is None else val_images
    work = recipe_work(recipe, arch, val_images)
    sustained = gpus * gpu.peak_flops * mfu.value
    train = work.train / sustained
    images = train_images(recipe)
    of_loader = 1 / (gpus * over.loader_rate)  # seconds per image
    stall = images * max(0.0, of_loader - recipe_flops(recipe, arch).train / sustained)
    probed = probed_images(recipe, val_images)
    evaluated = recipe.evaluations * val_images + probed  # raw and EMA model share a pass
    evaluate = max(work.evaluate / sustained, evaluated / (gpus * over.eval_loader_rate))
    if not images and evaluate > work.evaluate / sustained:  # such a run waits for nothing but evaluation
        stall, evaluate = evaluate - work.evaluate / sustained, work.evaluate / sustained
    evaluate += recipe.evaluations * over.pass_start_seconds
    rate = images / (train + stall) / gpus if images else probed / (stall + evaluate) / gpus
    return Estimate(mfu, gpus, rate, train, stall, evaluate, over.start_seconds)


def _on_gpu(
    recipe: Recipe,
    gpu: Gpu,
    gpus: int,
    over: Overheads,
    val_images: int | None,
    own: Sequence[Mfu] = (),
    is_measured: bool = False,
) -> tuple[list[Estimate], MemoryNeed | None]:
    """Return the estimates at `own` and the known MFUs, and the memory needed. None if the recipe cannot be traced.

    is_measured: a measurement in `own` replaces the MFUs to plan with. The roofline stays beside it.
    """
    known = known_mfus(recipe, gpu, gpus)
    mfus = [*own, *(known[-1:] if is_measured else known)]
    estimates = [estimate(recipe, gpu, gpus, mfu, over, val_images) for mfu in mfus]
    return estimates, memory_need(recipe, chosen_path(gpu), gpu.memory, gpus)


class FamilyHours(Document):
    """The GPU-hours at one MFU."""

    basis: str
    mfu: float
    hours: float
    limited_by: str


class Predicted(Document):
    """The cost on one GPU kind.

    Attributes:
        basis, mfu, hours, limited_by: at the middle MFU to plan with. These and hours_range are None if the recipe's
            step cannot be counted.
        hours_range: from the fastest to the slowest MFU to plan with.
        estimates: at each of `known_mfus`.
        memory: None if the recipe cannot be traced.
    """

    basis: str | None
    mfu: float | None
    hours: float | None
    limited_by: str | None
    hours_range: list[float] | None
    estimates: list[FamilyHours]
    memory: MemoryRow | None


def predict(
    recipe: Recipe, names: Iterable[str] = MAIN_GPUS, gpus: int = MACHINE_GPUS, val_images: int | None = None
) -> dict[str, Predicted]:
    """Predict the cost by GPU name, on `gpus` such GPUs.

    Args:
        val_images: number of validation images (default: `assumed_val_images`).
    """
    predicted: dict[str, Predicted] = {}
    for name in names:
        gpu = GPUS[name]
        estimates, need = _on_gpu(recipe, gpu, gpus, with_cores(gpu.cores), val_images)
        rows = [
            FamilyHours(basis=e.mfu.basis, mfu=e.mfu.value, hours=e.gpu_hours, limited_by=e.limited_by)
            for e in estimates
        ]
        by_basis = {row.basis: row for row in rows}
        headline = structs.asdict(by_basis[MIDDLE]) if rows else dict.fromkeys(FamilyHours.__struct_fields__)
        hours_range = [by_basis[basis].hours for basis in (FASTEST, SLOWEST)] if rows else None
        predicted[name] = Predicted(
            **headline, hours_range=hours_range, estimates=rows, memory=None if need is None else need.row()
        )
    return predicted


def format_hours(predicted: Predicted) -> str:
    """Format one GPU's hours from `predict` as a range, for a table.

    "*" marks GPUs that wait for the loader, at least in the fastest case. "-" means that the hours cannot be counted.
    """
    if predicted.hours_range is None:
        return "-"
    waits = any(row.basis == FASTEST and row.limited_by == "loader" for row in predicted.estimates)
    return format_range(*predicted.hours_range) + "*" * waits


def format_range(low: float, high: float) -> str:
    """Format hours with two digits or more: 3.4-12.0, 53-79, or 0.4 if both ends are the same. Both below 0.05 are <0.1."""
    if high < 0.05:
        return "<0.1"
    digits = 1 if low < 9.95 else 0
    first, last = f"{low:,.{digits}f}", f"{high:,.{digits}f}"
    return first if first == last else f"{first}-{last}"


# several recipes side by side --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostQuery:
    """Options for `price_recipes`. `price` is money per GPU-hour."""

    gpu: str
    gpus: int = MACHINE_GPUS
    price: float | None = None
    cores_per_gpu: float | None = None  # default: the number in a usual cloud machine
    mfu: float | None = None
    val_images: int | None = None  # default: `assumed_val_images`
    measured: Measured | None = None


class PricedRecipe(Document):
    """A recipe's cost. expected_top1, expected_source: None without an expectation on ImageNet."""

    recipe: str
    epochs: int
    image_size: int
    train_flops_per_image: float
    expected_top1: float | None
    expected_source: str | None
    expectation: str
    estimates: list[EstimateRow]


class Sum(Document):
    """The sum over all recipes at one MFU kind."""

    basis: str
    wall_hours: float
    gpu_hours: float
    money: float | None


class Total(Document):
    """The cost for `rows` rows in sweeps, which train `trainings` recipes."""

    rows: int
    trainings: int
    estimates: list[Sum]


class Prices(Document):
    """The output of `fastft cost --json`, which docs/bench-schema.md describes."""

    modelled: bool
    gpu: str
    peak_flops: float
    gpus: int
    price: float | None
    recipes: list[PricedRecipe]
    total: Total | None
    assumptions: list[Assumption]
    remarks: list[str]


def price_recipes(recipes: Sequence[Recipe], query: CostQuery, rows: int | None = None) -> Prices:
    """Return every recipe's hours and money at each known MFU.

    Args:
        rows: how many sweep rows the recipes train. If given, the result has a total.

    Raises:
        UserError: a GPU is unknown, or a recipe cannot be built.
    """
    gpu = known_gpu(query.gpu)
    cores = query.cores_per_gpu or gpu.cores
    over = with_measured(query.measured, cores) if query.measured else with_cores(cores)
    priced = []
    remarks = list(query.measured.remarks(list(recipes), gpu)) if query.measured else []
    for recipe in recipes:
        given = [] if query.mfu is None else [Mfu(query.mfu, "given", "--mfu")]
        found = query.measured.mfu(recipe, gpu) if query.measured else None
        own = given if found is None else [*given, found]
        estimates, need = _on_gpu(recipe, gpu, query.gpus, over, query.val_images, own, found is not None)
        remarks += [] if len(estimates) > len(own) else [describe_uncounted(recipe, gpu)]
        if need is not None and not need.fits:
            remarks.append(f"{recipe.name} {describe_no_fit(need.row())}")
        priced.append(_priced(recipe, estimates, query.price))
    assumed = [val_images_row(recipe, query.val_images) for recipe in recipes]
    return Prices(
        modelled=True, gpu=gpu.name, peak_flops=gpu.peak_flops, gpus=query.gpus, price=query.price, recipes=priced,
        total=None if rows is None else _total(priced, rows),
        assumptions=over.describe() + list({row.what: row for row in assumed}.values()), remarks=remarks,
    )  # fmt: skip


def known_gpu(name: str) -> Gpu:
    """Return the GPU with this name. Case, spaces and hyphens do not matter."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace(" ", "")

    known = next((gpu for gpu in GPUS.values() if plain(gpu.name) == plain(name)), None)
    if known is None:
        raise UserError(f"no data are known for GPU '{name}'. Choose one of {', '.join(GPUS)}")
    return known


def _priced(recipe: Recipe, estimates: Sequence[Estimate], price: float | None) -> PricedRecipe:
    top1 = expected_top1(recipe)
    return PricedRecipe(
        recipe=recipe.name, epochs=recipe.epochs, image_size=recipe.model.image_size,
        train_flops_per_image=recipe_flops(recipe, recipe_arch(recipe)).train, expected_top1=top1,
        expected_source=None if top1 is None else recipe.about.source, expectation=describe_expectation(recipe),
        estimates=[e.row(price) for e in estimates],
    )  # fmt: skip


def _total(priced: Sequence[PricedRecipe], rows: int) -> Total:
    """Sum over all recipes, for each MFU kind that every recipe has."""
    by_basis = [{e.basis: e for e in recipe.estimates} for recipe in priced]
    estimates = []
    for basis in [b for b in by_basis[0] if all(b in of_recipe for of_recipe in by_basis)]:
        column = [of_recipe[basis] for of_recipe in by_basis]
        money = [e.money for e in column if e.money is not None]
        estimates.append(Sum(
            basis=basis, wall_hours=sum(e.wall_hours for e in column), gpu_hours=sum(e.gpu_hours for e in column),
            money=sum(money) if money else None,
        ))  # fmt: skip
    return Total(rows=rows, trainings=len(priced), estimates=estimates)
