"""open_clip's text tower on the weights of a recipe, and the class embeddings that it gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from open_clip import SimpleTokenizer, build_zero_shot_classifier
from open_clip.model import CLIPTextCfg, _build_text_tower  # the only builder from a configuration
from torch import Tensor, nn
from torch.nn import functional

from beton_tools.base.console import ProgressCallback
from beton_tools.base.errors import UserError
from fastft.evaluate.prompts import Template
from fastft.model.arch import load_open_clip_config
from fastft.model.weights import read_text_state
from fastft.recipe import Recipe

CLASSES_PER_PASS = 10  # open_clip's default: with 80 templates, 800 texts


class TextTower(nn.Module):
    """Texts (B, context) of token numbers to embeddings, with the method that open_clip's zero-shot classifier calls."""

    def __init__(self, tower: nn.Module, tokenizer: SimpleTokenizer, logit_scale: float):
        super().__init__()
        self.tower, self.tokenizer, self.logit_scale = tower, tokenizer, logit_scale

    def encode_text(self, texts: Tensor, normalize: bool = False) -> Tensor:
        embeddings = self.tower(texts)
        return functional.normalize(embeddings, dim=-1) if normalize else embeddings


def load_text_tower(recipe: Recipe, device: torch.device) -> TextTower:
    """The text tower of `model.arch` with `model.weights`, in fp32.

    Raises:
        UserError: the architecture has no text tower or one that needs another library, or the weights do not fit it.
    """
    name, weights = recipe.model.arch, recipe.model.weights
    if weights == "random":
        raise UserError(
            "model.weights is random, which knows no class names; set --model.weights to a tag or a file"
        )
    config = load_open_clip_config(name)
    try:
        text_cfg = _text_config(name, config)
        state = read_text_state(weights, name)
        logit_scale = float(state.pop("logit_scale").exp())
        state.pop("logit_bias", None)
        with torch.device("meta"):  # filled by the weights
            tower = _build_text_tower(config["embed_dim"], text_cfg, config.get("quick_gelu", False))
        tokenizer = SimpleTokenizer(
            context_length=text_cfg.context_length, **(text_cfg.tokenizer_kwargs or {})
        )
        tower.load_state_dict(state, assign=True)
        if tower.attn_mask is not None:
            tower.attn_mask = tower.build_causal_mask()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the text tower of {name} does not fit weights {weights} ({reason[:200]}); check model.arch"
        ) from None
    return TextTower(tower.to(device).eval().requires_grad_(False), tokenizer, logit_scale)


def _text_config(name: str, config: Mapping[str, Any]) -> CLIPTextCfg:
    given = config.get("text_cfg")
    if not isinstance(given, dict):
        raise UserError(
            f"{name} has no text tower (no text_cfg); use an architecture of open_clip's CLIP models"
        )
    found = CLIPTextCfg(**given)
    if found.hf_model_name or found.hf_tokenizer_name:
        library = found.hf_model_name or found.hf_tokenizer_name
        raise UserError(
            f"{name} takes its texts through transformers ({library}); use an architecture with CLIP's own tokenizer"
        )
    return found


def class_embeddings(
    tower: TextTower,
    names: Sequence[str],
    templates: Sequence[Template],
    show: ProgressCallback | None = None,
) -> Tensor:
    """Float32 (K, D): for each class the mean of its texts' embeddings, all of length 1, by open_clip's own function."""
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
