"""timm's models in the one trainer: the loss curve is that of timm's own step, resume is exact, every command works."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2

from fastft.augment.recipe_policy import build_policy
from fastft.cli import main
from fastft.data.loader import TrainLoader
from fastft.data.stage import Output
from fastft.evaluate.trained import load_trained
from fastft.optim.schedule import build_schedule
from fastft.recipe import Recipe, load_recipe
from tests.train.runs import differing, end, flags, losses, rewind, run

TINY = {"test_vit": "32", "test_convnext": "64"}
NAMES = ["test_vit", pytest.param("test_convnext", marks=pytest.mark.slow)]
NOISE = {"model__drop_path": "0.5", "train__keep_checkpoints": "100"}
CURVE = {
    "schedule__epochs": "4", "model__head_init_scale": "1", "model__freeze_conv1": "false", "augment__erase_prob": "0.5",
    "optim__layer_decay": "0.8",
}  # fmt: skip


def on_timm(tiny: dict[str, str], name: str) -> dict[str, str]:
    return tiny | {"model.arch": f"timm/{name}", "model.image_size": TINY[name]}


def timm_losses(recipe: Recipe) -> list[float]:
    """Losses of timm's model, optimiser with layer decay, and loss over the images that fastft's loader gives."""
    torch.manual_seed(recipe.train.seed)
    name, size = recipe.model.arch.removeprefix("timm/"), recipe.model.image_size
    model = timm.create_model(name, num_classes=2, **({} if "convnext" in name else {"img_size": size})).train()
    o, found = recipe.optim, []
    optimizer = create_optimizer_v2(
        model,
        "adamw",
        lr=o.lr,
        weight_decay=o.weight_decay,
        layer_decay=o.layer_decay,
        eps=o.eps,
        betas=(o.beta1, o.beta2),
    )
    loss_of = LabelSmoothingCrossEntropy(o.label_smoothing)
    output = Output(size, torch.device("cpu"), torch.float32)
    with TrainLoader(
        str(recipe.data.train), build_policy(recipe), output, seed=recipe.train.seed, batch_size=o.batch_size,
        micro_batch=o.batch_size, workers=1,
    ) as loader:  # fmt: skip
        schedule = build_schedule(recipe, loader.steps_per_epoch)
        for epoch in range(recipe.epochs):
            for batch in loader.epoch(epoch):
                for group in optimizer.param_groups:
                    group["lr"] = schedule(len(found)) * group["lr_scale"]
                loss = loss_of(model(batch.images), batch.labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(loss.item())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_curve_is_that_of_timms_own_training_step(tiny, tmp_path, name):
    run(on_timm(tiny, name), tmp_path, **CURVE)
    ours = [loss for _, loss in losses(tmp_path)]
    theirs = timm_losses(load_recipe("rcp/final_b16.yaml", flags(on_timm(tiny, name), tmp_path, **CURVE)))
    assert len(ours) == len(theirs) >= 20
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert max(ours) - min(ours) > 0.05, "a curve, not a constant"


@pytest.mark.parametrize("name", NAMES)
def test_resuming_with_stochastic_depth_is_exact(tiny, tmp_path, name):
    values = on_timm(tiny, name)
    run(values, tmp_path / "whole", **NOISE)
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    rewind(tmp_path / "other", 4)
    torch.manual_seed(123)
    run(values, tmp_path / "other", **NOISE)
    assert losses(tmp_path / "other") == losses(tmp_path / "whole")
    assert differing(end(tmp_path / "other"), end(tmp_path / "whole")) == []


@pytest.mark.parametrize("options", [
    {"train__amp": "bf16", "train__half_residual": "on"}, {"train__step": "compile", "model__patch_dropout": "0.5"},
])  # fmt: skip
@pytest.mark.slow
def test_other_ways_to_compute_a_step_give_nearly_the_same_losses(tiny, tmp_path, options):
    values = on_timm(tiny, "test_vit") | {"model.drop_path": "0.3"}
    plain = {key: value for key, value in options.items() if key == "model__patch_dropout"}
    run(values, tmp_path / "eager", **plain)
    run(values, tmp_path / "other", **options)
    eager, other = (dict(losses(tmp_path / folder)) for folder in ("eager", "other"))
    assert other == pytest.approx(eager, rel=0.02)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("timm") / "run"
    run(on_timm(tiny, "test_convnext"), folder)
    return folder


@pytest.mark.parametrize("format", ["timm", "safetensors", "onnx"])
def test_exports_give_the_checkpoints_logits_in_their_library(trained, tmp_path, format):
    from fastft.export import FORMATS

    out = tmp_path / f"out{FORMATS[format].suffix}"
    assert main(["export", str(trained), "--format", format, "--out", str(out)]) == 0
    images = torch.randn(3, 3, 64, 64)
    plain = (
        timm.create_model(f"local-dir:{out}", pretrained=True).eval() if format == "timm" else FORMATS[format].load(out)
    )
    with torch.no_grad():
        checkpoint = load_trained(trained, torch.device("cpu"))
        expected = checkpoint.model(images) / (checkpoint.temperature or 1)  # which the export's head contains
        torch.testing.assert_close(plain(images), expected, rtol=1e-4, atol=1e-5)


def test_timm_preprocesses_as_the_run_did(trained, tmp_path):
    main(["export", str(trained), "--format", "timm", "--out", str(tmp_path / "out")])
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True))
    own = timm.get_pretrained_cfg("test_convnext")
    assert (tuple(config["mean"]), tuple(config["input_size"]), config["crop_pct"]) == (own.mean, (3, 64, 64), 1.0)


def test_open_clips_format_refuses_a_timm_model(trained, tmp_path, refused):
    assert "Export timm's models to timm, safetensors or onnx" in refused(
        ["export", str(trained), "--format", "open_clip", "--out", str(tmp_path / "out")]
    )


PUBLISHED = {  # small models of the families of docs/models.md -> pixels of a training image
    "vit_tiny_patch16_224": "32", "vit_small_patch14_dinov2": "28", "vit_small_patch16_dinov3": "32",
    "eva02_tiny_patch14_336": "28", "vit_pe_core_tiny_patch16_384": "32", "convnext_atto": "64",
    "swin_tiny_patch4_window7_224": "64",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_train_resume_and_export(tiny, tmp_path, name):
    values = tiny | {"model.arch": f"timm/{name}", "model.image_size": PUBLISHED[name]}
    changes = {"schedule__epochs": "2", "train__keep_checkpoints": "100", "optim__lr": "2e-4"}
    run(values, tmp_path / "run", **changes)
    whole, expected = losses(tmp_path / "run"), end(tmp_path / "run")
    rewind(tmp_path / "run", 2)
    run(values, tmp_path / "run", **changes)
    assert losses(tmp_path / "run") == whole and differing(end(tmp_path / "run"), expected) == []
    assert len(whole) == 12 and len({loss for _, loss in whole}) > 6
    assert main(["export", str(tmp_path / "run"), "--format", "timm", "--out", str(tmp_path / "out")]) == 0
    images = torch.randn(2, 3, int(PUBLISHED[name]), int(PUBLISHED[name]))
    with torch.inference_mode():
        theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()(images)
        trained = load_trained(tmp_path / "run", torch.device("cpu"))
        ours = trained.model(images) / (trained.temperature or 1)  # which the export's head contains
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
