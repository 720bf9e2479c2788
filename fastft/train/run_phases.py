"""The phases of a run on this machine: micro-batch, accumulation and FLOPs of each image size and patch dropout."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.augment.recipe_policy import build_policy
from fastft.cost.work import phase_flops
from fastft.data.engine import Engine
from fastft.machine.precision import Precision
from fastft.machine.processes import World
from fastft.model import ImageClassifier
from fastft.model.phases import Phase, find_phases
from fastft.recipe import Recipe
from fastft.train.micro_batch import choose_micro_batch, loader_bytes


@dataclass(frozen=True)
class RunPhase(Phase):
    """A phase with what this process computes in it; flops: of training on one image. loader_bytes: GPU memory."""

    micro_batch: int
    accumulation: int
    flops: float
    loader_bytes: float

    def describe(self, world_size: int) -> str:
        batch = world_size * self.accumulation * self.micro_batch
        factors = {"processes": world_size, "micro-batches": self.accumulation}
        parts = [f"{count} {name} x " for name, count in factors.items() if count > 1]
        return f"{self.size} px, batch {batch}" + (f" = {''.join(parts)}{self.micro_batch} images" if parts else "")


class RunPhases:
    def __init__(self, phases: Sequence[RunPhase]) -> None:
        self.all = phases

    def at(self, epoch: int) -> RunPhase:
        """The phase of an epoch; after the last epoch the last one."""
        return next(phase for phase in reversed(self.all) if phase.first <= epoch)

    @property
    def smallest_micro_batch(self) -> int:
        return min(phase.micro_batch for phase in self.all)

    def with_halves(self, unit: int) -> "RunPhases":
        """The same with half the micro-batch wherever that is a multiple of `unit` images."""
        return RunPhases([
            phase
            if phase.micro_batch % (2 * unit)
            else replace(
                phase, micro_batch=phase.micro_batch // 2, accumulation=2 * phase.accumulation,
                loader_bytes=phase.loader_bytes / 2,
            )
            for phase in self.all
        ])  # fmt: skip

    def steps_left(self, global_step: int, steps_per_epoch: int, phase: RunPhase) -> float:
        """Remaining steps, each counted as many times as it takes the FLOPs of a step of `phase`."""
        left = 0.0
        for other in self.all:
            end = (other.first + other.epochs) * steps_per_epoch
            steps = max(0, end - max(global_step, other.first * steps_per_epoch))
            left += steps * (other.flops / phase.flops)
        return left


def plan_phases(
    recipe: Recipe, model: ImageClassifier, world: World, precision: Precision, train_files: BetonSet, unit: int
) -> RunPhases:
    """The phases of a recipe, each with the micro-batch that fits. unit: images that must stay together.

    Raises UserError: the batch cannot be divided among the processes; as `find_phases` and `choose_micro_batch`.
    """
    if recipe.optim.batch_size % world.size:
        raise UserError(
            f"optim.batch_size {recipe.optim.batch_size} is not a multiple of {world.size} processes; change one of the two"
        )
    files = [train_files, *([] if recipe.data.val is None else [BetonSet.open(recipe.data.val)])]
    policy, batches = build_policy(recipe), Engine.slots(recipe.data.batches_ahead)
    rank_batch = max(1, recipe.optim.batch_size // world.size)
    phases = []
    for phase in find_phases(recipe, model.visual.arch):
        model.visual.patch_dropout.rate = phase.patch_dropout
        per_image = sum(
            loader_bytes(file.largest.mean_pixels, phase.size, precision.dtype, batches, policy) for file in files
        )
        micro_batch = choose_micro_batch(
            recipe.train.micro_batch, rank_batch, model, phase.size, precision, unit=unit, loader_bytes=per_image
        )
        run_phase = RunPhase(
            **asdict(phase),
            micro_batch=micro_batch,
            accumulation=rank_batch // micro_batch,
            flops=phase_flops(recipe, model.visual.arch, phase).train,
            loader_bytes=micro_batch * per_image,
        )
        phases.append(run_phase)
    return RunPhases(phases)
