"""Evaluate a run's raw and EMA weights on the validation file."""

from collections.abc import Callable, Sequence

from torch import nn

from fastft.data.loader import EvalLoader
from fastft.evaluate.scores import KEPT_IN_TRAINING, Evaluated, evaluate
from fastft.machine.distributed import World
from fastft.machine.precision import Precision
from fastft.recipe import FinalRecipe
from fastft.run.evaluations import deciding_score
from fastft.train.step import Step


class Validation:
    """Evaluates the raw and the EMA weights on the validation file, if the run has one.

    Attributes:
        loaders: for the validation images if the run has any, then for the images that `data.selection_share` reserves
            if there are any.
        class_counts: training images by label.
        is_stop_requested: called during evaluation. True ends the evaluation.
    """

    def __init__(
        self,
        recipe: FinalRecipe,
        loaders: Sequence[EvalLoader],
        class_counts: Sequence[int],
        world: World,
        precision: Precision,
        is_stop_requested: Callable[[], bool],
    ) -> None:
        self.loaders, self.loader = loaders, loaders[0] if loaders else None
        self.world, self.precision, self.is_stop_requested = world, precision, is_stop_requested
        self.only_ema, self.num_classes = recipe.train.eval_weights == "ema", recipe.data.num_classes
        self.best_by = deciding_score(recipe.data.multi_label, class_counts)

    def evaluate_step(self, step: Step) -> tuple[dict[str, Evaluated], dict[str, Evaluated] | None]:
        """Return the validation scores, and the scores on the selection images.

        Both are for the weights that `train.eval_weights` names: "raw", "ema" or both.

        Raises:
            EvaluationStopped: a stop was requested.
        """
        # a horizon of one step leaves no EMA
        only_ema = self.only_ema and step.ema is not None
        models: dict[str, nn.Module] = {} if only_ema else {"raw": step.model}
        models |= {} if step.ema is None else {"ema": step.ema.module}
        with step.evaluation_context():
            scores = [
                dict(zip(models, self.scores(list(models.values()), loader), strict=True)) for loader in self.loaders
            ]
        return scores[0], scores[1] if len(scores) > 1 else None

    def scores(self, models: Sequence[nn.Module], loader: EvalLoader) -> list[Evaluated]:
        """Return each model's scores. Raises EvaluationStopped if a stop was requested."""
        with_logits = loader.num_samples * self.num_classes <= KEPT_IN_TRAINING
        scores = evaluate(models, loader, self.world, self.precision, self.is_stop_requested, with_logits)
        loader.pop_timings()  # not part of the training loader's work
        return scores
