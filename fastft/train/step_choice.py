"""How the training step is computed: eagerly, compiled or as a CUDA graph, and by which attention kernel.

`train.step` names it, or the candidates are measured at the start (`fastft.train.step_trials`) and the fastest is taken.
Speeds are remembered in the user's cache directory, and the choice in checkpoints, so that a resumed run computes as before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beton_tools.base.errors import UserError
from fastft.model.attention import ATTENTION_KERNELS
from fastft.recipe import Recipe

MODES = ("eager", "compile", "graph")
MARGIN = 0.02  # an earlier candidate is kept if it is at most this much slower: such differences are noise


@dataclass(frozen=True)
class StepChoice:
    """mode: one of MODES. attention: one of ATTENTION_KERNELS, or 'auto'."""

    mode: str = "eager"
    attention: str = "auto"

    def __str__(self) -> str:
        return self.mode if self.attention == "auto" else f"{self.mode} with {self.attention} attention"


@dataclass(frozen=True)
class StepTrial:
    """A candidate: milliseconds of a micro-batch's forward and backward pass, or the reason why it was dropped."""

    choice: StepChoice
    milliseconds: float | None
    reason: str | None = None

    def __str__(self) -> str:
        result = f"dropped ({self.reason})" if self.milliseconds is None else f"{self.milliseconds:.1f} ms"
        return f"{self.choice} {result}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self.choice), "milliseconds": self.milliseconds, "reason": self.reason}


@dataclass(frozen=True)
class Decision:
    """A choice and where it comes from: default, recipe, checkpoint, cache or measurement."""

    choice: StepChoice
    origin: str
    trials: tuple[StepTrial, ...] = ()

    @property
    def is_worth_a_line(self) -> bool:
        return bool(self.trials) or self.choice != StepChoice()

    def describe(self) -> str:
        """The log line: what was chosen, and how the others did."""
        found = {trial.choice: trial for trial in self.trials}
        chosen = found.pop(self.choice, None)
        time = f": {chosen.milliseconds:.1f} ms per micro-batch" if chosen and chosen.milliseconds else ""
        others = f"; {', '.join(map(str, found.values()))}" if found else ""
        return f"step: {self.choice} (from {self.origin}){time}{others}"

    def as_dict(self) -> dict[str, Any]:
        """Fields of the 'start' line of metrics.jsonl."""
        return {
            "step_mode": self.choice.mode,
            "step_attention": self.choice.attention,
            "step_origin": self.origin,
            "step_trials": [trial.as_dict() for trial in self.trials],
        }


def requested_step(recipe: Recipe) -> str:
    """`train.step`, or what the older `train.compile` means: 'auto', 'measure' or one of MODES."""
    older = {"auto": "auto", "on": "compile", "off": "eager"}
    return older[recipe.train.compile] if recipe.train.step == "auto" else recipe.train.step


def refuse_impossible(recipe: Recipe, on_gpu: bool, processes: int) -> None:
    """Check a `train.step` that the recipe names.

    Raises:
        UserError: a CUDA graph is requested where there can be none.
    """
    if requested_step(recipe) != "graph":
        return
    obstacle = graph_obstacle(recipe, on_gpu, processes)
    if obstacle is not None:
        raise UserError(f"train.step is graph, which {obstacle}; use --train.step=auto")


def graph_obstacle(recipe: Recipe, on_gpu: bool, processes: int) -> str | None:
    """Why the step cannot be a CUDA graph; None if it can."""
    if not on_gpu:
        return "needs a GPU"
    if processes > 1:
        return "does not average gradients over processes"
    if recipe.train.grad_checkpointing:
        return "does not work with train.grad_checkpointing"
    return None


def fastest(trials: Sequence[StepTrial]) -> StepChoice:
    """The choice of the first trial that is within MARGIN of the fastest; the default if none was measured."""
    measured = {trial.choice: trial.milliseconds for trial in trials if trial.milliseconds is not None}
    limit = min(measured.values(), default=0.0) * (1 + MARGIN)
    return next((choice for choice, time in measured.items() if time <= limit), StepChoice())


def stored_choice(stored: Mapping[str, str] | None, device: str) -> StepChoice | None:
    """The choice that a checkpoint records, if it was made for the same kind of device and this version knows it."""
    if stored is None or stored["device"] != device:
        return None
    known = stored["mode"] in MODES and stored["attention"] in ("auto", *ATTENTION_KERNELS)
    return StepChoice(stored["mode"], stored["attention"]) if known else None


def decide(
    requested: str,
    stored: StepChoice | None,
    on_gpu: bool,
    load: Callable[[], Sequence[StepTrial] | None],
    measure: Callable[[], Sequence[StepTrial]],
) -> Decision:
    """The choice that the recipe names, else the run's earlier one, else the fastest of all candidates.

    'auto' measures nothing on a CPU, where the step is eager, nor what `load` remembers. 'measure' always measures.
    """
    if requested in MODES:
        return Decision(StepChoice(requested), "recipe")
    if stored is not None:
        return Decision(stored, "checkpoint")
    if requested == "auto" and not on_gpu:
        return Decision(StepChoice(), "default")
    remembered = load() if requested == "auto" else None
    if remembered is not None:
        return Decision(fastest(remembered), "cache", tuple(remembered))
    trials = tuple(measure())
    return Decision(fastest(trials), "measurement", trials)
