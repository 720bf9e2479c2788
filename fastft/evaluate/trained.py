"""A trained model from a checkpoint, and post-hoc logit adjustment."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor

from beton_tools.base.errors import UserError
from beton_tools.base.typed_json import Object
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.class_list import Classes
from fastft.data.classes import name_outputs, refuse_multi_label, training_shares
from fastft.evaluate.metrics import EVEN
from fastft.model import ImageClassifier, arch_from_dict
from fastft.model.classifier import PATCHES, Classifier
from fastft.model.head_file import read_head, set_head, tower_checksum
from fastft.model.recipe_model import build_model
from fastft.model.tower import Tower
from fastft.recipe import FinalRecipe
from fastft.recipe.constants import AUTO, EVAL_IMAGE_SIZE, IMAGE_SIZE, PROBE
from fastft.run.baseline import BASELINE, read_baseline
from fastft.run.checkpoint import (
    Checkpoint,
    Damaged,
    State,
    check_tensors,
    forms,
    is_checkpoint,
    read_checkpoint,
    stored_recipe,
)
from fastft.run.evaluations import BestBy, Scores, deciding_score
from fastft.run.find_weights import ChosenWeights, find_weights, stored_scores, stored_thresholds
from fastft.run.identity import json_value
from fastft.run.inputs import open_stored
from fastft.run.run_directory import LARGER_HEAD, PROBE_HEAD

BATCH = 32  # images per forward pass


@dataclass(frozen=True)
class Trained:
    """A model ready for inference, with the recipe and the classes it was trained on."""

    model: ImageClassifier
    recipe: FinalRecipe
    classes: list[str]  # classes in the training file. There may be fewer than outputs
    path: Path  # the checkpoint's path
    class_counts: list[int]  # training images by label
    weights: str  # describes the weights in words
    kind: str  # "raw", "ema" or "probe". For the best epoch, the kind that it was chosen by
    state: State | None = None  # the checkpoint's state. Zero-shot models have none
    scores: Scores | None = None  # on the run's validation images, if there are any
    is_adjusted: bool = False  # corrected for class sizes, so not the model that was evaluated in training
    temperature: float | None = None  # divides the logits for probabilities. Fitted on the images behind `scores`
    foreign_below: float | None = None  # 95 % of the images behind `scores` reach this log-sum-exp over their logits
    has_scaled_head: bool = False  # the temperature is already part of the head
    thresholds: Sequence[float] = ()  # probability thresholds by class, for a multi-label model

    @property
    def known_classes(self) -> Classes:
        """The classes with their ids, where the checkpoint has them."""
        return Classes.of(self.classes) if self.state is None else self.state.known_classes

    @property
    def outputs(self) -> list[str]:
        """A name for every output."""
        return name_outputs(self.classes, self.recipe.data.num_classes)

    def open_validation(self) -> BetonSet:
        """Open the run's validation images. Raises the same errors as `open_stored`."""
        return self._open("data.val")

    def open_training(self) -> BetonSet:
        """Open the images that the model was trained on. Raises the same errors as `open_stored`."""
        return self._open("data.train")

    def _open(self, option: str) -> BetonSet:
        content = None if self.state is None else self.state.content_of(option)
        return open_stored(self.recipe, option, content, self.path.parent.parent)

    @property
    def main_score(self) -> BestBy:
        """The score that the run used to compare epochs and weights."""
        return deciding_score(self.recipe.data.multi_label, self.class_counts)

    @property
    def temperature_record(self) -> Object:
        """The temperature, or a multi-label model's thresholds, for an export's configuration file. Otherwise empty."""
        if self.thresholds:
            return {"multi_label": True, "thresholds": list(self.thresholds)}
        if self.temperature is None:
            return {}
        images = 0 if self.scores is None else self.scores.samples
        return {"temperature": {"value": self.temperature, "in_head": self.has_scaled_head, "images": images}}


