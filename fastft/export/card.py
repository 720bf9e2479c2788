"""The model card: model, pretrained weights, data, accuracy, and how to load it."""

from pathlib import Path

import yaml

from beton_tools import __version__
from beton_tools.base.console import counted, markdown_table
from fastft.evaluate.trained import Trained
from fastft.export.preprocessing import LICENCE, preprocessing_code, short_side
from fastft.model import TimmArch
from fastft.recipe import SECTIONS, Recipe
from fastft.recipe.constants import PROBE, SQUASH
from fastft.run.average_record import AverageRecord
from fastft.run.evaluations import BESIDE, SCORE_NAMES, WEIGHTS
from fastft.run.inputs import UsedFile, used_files

FEW_CLASSES = 20  # the card lists up to this many class names. Longer lists are only in the files


def model_card(
    trained: Trained, library: str, usage: str, check: str, max_difference: float, warning: str, *, normalised: bool
) -> str:
    """Return the model card as Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        library: the library that loads the model, as the Hub calls it.
        usage: Python code that loads the model.
        check: what was compared when the file was written.
        warning: about the library's own preprocessing, or "".
        normalised: whether the model takes normalised images. If not, it takes uint8 pixels.
    """
    recipe = trained.recipe
    sections = [
        f"# {recipe.name}\n\n{_summary(trained)}\n\nWeights: {_plain(trained.weights)}.",
        f"## Load it\n\n```python\n{usage}\n```\n\n"
        f"Checked when it was written: {check} `{trained.path.name}`"
        f"{' with the same adjustment' if trained.is_adjusted else ' with the same head' if trained.has_scaled_head else ''} "
        f"differ by {max_difference:.1e} at most.",
        "\n\n".join(["## Images", *[f"{warning}."] * bool(warning), _images(recipe, normalised)]),
        f"## Accuracy\n\n{_metrics(trained)}",
        *([f"## Probabilities\n\n{_temperature(trained)}"] if trained.temperature else []),
        f"## Data\n\n{_data(trained)}",
        f"## Recipe\n\n{_recipe(recipe)}",
        f"## Licence\n\n{LICENCE}",
    ]
    return _front_matter(trained, library) + "\n\n".join(sections) + "\n"


def _front_matter(trained: Trained, library: str) -> str:
    entries: dict[str, object] = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "license": "other",
        "license_name": "see-licence-section",
        "tags": ["image-classification", "fastft", *["multi-label"] * trained.recipe.data.multi_label],
    }
    if trained.scores is not None and not trained.is_adjusted:
        entries["metrics"] = ["accuracy"]
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---\n\n"


def _summary(trained: Trained) -> str:
    arch, recipe = trained.model.visual.arch, trained.recipe
    if isinstance(arch, TimmArch):
        tower = f"timm's {arch.timm} at {arch.image_size} px"
    else:
        tower = f"a ViT with {arch.layers} blocks, width {arch.width}, {arch.patch_size} px patches"
    how = "a linear probe on" if trained.kind == PROBE else "fine-tuned from"
    count = sum(p.numel() for p in trained.model.parameters())
    classes = f" Classes: {', '.join(trained.classes)}." if len(trained.classes) <= FEW_CLASSES else ""
    several = " an image may have several or none (sigmoid);" if recipe.data.multi_label else ""
    return (
        f"Image classifier with {recipe.data.num_classes} classes:{several} {tower}, {count / 1e6:.1f} M parameters "
        f"({_plain(recipe.model.arch)}), {how} `{Path(recipe.model.weights).name}` with fastft {__version__}.{classes}"
    )


def _images(recipe: Recipe, normalised: bool) -> str:
    size = recipe.model.image_size
    mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (recipe.augment.mean, recipe.augment.std))
    then = ". The model scales and normalises the pixels itself"
    if normalised:
        then = f", scaled to 0..1, then normalised with mean ({mean}) and standard deviation ({std})"
    how = f"{short_side(recipe)} px ({recipe.train.eval_interpolation}, antialiased)"
    resized = f"short side resized to {how}, the long side in proportion and truncated to whole pixels"
    if recipe.train.eval_resize == SQUASH:
        resized = f"both sides resized to {how}"
    return (
        f"RGB, {resized}, central {size} x {size} crop{then}. This function computes the same pixels as `fastft predict`, for "
        f"images with 8 bits per channel:\n\n```python\n{preprocessing_code(recipe, normalised=normalised)}\n```"
    )


