"""`fastft zeroshot`: CLIP's zero-shot classifier for a file's classes, evaluated and written as a head for training."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip import (
    IMAGENET_CLASSNAMES,
    OPENAI_IMAGENET_TEMPLATES,
    SIMPLE_IMAGENET_TEMPLATES,
    SimpleTokenizer,
    build_zero_shot_classifier,
)
from open_clip.model import CLIPTextCfg, _build_text_tower  # the only builder from a configuration
from torch import Tensor, nn
from torch.nn import functional

from beton_tools.base.console import ProgressCallback
from beton_tools.base.errors import UserError
from beton_tools.base.user_files import read_user_text
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from beton_tools.sources.side_files import imagenet_wnids, is_wnid
from fastft.evaluate.evaluation import evaluate_model
from fastft.evaluate.file_report import FileReport, report_file
from fastft.evaluate.trained import Trained
from fastft.machine.distributed import World, connected, find_world
from fastft.model.arch import load_open_clip_config
from fastft.model.classifier import TOKEN
from fastft.model.head_file import WEIGHTS_OF_HEAD, Head, check_head_path, set_head, write_head
from fastft.model.recipe_model import build_model
from fastft.model.weights import read_text_state
from fastft.recipe import AskedRecipe, FinalRecipe, Recipe
from fastft.recipe.constants import RAW, TIMM
from fastft.recipe.training_images import with_num_classes
from fastft.run.identity import identify_weights

CLASSES_PER_PASS = 10  # open_clip's default: 800 texts with 80 templates
Template = Callable[[str], str]  # from a class name to a text
OPENAI, SIMPLE = "openai", "simple"  # open_clip's lists with 80 and 7 templates for ImageNet
PLACE = "{}"  # stands for the class name in a template file
MAX_NAMES_BYTES = 1 << 24


@dataclass(frozen=True)
class Prompts:
    """names: class names by label. templates: each is applied to every name. Other fields say where these come from."""

    names: list[str]
    templates: Sequence[Template]
    names_source: str
    templates_source: str


def read_prompts(
    data: Path, classes: Sequence[str], manifest: Manifest | None, names: Path | None, templates: str
) -> Prompts:
    """Return the prompts for the classes in a `.beton`.

    Args:
        data, classes, manifest: the file, its class names by label, and its manifest.
        names: a file with one class name per line, in label order. None: use `find_names`.
        templates: "openai", "simple", or a file with one template per line, such as `a photo of a {}.`
    """
    texts, names_source = (
        (_lines(names, "a text file with a class name on each line"), str(names))
        if names is not None
        else find_names(data, manifest)
    )
    if len(texts) != len(classes):
        raise UserError(
            f"{names_source} has {len(texts)} class names, {data} has {len(classes)} classes. Give one for each"
        )
    return Prompts(texts, _templates(templates), names_source, templates)


def find_names(data: Path, manifest: Manifest | None) -> tuple[list[str], str]:
    """Return class names for prompts, and where they come from.

    ImageNet's classes get open_clip's names, which are OpenAI's. Other wnids get the first of WordNet's names. All
    other classes get the names of their folders, with spaces for underscores.
    """
    if manifest is None or all(name == str(label) for label, name in enumerate(manifest.classes)):
        raise UserError(f"{data} has no class names. Give --names FILE with one on each line")
    label_of = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    if all(name in label_of for name in manifest.classes):
        return [
            IMAGENET_CLASSNAMES[label_of[name]] for name in manifest.classes
        ], "open_clip's names for ImageNet's classes"
    labels = list(manifest.known_classes.names)
    if manifest.class_names is not None and all(map(is_wnid, manifest.classes)):
        return [label.partition(",")[0] for label in labels], "the first name in each synset"
    return [label.replace("_", " ") for label in labels], "the folder names"


def _templates(name: str) -> Sequence[Template]:
    if name in (OPENAI, SIMPLE):
        return OPENAI_IMAGENET_TEMPLATES if name == OPENAI else SIMPLE_IMAGENET_TEMPLATES
    lines = _lines(Path(name), f"{OPENAI}, {SIMPLE}, or a text file with a template on each line")
    wrong = next((line for line in lines if line.count(PLACE) != 1), None)
    if wrong is not None:
        raise UserError(f"{name}: template '{wrong[:60]}' must contain {PLACE} once, where the class name goes")
    return [partial(str.replace, line, PLACE) for line in lines]


def _lines(path: Path, expected: str) -> list[str]:
    """Return a text file's lines without surrounding spaces, and without empty lines at its end."""
    lines = [line.strip() for line in read_user_text(path, MAX_NAMES_BYTES, expected).rstrip().splitlines()]
    if not lines or not all(lines):
        raise UserError(f"{path}: has an empty line or none at all. Give {expected}")
    return lines


