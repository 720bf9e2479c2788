"""Images per second that `fastft bench` measured. They replace the rates that `fastft cost` assumes."""

from collections.abc import Iterator
from dataclasses import dataclass

from beton_tools.base.errors import UserError
from fastft.cost.roofline import Mfu
from fastft.cost.work import recipe_flops
from fastft.machine.bench_result import Case, Measure, Result, spread
from fastft.machine.gpus import Gpu, find_gpu
from fastft.model import Arch, TowerArch, count_frozen_blocks
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe

STEP, FROZEN_STEP, END_TO_END = "step.train", "step.frozen", "e2e.train"
FULL_PRECISION = "fp32"
SMALL_FILES = "500"  # occurs in the "files" setting for images that were resized to 500 px
# training images/s per core: with augmentation on the GPU, else crop and flip, the nearest case that needs no GPU
LOADER_TO_GPU, LOADER, EVALUATION = "loader.gpu", "loader.crop.core", "loader.eval"
MODELS = {
    (768, 12, 16): "ViT-B/16",
    (1024, 24, 14): "ViT-L/14",
}  # width, blocks and patch size of the towers in bench step


@dataclass(frozen=True)
class CoreRate:
    """How many images/s one core delivers, and how that was measured, in words."""

    value: float
    how: str


@dataclass(frozen=True)
class Measured:
    """The rates in a benchmark result on which costs depend, or None if they were not measured."""

    name: str  # the result's file name
    result: Result
    loader: CoreRate | None
    evaluation: CoreRate | None

    @classmethod
    def of(cls, result: Result, name: str) -> "Measured":
        """Read the costs from a result.

        Raises:
            UserError: the result comes from a quick run, contains nothing that costs depend on, or contains an
                impossible value.
        """
        if result.quick:
            raise UserError(
                f"{name} comes from a quick run, whose results mean nothing. Run fastft bench without --quick"
            )
        loader = _core_rate(result, LOADER_TO_GPU) or _core_rate(result, LOADER)
        evaluation = _core_rate(result, EVALUATION)
        measured = cls(name, result, loader, evaluation)
        if (
            loader is None
            and evaluation is None
            and not any(result.measure(key) for key in (STEP, FROZEN_STEP, END_TO_END))
        ):
            raise UserError(f"{name} has no measure that costs depend on. Run fastft bench all")
        return measured

    @property
    def gpu(self) -> Gpu | None:
        """Return the GPU kind that the result was measured on, or None without a GPU or for an unknown kind."""
        return find_gpu(self.result.machine.gpu) if self.result.machine.gpu else None

    def mfu(self, recipe: Recipe, gpu: Gpu) -> Mfu | None:
        """Return the recipe's measured end-to-end MFU, or else the MFU measured for its model's step.

        Returns None if neither was measured on this GPU kind.

        Raises:
            UserError: the MFU is above 100 %.
        """
        if self.gpu != gpu:
            return None
        arch = recipe_arch(recipe)
        whole = end_to_end_rate(self.result, recipe)
        rate = step_rate(self.result, recipe, arch) if whole is None else whole
        if rate is None:
            return None
        value = rate * recipe_flops(recipe, arch).train / gpu.peak_flops
        if value > 1:
            raise UserError(
                f"{self.name}: {rate:,.0f} images/s with {recipe.name} would be {value:.0%} of "
                f"{gpu.name}'s peak. Measure again"
            )
        bench = "step" if whole is None else "e2e"
        return Mfu(value, "measured", f"{rate:,.0f} images/s of fastft bench {bench}, {self.name}")

    def remarks(self, recipes: list[Recipe], gpu: Gpu) -> Iterator[str]:
        """Say why a recipe's step is modelled although a result was given."""
        where = self.result.machine.gpu
        if where is None:
            yield f"{self.name} was measured without a GPU, so the step's speed is modelled"
        elif self.gpu != gpu:
            yield f"{self.name} was measured on {where}, not on {gpu.name}, so its training step is not used"
        else:
            for recipe in recipes:
                if self.mfu(recipe, gpu) is None:
                    yield f"{self.name} has no training step for {recipe.name}'s model and size, so its speed is modelled"


def step_rate(result: Result, recipe: Recipe, arch: TowerArch) -> float | None:
    """Return the images/s measured in half precision for a training step with this recipe's model.

    Returns None if it was not measured.
    """
    if not isinstance(arch, Arch):
        return None
    frozen = count_frozen_blocks(arch.layers, recipe.model.trainable_layers)
    key = {0: STEP, arch.layers // 2: FROZEN_STEP}.get(frozen, "")
    model, size = MODELS.get((arch.width, arch.layers, arch.patch_size)), arch.image_size
    for measure, case in _cases(result, key):
        setting = measure.setting | case.setting
        if (setting.get("model"), setting.get("size")) == (model, size) and setting.get("dtype") != FULL_PRECISION:
            return _own(case)
    return None


def end_to_end_rate(result: Result, recipe: Recipe) -> float | None:
    """Return the measured images/s for this recipe from file to updated weights, or None if it was not measured."""
    for measure, case in _cases(result, END_TO_END):
        setting = measure.setting | case.setting
        if (setting.get("model"), setting.get("size")) == (recipe.name, recipe.model.image_size):
            return _own(case)
    return None


def _core_rate(result: Result, key: str) -> CoreRate | None:
    """Return fastft's rate with small files, for a measure's first case.

    loader.gpu is the whole machine's rate, and is divided by its cores. The others are one thread's rate.
    """
    for measure, case in _cases(result, key):
        rate = _own(case)
        if rate is None or SMALL_FILES not in str((measure.setting | case.setting).get("files", "")):
            continue
        threads = result.machine.cores if key == LOADER_TO_GPU else 1
        used = f"{threads} threads" if threads > 1 else "one thread"
        return CoreRate(rate / threads, f"{rate:,.0f} with {used} on {result.machine.cpu}, {key}")
    return None


def _cases(result: Result, key: str) -> Iterator[tuple[Measure, Case]]:
    measure = result.measure(key)
    yield from ((measure, case) for case in measure.cases) if measure else ()


def _own(case: Case) -> float | None:
    own = case.contender()
    return spread(own).median if own and spread(own).median > 0 else None