def load_trained(checkpoint: Path, device: torch.device, weights: str = AUTO) -> Trained:
    """Load the model from a run or a checkpoint.

    Args:
        checkpoint: a run directory or a checkpoint in it.
        weights: "raw", "ema", "best", "last", "probe", or "auto". For a run, "auto" uses the weights that the run's
            rule chose (`fastft.run.chosen_weights`). For a checkpoint it uses the EMA if there is one that has been
            trained.

    Raises:
        UserError: there is no such checkpoint, it does not hold these weights, or it is damaged.
    """
    chosen, (model, recipe, stored) = _find_and_read(checkpoint, weights)
    model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    counts, scores = stored.state.class_counts, stored_scores(stored, chosen.kind, chosen.image_size)
    multi_label, classes = recipe.data.multi_label, recipe.data.num_classes
    thresholds = stored_thresholds(stored, chosen.kind, chosen.image_size) or [EVEN] * classes if multi_label else ()
    if multi_label and len(thresholds) != classes:
        raise Damaged(stored.path, f"it has {classes} classes and {len(thresholds)} thresholds")
    return Trained(
        model, recipe, stored.state.classes, stored.path, counts, chosen.description, chosen.kind, stored.state, scores,
        temperature=None if scores is None else scores.temperature, thresholds=thresholds,
        foreign_below=None if scores is None else scores.foreign_below,
    )  # fmt: skip


def _find_and_read(path: Path, weights: str) -> tuple[ChosenWeights, tuple[ImageClassifier, FinalRecipe, Checkpoint]]:
    """Choose weights and read them. A run that trains meanwhile may remove the chosen checkpoint: then choose again."""
    while True:
        try:
            chosen = find_weights(path, weights)
            if chosen.kind == PROBE:
                return chosen, read_probe(chosen.path, chosen.image_size)
            return chosen, read_model(chosen.path, chosen.stem)
        except Damaged as error:
            if error.path.exists() or is_checkpoint(path):
                raise


def read_probe(path: Path, image_size: int | None = None) -> tuple[ImageClassifier, FinalRecipe, Checkpoint]:
    """Return a run's linear probe: the pretrained tower with the head that the run directory keeps, and the recipe.

    image_size: the larger linear probe's image size, which the returned recipe then has. None stands for the probe that
    the run starts from.

    Use `read_model` for other weights. Raises UserError if the pretrained weights are missing or have changed, or if
    the head cannot be read.
    """
    checkpoint = read_checkpoint(path, ())
    # the head was fitted at the trained size, or at its own
    recipe, arch = stored_recipe(checkpoint).with_option(EVAL_IMAGE_SIZE, None), arch_from_dict(checkpoint.state.arch)
    where = path.parents[1] / (PROBE_HEAD if image_size is None else LARGER_HEAD)
    if image_size is not None:
        recipe, arch = recipe.with_option(IMAGE_SIZE, image_size), arch.at(image_size)
    model, head = build_model(recipe, arch=arch), read_head(where)
    if head.source.get("tower") != tower_checksum(model):
        raise UserError(
            f"{where} was fitted to other weights than model.weights {recipe.model.weights} has now. Give other --weights"
        )
    baseline = read_baseline(where.parent)
    if baseline is not None and head.source.get("request", baseline.request) != baseline.request:
        raise UserError(f"{where} and {BASELINE} beside it are from different runs. Give other --weights")
    set_head(model, head, where)
    # the returned model's state, for callers that compare or write it
    state = structs.replace(checkpoint.state, recipe=json_value(recipe.as_dict()), arch=json_value(asdict(arch)))
    return model, recipe, replace(checkpoint, state=state)


def read_model(path: Path, stem: str) -> tuple[ImageClassifier, FinalRecipe, Checkpoint]:
    """Return a checkpoint's model, on the CPU, and its recipe.

    stem: name of the tensor file, "model" or "ema".
    """
    checkpoint = read_checkpoint(path, (stem,))
    recipe, tensors = stored_recipe(checkpoint), checkpoint.tensors[stem]
    model = _build_without_weights(recipe, checkpoint, len(tensors))
    check_tensors(tensors, forms(model.state_dict()), path, f"{stem}.safetensors")
    # copied, because these tensors map a file that may be replaced or deleted while the model is in use
    model.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in tensors.items()}, assign=True)
    model.visual.restore_buffers()
    return model, recipe, checkpoint