# the tower --------------------------------------------------------------------------------------------------------------


def check_towers(name: str) -> None:
    """Refuse an architecture whose image or text tower is not CLIP's own, such as SigLIP, EVA and PE.

    Raises UserError if fastft has no zero-shot classifier for the architecture, or if it is unknown.
    """
    config = {} if name.startswith(TIMM) else load_open_clip_config(name)
    vision, text = (part if isinstance(part := config.get(key), dict) else {} for key in ("vision_cfg", "text_cfg"))
    trunk = name.removeprefix(TIMM) if name.startswith(TIMM) else vision.get("timm_model_name")
    pooling = vision.get("pool_type", "tok")
    reason = None
    if trunk is not None:
        reason = f"its image tower is timm's {trunk}"
    elif pooling != "tok":
        reason = f"it pools tokens by '{pooling}', not by the class token"
    elif library := text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        reason = f"it takes its texts through transformers ({library})"
    if reason is not None:
        raise UserError(
            f"zeroshot runs CLIP's own towers, and {name} is another kind: {reason}. Use a ViT by OpenAI, LAION, DataComp, DFN "
            "or MetaCLIP such as ViT-B-16-quickgelu, or open_clip itself for this one"
        )


class TextTower(nn.Module):
    """Texts (B, context) of token numbers to embeddings, with the method for open_clip's zero-shot classifier."""

    def __init__(self, tower: nn.Module, tokenizer: SimpleTokenizer, logit_scale: float):
        super().__init__()
        self.tower, self.tokenizer, self.logit_scale = tower, tokenizer, logit_scale

    def encode_text(self, texts: Tensor, normalize: bool = False) -> Tensor:
        embeddings = self.tower(texts)
        return functional.normalize(embeddings, dim=-1) if normalize else embeddings


def load_text_tower(recipe: Recipe, device: torch.device) -> TextTower:
    """Load the text tower of `model.arch` with `model.weights`, in fp32."""
    name, weights = recipe.model.arch, recipe.model.weights
    if weights == "random":
        raise UserError(
            "model.weights is random, so its text tower knows no class names. Set --model.weights to a tag or a file"
        )
    config = load_open_clip_config(name)
    try:
        text_cfg = _text_config(name, config)
        state = read_text_state(weights, name)
        logit_scale = float(state.pop("logit_scale").exp())
        state.pop("logit_bias", None)
        with torch.device("meta"):  # the weights fill it
            tower = _build_text_tower(config["embed_dim"], text_cfg, config.get("quick_gelu", False))
        tokenizer = SimpleTokenizer(context_length=text_cfg.context_length, **(text_cfg.tokenizer_kwargs or {}))
        tower.load_state_dict(state, assign=True)
        if tower.attn_mask is not None:
            tower.attn_mask = tower.build_causal_mask()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the text tower of {name} does not fit weights {weights} ({reason[:200]}). Check model.arch"
        ) from None
    return TextTower(tower.to(device).eval().requires_grad_(False), tokenizer, logit_scale)


