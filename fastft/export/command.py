"""Export: write the file, load it with the target library, compare the outputs, then give the file its final name."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from beton_tools.base.atomic import check_writable, refuse_existing, scratch_folder
from beton_tools.base.errors import UserError, report_disk_errors
from fastft.evaluate.trained import Trained, adjust_logits, at_evaluated_size, load_trained, scale_head
from fastft.export import to_onnx, to_open_clip, to_safetensors, to_timm, to_torch
from fastft.export.card import model_card
from fastft.recipe import Recipe
from fastft.recipe.constants import AUTO

Model = Callable[[Tensor], Tensor]  # images (B, 3, S, S) to logits or probabilities (B, K), float32 on the CPU

CARD = "README.md"  # the card's name in a folder
CHECK_IMAGES = 3
# Relative to the largest output. It allows fp32 sums in another order, and LayerNorm eps 1e-6 instead of 1e-5.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Format:
    """One target format: `write` creates the file or folder, and `load` reads it with the target library.

    probabilities: the file turns uint8 pixels into probabilities. Other formats turn normalised images into logits.
    """

    write: Callable[[Trained, Path], None]
    load: Callable[[Path], Model]
    usage: Callable[[Trained, Path], str]  # Python code that loads it, for the model card
    folder: bool
    library: str  # the library that loads it, as the Hugging Face Hub calls it
    suffix: str = ""
    probabilities: bool = False
    # what the library's own preprocessing does otherwise than `fastft predict`, or ""
    other_images: Callable[[Recipe], str] = lambda recipe: ""

    @property
    def output(self) -> str:
        return "probabilities" if self.probabilities else "logits"


FORMATS = {
    "timm": Format(to_timm.write, to_timm.load, to_timm.usage, folder=True, library="timm"),
    "open_clip": Format(
        to_open_clip.write,
        to_open_clip.load,
        to_open_clip.usage,
        folder=True,
        library="open_clip",
        other_images=to_open_clip.other_images,
    ),
    "safetensors": Format(
        to_safetensors.write,
        to_safetensors.load,
        to_safetensors.usage,
        folder=False,
        library="fastft",
        suffix=".safetensors",
    ),
    "onnx": Format(to_onnx.write, to_onnx.load, to_onnx.usage, folder=False, library="onnx", suffix=".onnx"),
    "torch": Format(
        to_torch.write,
        to_torch.load,
        to_torch.usage,
        folder=False,
        library="pytorch",
        suffix=".pt2",
        probabilities=True,
    ),
}


@dataclass(frozen=True)
class Exported:
    """The result of an export. `max_difference` and `largest` are absolute maxima over all outputs for the check images.

    output: what the file computes, "logits" or "probabilities".
    """

    path: Path
    card: Path
    output: str
    max_difference: float
    largest: float
    weights: str  # in words
    warning: str  # about the library's own preprocessing, or ""


def export_checkpoint(
    checkpoint: Path,
    format: str,
    out: Path,
    weights: str = AUTO,
    logit_adjustment: bool = False,
    overwrite: bool = False,
    temperature: bool = True,
) -> Exported:
    """Export the model from a run or checkpoint and write a model card beside it.

    Args:
        weights: as in `load_trained`.
        logit_adjustment: as in `Predictor`. The correction becomes part of the head's bias.
        temperature: as in `Predictor`. The head is divided by it, unless this would change a ranking on the check
            images. The card and the configuration file state whether it was.
        overwrite: replace files with the same names. Other files in a folder stay.

    Raises:
        UserError: there is no such checkpoint, the format cannot hold the model, files are in the way, `out` is not
            writable, or the logits differ.
    """
    kind, out = FORMATS[format], Path(os.path.abspath(out))  # noqa: PTH100 - '.' has no name, and links stay
    card = out / CARD if kind.folder else out.with_name(out.name + ".md")
    _check_out(out, card, format, overwrite)
    trained = at_evaluated_size(load_trained(checkpoint, torch.device("cpu"), weights))
    if logit_adjustment:
        trained = adjust_logits(trained)
    images = _check_images(trained)
    trained = scale_head(trained, images) if temperature else replace(trained, temperature=None)
    with report_disk_errors(out, "Free some space, or give another --out"), scratch_folder(out) as scratch:
        partial = scratch / out.name
        kind.write(trained, partial)
        model: nn.Module = trained.model
        if kind.probabilities:
            model, images = to_torch.Probabilities(trained), _check_pixels(images)
        difference, largest = _compare(model, kind.load(partial), images)
        if not difference <= TOLERANCE * largest:
            raise UserError(
                f"the {format} export gives other {kind.output} than the checkpoint (by {difference:.2g} of {largest:.2g}). "
                "Nothing was written. Please report this"
            )
        warning = kind.other_images(trained.recipe)
        check = f"{kind.output} of this {format} export and the checkpoint"
        text = model_card(
            trained,
            kind.library,
            kind.usage(trained, out),
            check,
            difference,
            warning,
            normalised=not kind.probabilities,
        )
        made = scratch / card.relative_to(out.parent)
        made.write_text(text, encoding="utf-8", errors="backslashreplace")  # because paths need not be UTF-8
        _move(scratch, out)
    return Exported(out, card, kind.output, difference, largest, trained.weights, warning)


def _move(scratch: Path, out: Path) -> None:
    """Move what was written to its final place."""
    if (scratch / out.name).is_dir() and not out.exists():
        (scratch / out.name).rename(out)
        return
    for made in sorted(path for path in scratch.rglob("*") if path.is_file()):
        made.replace(out.parent / made.relative_to(scratch))


def _check_out(out: Path, card: Path, format: str, overwrite: bool) -> None:
    """Refuse a place that cannot be written, or where files would be replaced."""
    kind = FORMATS[format]
    if not kind.folder and (out.suffix != kind.suffix or out.is_dir()):
        raise UserError(f"--out {out} must be a file whose name ends in {kind.suffix}")
    if kind.folder and out.is_dir() and not out.is_symlink():
        if not os.access(out, os.W_OK):
            raise UserError(f"{out}: cannot be written (no write permission). Give another path")
    else:
        check_writable(out, makes_directories=True)
    for path in (out, card):
        refuse_existing(path, overwrite)
    if os.path.lexists(card):
        check_writable(card)


def _check_images(trained: Trained) -> Tensor:
    """Return Gaussian noise as an input (B, 3, S, S)."""
    size = trained.recipe.model.image_size
    return torch.randn(CHECK_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))


def _check_pixels(images: Tensor) -> Tensor:
    """Return uint8 images with the same shape."""
    return (images * 64 + 128).clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def _compare(model: nn.Module, exported: Model, images: Tensor) -> tuple[float, float]:
    """Return the largest difference and the largest output."""
    want, got = model(images), exported(images)
    return (want - got).abs().max().item(), want.abs().max().item()
