"""What fastft writes, fastft reads: a run, its checkpoints and every export start the next training, tower and head."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from beton_tools.base.errors import UserError
from beton_tools.read.class_list import Classes
from fastft.cli import main
from fastft.evaluate.trained import load_trained
from fastft.export import export_checkpoint
from fastft.model import ImageClassifier
from fastft.model.head_file import head_of_weights, set_head
from fastft.model.recipe_model import build_model
from fastft.recipe import FinalRecipe, load_recipe
from fastft.run.result import Result, WeightChoice, write_result
from fastft.run.start_weights import with_run_weights
from tests.written import make_checkpoint

CPU = torch.device("cpu")
CLIP = {"quick_gelu": True}
DINO = {"no_ln_pre": True, "ls_init_value": 1e-5, "norm_kwargs": {"eps": 1e-6}}
TOWERS = {
    "patches": (CLIP, {}),
    "class": (CLIP, {"model__pool": "class"}),
    "token": (CLIP, {"model__pool": "token"}),
    "both": (CLIP, {"model__pool": "class+patches"}),
    "attention": (CLIP, {"model__pool": "attention"}),
    "dinov2": (DINO, {}),
    "layer scale": (CLIP, {"model__layer_scale": 1.0}),
    "timm": ({}, {"model__arch": "timm/test_vit", "model__image_size": 160}),
    "timm both": ({}, {"model__arch": "timm/test_vit", "model__image_size": 160, "model__pool": "class+patches"}),
    "timm attention": ({}, {"model__arch": "timm/test_vit", "model__image_size": 160, "model__pool": "attention"}),
}
WRITTEN = {"timm": "timm", "open_clip": "clip", "safetensors": "model.safetensors"}
IMPOSSIBLE = {("token", "timm"), ("timm", "open_clip")}
IMPOSSIBLE |= {
    (tower, form) for tower in TOWERS if "both" in tower or "attention" in tower for form in ("timm", "open_clip")
}
READ = [
    (tower, form)
    for tower in TOWERS
    for form in ("run", "checkpoint", "file", *WRITTEN)
    if (tower, form) not in IMPOSSIBLE
]


def written(folder: Path, tower: str, form: str) -> tuple[Path, FinalRecipe]:
    """(what `model.weights` names, the recipe of the run)."""
    vision, options = TOWERS[tower]
    checkpoint = make_checkpoint(folder, dict(vision), **options)
    recipe = load_trained(checkpoint, CPU).recipe
    if form in WRITTEN:
        return export_checkpoint(folder / "run", form, folder / WRITTEN[form], temperature=False).path, recipe
    return {"run": folder / "run", "checkpoint": checkpoint, "file": checkpoint / "model.safetensors"}[form], recipe


def started(weights: Path, recipe: FinalRecipe, classes: str) -> ImageClassifier:
    """The model that a training of these classes starts from."""
    asked = recipe.with_option("model.weights", str(weights)).with_option("data.num_classes", len(classes)).asked()
    recipe = FinalRecipe.of(with_run_weights(asked))
    model = build_model(recipe).eval()
    head, _ = head_of_weights(model, recipe, Classes.of(classes))
    set_head(model, head, weights)
    return model


@pytest.mark.parametrize(("tower", "form"), READ)
def test_a_training_starts_from_the_same_tower_and_the_rows_of_its_classes(tmp_path, tower, form):
    weights, recipe = written(tmp_path, tower, form)
    old = load_trained(tmp_path / "run", CPU).model
    size = recipe.model.image_size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        want = old(images)
        same = started(weights, recipe, "abcdefg")
        torch.testing.assert_close(same(images), want, rtol=1e-4, atol=1e-5)
        other = started(weights, recipe, "gzb")(images)  # another order, one class that is new
    torch.testing.assert_close(other[:, [0, 2]], want[:, [6, 1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other[:, 1], want[:, [6, 1]].mean(1), rtol=1e-4, atol=1e-5)


def test_a_timm_export_of_another_number_of_heads_is_refused_by_what_it_states(tmp_path):
    weights, recipe = written(tmp_path, "patches", "timm")
    config = json.loads((weights / "config.json").read_text())
    config["model_args"]["num_heads"] = 4
    (weights / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"have 4 attention heads, but .* has 2"):
        build_model(recipe.with_option("model.weights", str(weights)))


@pytest.mark.parametrize(("format", "name"), [("onnx", "m.onnx"), ("torch", "m.pt2")])
def test_files_for_deployment_are_refused_with_what_to_give(tmp_path, tiny, refused, format, name):
    make_checkpoint(tmp_path, dict(CLIP))
    export_checkpoint(tmp_path / "run", format, tmp_path / name)
    flags = [f"--{k}={v}" for k, v in tiny.items()] + [
        f"--model.weights={tmp_path / name}",
        f"--out={tmp_path / 'new'}",
    ]
    assert "is for deployment and holds no layers to train. Give the run" in refused(["train", "final_b16", *flags])
    assert not (tmp_path / "new").exists()


def test_train_starts_from_a_run_with_its_architecture_and_says_so(tiny, tmp_path, capsys):
    """Every option of the tower comes from the run; at a learning rate of 0 the new run ends with the old one's weights."""
    make_checkpoint(tmp_path, dict(CLIP), classes=("coffee", "astronaut", "cat"), model__layer_scale=0.5)
    old = load_trained(tmp_path / "run", CPU).model
    kept = {k: v for k, v in tiny.items() if k not in ("model.arch", "model.image_size", "model.weights")}
    flags = [f"--{k}={v}" for k, v in kept.items()] + ["--optim.lr=0", "--schedule.min_lr=0", "--ema.decay=0"]
    flags += [
        f"--model.weights={tmp_path / 'run'}",
        f"--out={tmp_path / 'new'}",
        "--schedule.epochs=1",
        "--schedule.warmup=0",
    ]
    assert main(["train", "final_b16", *flags]) == 0
    said = capsys.readouterr().out
    assert "model.arch" in said and f"as in {tmp_path / 'run'}" in said
    assert "head: 2 of 2 classes from" in said
    new = load_trained(tmp_path / "new", CPU, "raw").model
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(new(images), old(images)[:, [1, 0]], rtol=1e-4, atol=1e-5)
    assert main(["train", "final_b16", *flags]) == 0, "the same command continues the run"


def test_explain_counts_with_the_runs_tower(tiny, tmp_path, capsys):
    make_checkpoint(tmp_path, dict(CLIP))
    assert main(["explain", "final_b16", f"--model.weights={tmp_path / 'run'}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"]["model"]["image_size"] == 32 and told["recipe"]["model"]["head_init"] == "weights"


def test_weights_of_a_probe_give_its_tower(tmp_path):
    """A run that chose its linear probe starts from the same pretrained weights again."""
    checkpoint = make_checkpoint(tmp_path, dict(CLIP))
    save_file(load_file(checkpoint / "model.safetensors"), tmp_path / "pretrained.safetensors")
    (tmp_path / "second").mkdir()
    second = make_checkpoint(tmp_path / "second", dict(CLIP), model__weights=str(tmp_path / "pretrained.safetensors"))
    last = second.rename(second.parent / "step-00000001")
    run = last.parents[1]
    (run / "probe.safetensors").touch()
    choice = WeightChoice(take="probe", kind="probe", epoch=0, reason="better")
    write_result(run, Result(recipe="r", epochs=1, seconds=0.0, expectation="", weights=choice))
    start = with_run_weights(load_recipe("final_b16", {"model.weights": str(run)}))
    assert start.model.weights == str(tmp_path / "pretrained.safetensors") and start.model.head_init == "small"
