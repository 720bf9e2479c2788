"""A run's evaluations on its validation file: when, of which weights, and by which score epochs are compared."""

from collections.abc import Callable, Sequence

from torch import nn

from fastft.data import EvalLoader
from fastft.recipe import Recipe
from fastft.run.evaluations import BALANCED_ACCURACY, TOP1
from fastft.run.prediction_metrics import IMBALANCED, imbalance
from fastft.train.distributed import World
from fastft.train.evaluate import KEPT_IN_TRAINING, Scores, evaluate, keep_logits
from fastft.train.precision import Precision
from fastft.train.progress import Progress
from fastft.train.step import Step


class Validation:
    """Evaluates the raw and the EMA weights on the validation file, if the run has one.

    class_counts: training images by label. is_stop_requested: called while it evaluates; True ends the evaluation.
    """

    def __init__(
        self,
        recipe: Recipe,
        loader: EvalLoader | None,
        class_counts: Sequence[int],
        world: World,
        precision: Precision,
        is_stop_requested: Callable[[], bool],
    ) -> None:
        self.recipe, self.loader = recipe, loader
        self.world, self.precision, self.is_stop_requested = world, precision, is_stop_requested
        self.is_imbalanced = imbalance(class_counts) > IMBALANCED
        self.best_by = BALANCED_ACCURACY if self.is_imbalanced else TOP1

    def is_due(self, progress: Progress) -> bool:
        """True if the epoch that has just ended is to be evaluated and is not yet."""
        return (
            self.loader is not None
            and progress.step == 0
            and self.recipe.evaluates_after(progress.epoch)
            and not progress.evaluated(progress.epoch - 1)
        )

    def evaluate_step(self, step: Step) -> dict[str, Scores]:
        """Scores of the weights that `train.eval_weights` names: "raw", "ema" or both.

        Raises:
            EvaluationStopped: a stop was requested.
        """
        models: dict[str, nn.Module] = {} if self.recipe.train.eval_weights == "ema" else {"raw": step.model}
        models |= {} if step.ema is None else {"ema": step.ema.module}
        with step.evaluation_context():
            return dict(zip(models, self.scores(list(models.values())), strict=True))

    def scores(self, models: Sequence[nn.Module]) -> list[Scores]:
        """Scores of each model.

        Raises:
            EvaluationStopped: a stop was requested.
        """
        assert self.loader is not None  # callers check it
        with_logits = keep_logits(self.loader.num_samples, self.recipe.data.num_classes, KEPT_IN_TRAINING)
        found = evaluate(models, self.loader, self.world, self.precision, self.is_stop_requested, with_logits)
        self.loader.pop_timings()  # not part of the training loader's work
        return found