def _temperature(trained: Trained) -> str:
    s, value = trained.scores, f"{trained.temperature:.4g}"
    use = f"Divide the logits by the temperature {value} before the softmax. Inside the head, rounding would change a ranking."
    if trained.has_scaled_head:
        use = f"The head is divided by the temperature {value}, which changes no ranking: use the plain softmax."
    if s is None:
        return use
    return (
        f"{use} It was fitted on {s.samples:,} held-out images. With it, the expected calibration error is {s.ece_scaled:.2f} % "
        f"instead of {s.ece:.2f} %, measured on each half of these images with the temperature fitted on the other half."
    )


def _metrics(trained: Trained) -> str:
    """Return the accuracy stored in the checkpoint. Only checkpoints at the end of an evaluated epoch have one."""
    state = trained.state
    assert state is not None, "only checkpoints are exported"
    if trained.is_adjusted:
        return "With logits adjusted for the class sizes these weights were not evaluated. See `fastft eval --logit-adjustment`."
    if state.average is not None:
        return _average(state.average)
    evaluation, score = state.own_evaluation, trained.main_score
    if trained.scores is None or (evaluation is None and trained.kind != PROBE):
        return "These weights were not evaluated."
    if trained.kind == PROBE or evaluation is None:
        evaluated, chosen = [(PROBE, trained.scores)], "The linear probe's head"
    else:
        evaluated = [
            (name, s) for kind, name in (("ema", "EMA"), ("raw", "raw")) if (s := evaluation.of(kind)) is not None
        ]
        chose = "its own validation images" if evaluation.selection is None else "training images that were left out"
        best = "" if state.evaluation is None else f", the best of the run by {chose}"
        chosen = f"{WEIGHTS[trained.kind]} weights of epoch {evaluation.epoch} (from 0){best}"
    second, title = BESIDE[score]
    name, rows = SCORE_NAMES[score], []
    for kind, s in evaluated:
        figures = ("-" if (value := getattr(s, key)) is None else f"{value:.3f}" for key in (score, second))
        rows.append([kind, *figures, f"{s.loss:.4f}", f"{s.samples:,}"])
    table = markdown_table(["weights", f"{name} %", f"{title} %", "loss", "images"], rows)
    return f"{chosen}: {name} {trained.scores.value(score):.3f} %.\n\n{table}"


def _average(average: AverageRecord) -> str:
    """Describe the record that `fastft average` stored: how the weights were made, and their accuracy."""
    lines = [f"{average.description[0].upper()}{average.description[1:]}."]
    for f in [] if average.chosen is None else average.chosen.files:
        name, chose = _plain(f.data), " (which chose)" if f.data == average.selection else ""
        lines.append(f"- `{name}`{chose}: {f.figure:.3f} % {SCORE_NAMES[f.best_by]} of {counted(f.samples, 'images')}")
    return "\n".join(lines)


def _data(trained: Trained) -> str:
    lines = []
    for role, option in (("Training", "data.train"), ("Validation", "data.val")):
        files = used_files(trained.recipe, option, trained.state, trained.path.parents[1])
        lines += [_file(f"{role}, {file.part}" if file.part else role, file) for file in files] or [f"{role}: none"]
    return "\n".join(f"- {line}" for line in lines)


def _file(role: str, file: UsedFile) -> str:
    path, manifest = file.path, file.manifest
    if manifest is None:
        return f"{role}: `{Path(path).name}` (its manifest was not found)"
    source = ", ".join(f"{k} {Path(v).name}" for k, v in manifest.source.items())
    options = ", ".join(f"{k} {v}" for k, v in manifest.options.items() if v is not None)
    kept = ", ".join(f"{count:,} {kind}" for kind, count in manifest.encodings.items())
    images, classes = counted(manifest.num_samples, "images"), counted(manifest.num_classes, "classes")
    return (
        f"{role}: `{Path(path).name}`, {images} in {classes}, fingerprint "
        f"`{manifest.fingerprint[:16]}`, from {source}, {options}. Images: {kept}, skipped: {len(manifest.skipped)}"
    )


def _recipe(recipe: Recipe) -> str:
    """List every option that affects the result, without paths and logging options."""
    values = recipe.as_dict()
    rows = [
        [f"{section}.{key}", _plain(value)]
        for section in SECTIONS
        if section not in ("data", "about")
        for key, value in values[section].items()
        if section != "train" or key in ("seed", "amp")
    ]
    return markdown_table(["option", "value"], rows, left=2)


def _plain(value: object) -> str:
    if isinstance(value, str) and "/" in value:
        return Path(value).name
    return ", ".join(f"{v:.6g}" for v in value) if isinstance(value, tuple) else str(value)