def _text_config(name: str, config: Mapping[str, Any]) -> CLIPTextCfg:
    given = config.get("text_cfg")
    if not isinstance(given, dict):
        raise UserError(f"{name} has no text tower (no text_cfg). Use an open_clip CLIP architecture")
    text_config = CLIPTextCfg(**given)
    return text_config


def class_embeddings(
    tower: TextTower, names: Sequence[str], templates: Sequence[Template], show: ProgressCallback | None = None
) -> Tensor:
    """Return each class's mean text embedding, scaled to length 1, float32 (K, D).

    The texts' embeddings have length 1 too. open_clip's own function computes them.
    """
    parts = []
    device = next(tower.parameters()).device
    for first in range(0, len(names), CLASSES_PER_PASS):
        batch = names[first : first + CLASSES_PER_PASS]
        embeddings_DK = build_zero_shot_classifier(
            tower, tower.tokenizer, batch, templates, num_classes_per_batch=None, device=device
        )
        parts.append(embeddings_DK.T.float())
        if show is not None:
            show(first + len(batch), len(names), 0)
    return torch.cat(parts)


# evaluation -----------------------------------------------------------------------------------------------------------


def evaluate_zero_shot(
    recipe: AskedRecipe,
    data: Path | None,
    device: str,
    *,
    names: Path | None = None,
    templates: str,
    out: Path | None = None,
    only_present_classes: bool = False,
    progress: AbstractContextManager[ProgressCallback | None],
) -> tuple[FileReport, Prompts]:
    """Evaluate the zero-shot classifier for a recipe's architecture and weights.

    Args:
        data: images and classes, by default the recipe's validation file.
        names, templates: as in `read_prompts`.
        out: write the head to this .safetensors file.
        progress: shows the classes whose texts are embedded.

    Returns:
        The scores as `fastft eval` gives them, and the prompts.
    """
    if out is not None:
        check_head_path(out)
    check_towers(recipe.model.arch)
    if data is None and recipe.data.val is None:
        raise UserError("the recipe names no validation file. Give one with --data FILE.beton")
    path = data or Path(str(recipe.data.val))
    betons = BetonSet.open(path)
    classes, manifest = betons.class_names, Manifest.of_beton(betons.files[0].path)
    prompts = read_prompts(path, classes, manifest, names, templates)
    recipe = with_num_classes(
        recipe.with_option("model.pool", TOKEN).with_option("model.head", None), len(classes), path
    )
    world = find_world(device)
    with connected(world):
        trained = _build(recipe, classes, prompts, world, progress)
        evaluated = evaluate_model(trained, betons, world, only_present_classes)
    if out is not None and world.is_main:
        head, source = trained.model.head, {"arch": recipe.model.arch, "weights": recipe.model.weights}
        source[WEIGHTS_OF_HEAD] = identify_weights(recipe.model.weights, recipe.model.arch)
        source |= {"names": prompts.names_source, "templates": prompts.templates_source}
        tensors = head.weight.detach().cpu(), head.bias.detach().cpu()
        write_head(out, Head(*tensors, trained.classes, TOKEN, source))
    return report_file(trained, evaluated), prompts


def _build(
    recipe: Recipe,
    classes: list[str],
    prompts: Prompts,
    world: World,
    progress: AbstractContextManager[ProgressCallback | None],
) -> Trained:
    """Build the image tower with a head from text embeddings times CLIP's logit scale, computed by the main process."""
    m, weight_KD = recipe.model, None
    model = build_model(recipe)
    if world.is_main:
        tower = load_text_tower(recipe, world.device)
        with progress as show:
            embeddings_KD = class_embeddings(tower, prompts.names, prompts.templates, show)
        weight_KD = (tower.logit_scale * embeddings_KD).cpu()
    weight_KD = world.broadcast(weight_KD)
    set_head(model, Head(weight_KD, torch.zeros(len(classes)), classes, TOKEN), Path("of the text tower"))
    model = model.to(world.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    weights = f"zero-shot head of {m.arch}, {Path(m.weights).name}"
    return Trained(model, FinalRecipe.of(recipe), classes, Path(m.weights), [], weights, RAW)
