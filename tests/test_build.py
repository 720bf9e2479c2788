"""Models, schedules and mixers that a recipe builds, beyond the tests of models and recipes."""

from functools import partial

import pytest
import torch

from fastft.model import Arch, build_classifier
from fastft.model.recipe_model import compile_model

ARCH = Arch(
    image_size=16, patch_size=8, width=32, layers=4, heads=1, mlp_width=32, quick_gelu=True, ln_pre=True, norm_eps=1e-5,
    layer_scale=False, embed_dim=8,
)  # fmt: skip


def test_every_training_of_a_sweep_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that differ in how many blocks are frozen share their code, and dynamo's limit of recompilations."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    images = torch.randn(1, 3, 16, 16)
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for layers in range(5):
            model = build_classifier(ARCH, 3, trainable_layers=layers)
            compiled = compile_model(model)
            compiled(images).sum().backward()
            torch.testing.assert_close(compiled(images), model(images))