def _build_without_weights(recipe: FinalRecipe, checkpoint: Checkpoint, tensors: int) -> ImageClassifier:
    """Build the model on the meta device, so that nothing is allocated.

    The architecture comes from the checkpoint, because the recipe may name a file that no longer exists. tensors: how
    many there are. Raises Damaged if the state contradicts itself or the tensors, and UserError if the installed timm
    lacks the model.
    """
    path, state = checkpoint.path, checkpoint.state
    try:
        arch = arch_from_dict(state.arch)
        for wrong, reason in (
            (arch.image_size != recipe.model.image_size, "arch and recipe have different image sizes"),
            (arch.layers > tensors, f"too few tensors for {arch.layers} layers"),
            (len(state.classes) > recipe.data.num_classes, "more classes than the recipe has outputs"),
        ):
            if wrong:
                raise Damaged(path, reason)
        try:
            with torch.device("meta"):
                return build_model(recipe, pretrained=False, arch=arch)
        except UserError as error:
            raise Damaged(path, str(error)) from None
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(path, f"arch is not an architecture: {' '.join(str(error).split())}") from None


def at_evaluated_size(trained: Trained) -> Trained:
    """Resize the position embeddings to the image size in evaluation, which becomes the recipe's image size.

    The model is changed in place. It computes the same as before, and can be exported with a fixed number of positions.
    """
    recipe, tower = trained.recipe, trained.model.visual
    if recipe.evaluated_size == recipe.model.image_size:
        return trained
    assert isinstance(tower, Tower)  # `check_evaluated_size` refuses the others
    tower.resize(recipe.evaluated_size)
    recipe = recipe.with_option(IMAGE_SIZE, recipe.evaluated_size).with_option(EVAL_IMAGE_SIZE, None)
    return replace(trained, recipe=recipe)


def refuse_votes(trained: Trained) -> None:
    """Raise UserError if the model's logits are not the mean of one number per patch."""
    if reason := no_votes(trained):
        raise UserError(f"{reason}, so a logit is not the mean of one number per patch. Leave --votes out")


def no_votes(trained: Trained) -> str:
    """Return why a logit is not the mean of one number per patch, or "" if it is (`Classifier.patch_votes`)."""
    model = trained.model
    if not isinstance(model, Classifier):
        return f"{trained.recipe.model.arch} pools its tokens as timm does"
    return "" if model.pool == PATCHES else f"the head reads more than the patches' mean (model.pool={model.pool})"


@torch.no_grad()
def scale_head(trained: Trained, images: Tensor) -> Trained:
    """Divide the head by the temperature, unless rounding would change a ranking on `images` (B, 3, S, S).

    The model is changed in place and returned.
    """
    if trained.temperature is None:
        return trained
    before = trained.model(images).argsort(dim=1, stable=True)
    plain = [parameter.clone() for parameter in trained.model.head.parameters()]
    for parameter in trained.model.head.parameters():
        parameter.div_(trained.temperature)
    if torch.equal(before, trained.model(images).argsort(dim=1, stable=True)):
        return replace(trained, has_scaled_head=True)
    for parameter, value in zip(trained.model.head.parameters(), plain, strict=True):
        parameter.copy_(value)
    return trained


@torch.no_grad()
def adjust_logits(trained: Trained) -> Trained:
    """Subtract each class's log frequency in the training targets from the head's bias.

    The largest logit then predicts the class with the smallest balanced error, instead of the most probable class
    (Menon et al. 2021, 2007.07314, with tau = 1). The model is changed in place and returned. Its temperature is
    dropped, because it was fitted without the correction.
    """
    refuse_multi_label(trained.recipe, "--logit-adjustment")
    counts = trained.class_counts
    if len(counts) != len(trained.classes):
        raise Damaged(trained.path, f"it has {len(trained.classes)} classes and {len(counts)} class sizes")
    bias_K = trained.model.head.bias
    shares = training_shares(counts, trained.recipe.data.sampling).tolist()
    shares += [0.0] * (len(bias_K) - len(shares))
    bias_K.sub_(log_shares(shares, trained.recipe.optim.label_smoothing).to(bias_K.device))
    words = f"{trained.weights}, logits adjusted for the class sizes"
    return replace(trained, weights=words, is_adjusted=True, temperature=None, foreign_below=None)


def log_shares(shares: Sequence[float], smoothing: float = 0.0) -> Tensor:
    """Return each class's log frequency in the smoothed targets, float64 (K,).

    The logits have learnt this frequency. Classes without images get no advantage over the largest class.
    """
    shares_K = torch.tensor(shares, dtype=torch.float64)
    shares_K = torch.where(shares_K > 0, shares_K, shares_K.max())
    return ((1 - smoothing) * shares_K / shares_K.sum() + smoothing / len(shares_K)).log()
