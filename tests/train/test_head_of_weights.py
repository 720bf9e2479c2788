"""A run whose head starts from that of timm's weights, by WordNet id (`model.head_init=weights`)."""

import shutil
from io import StringIO
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import Content
from beton_tools.read.class_list import Classes
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.data.classes import refuse_other_classes
from fastft.evaluate.trained import load_trained
from fastft.jobs.run import run_recipe
from fastft.model.head_file import head_of_weights, set_head
from fastft.model.recipe_model import build_model
from fastft.recipe import load_recipe
from fastft.run.checkpoint import ModelState
from tests.refusals import refuses
from tests.train.runs import flags, run
from tests.written import write_crops

TENCH, GOLDFISH, SPANIEL = "n01440764", "n01443537", "n02085782"  # ImageNet-12k does not have the last
WIDTH = {"patch_size": 8, "img_size": 32, "embed_dim": 64, "depth": 2, "num_heads": 2}


def random_timm(classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_clip_224", num_classes=classes, **WIDTH).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def fine_tuned(tiny, tmp_path_factory) -> tuple[torch.nn.Module, dict[str, str]]:
    """timm's model with a head over ImageNet-12k, and options of a run on photographs of a tench and a spaniel, so called."""
    folder, source = tmp_path_factory.mktemp("wnids"), Path(tiny["data.train"]).parent
    for split in ("train", "val"):
        for name, wnid in (("astronaut", TENCH), ("coffee", SPANIEL)):
            shutil.copytree(source / split / name, folder / split / wnid)
        convert_folder(folder / split, folder / f"{split}.beton", WriteOptions(workers=0))
    model = random_timm(11821)
    save_file(model.state_dict(), folder / "in12k.safetensors")
    options = {
        "data.train": str(folder / "train.beton"), "data.val": str(folder / "val.beton"), "model.pool": "class",
        "model.weights": str(folder / "in12k.safetensors"), "model.head_init": "weights",
    }  # fmt: skip
    return model, tiny | options


def test_logits_are_timms_of_the_same_classes(fine_tuned):
    theirs, options = fine_tuned
    recipe = load_recipe("final_b16", flags(options, Path("run"), data__num_classes="3"))
    ours = build_model(recipe).eval()
    wnids = [GOLDFISH, SPANIEL, TENCH]
    head, note = head_of_weights(ours, recipe, Classes.of(wnids, wnids))
    set_head(ours, head, Path("weights"))
    assert note.startswith("head: 2 of 3 classes from ")
    names, images = ImageNetInfo("imagenet-12k").label_names(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want = theirs(images)[:, [names.index(GOLDFISH), names.index(TENCH)]]
        got = ours(images)
    torch.testing.assert_close(got[:, [0, 2]], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[:, 1], want.mean(1), rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_these_rows_also_its_ema(fine_tuned, tmp_path):
    theirs, options = fine_tuned
    still, said = {"optim.lr": "0", "schedule.min_lr": "0", "schedule.epochs": "2"}, StringIO()
    run_recipe(load_recipe("rcp/final_b16.yaml", flags(options | still, tmp_path)), Console(file=said, width=400))
    row = theirs.head.weight[ImageNetInfo("imagenet-12k").label_names().index(TENCH)]
    for weights in ("raw", "ema"):
        head = load_trained(tmp_path, torch.device("cpu"), weights).model.head
        torch.testing.assert_close(head.weight, row.expand(2, -1))
    assert said.getvalue().count("head: 1 of 2 classes from ") == 1


def refused_runs(tiny: dict[str, str], options: dict[str, str], other: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Case -> (options, message)."""
    return {
        "other classes": (
            options | {"data.train": tiny["data.train"], "data.val": tiny["data.val"]},
            "the head in .* has 11,821 classes, but none has the same WordNet id as a class in .*. Set --model.head_init=probe",
        ),
        "another pool": (options | {"model.pool": "patches"}, "reads the class token. Set model.pool to class"),
        "no set of ImageNet's": (options | {"model.weights": str(other)}, "has 11 classes, but none has the same "),
        "two heads": (options | {"model.head": "head.safetensors"}, "model.head and model.head_init=weights both set"),
    }


@pytest.mark.parametrize("case", list(refused_runs({"data.train": "", "data.val": ""}, {}, Path())))
def test_what_gives_no_head_is_one_line_and_leaves_no_run(tiny, fine_tuned, tmp_path, case):
    save_file(random_timm(11).state_dict(), tmp_path / "eleven.safetensors")
    options, message = refused_runs(tiny, fine_tuned[1], tmp_path / "eleven.safetensors")[case]
    with refuses(message):
        run(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_without_a_head_are_one_line(tiny, fine_tuned, tmp_path):
    recipe = load_recipe("final_b16", flags(fine_tuned[1], Path("run")))
    model = build_model(recipe)
    save_file({f"visual.{k}": v for k, v in model.visual.state_dict().items()}, tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"clip\.safetensors have no head. Set --model.head_init=probe"):
        head_of_weights(
            model, recipe.with_option("model.weights", str(tmp_path / "clip.safetensors")), Classes.of([TENCH], [TENCH])
        )


CRANES = ("n02012849", "n03126707")  # both called "crane"


def test_a_run_from_a_run_keeps_the_rows_of_classes_with_the_same_name(tiny, photographs, tmp_path):
    for wnid, name in zip((TENCH, *CRANES), ("astronaut", "chelsea", "coffee"), strict=True):
        write_crops(tmp_path / "made" / wnid, {"x": photographs[name]}, {"x": 8}, suffix="jpg")
    convert_folder(tmp_path / "made", tmp_path / "a.beton", WriteOptions(workers=0))
    data = {"data.train": str(tmp_path / "a.beton"), "data.val": str(tmp_path / "a.beton"), "data.num_classes": "3"}
    run(tiny | data | {"optim.batch_size": "8"}, tmp_path / "first")
    first = load_trained(tmp_path / "first", torch.device("cpu"))
    assert first.classes == ["tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"]
    shutil.rmtree(tmp_path / "made" / TENCH)
    convert_folder(tmp_path / "made", tmp_path / "b.beton", WriteOptions(workers=0))
    again = {key: str(tmp_path / "b.beton") for key in ("data.train", "data.val")} | {"data.num_classes": "2"}
    still = {"optim.lr": "0", "schedule.min_lr": "0", "optim.batch_size": "8", "model.weights": str(tmp_path / "first")}
    run(tiny | again | still, tmp_path / "second")
    second = load_trained(tmp_path / "second", torch.device("cpu"))
    assert second.classes == first.classes[1:]
    torch.testing.assert_close(second.model.head.weight, first.model.head.weight[1:])


def test_an_earlier_run_without_ids_is_continued_by_its_names():
    """Its checkpoints have "crane" twice."""
    state = ModelState(
        name="x", recipe={}, arch={}, classes=["tench, Tinca tinca", "crane", "crane"], class_counts=[1, 1, 1],
        data=Content(num_samples=0, files=[], identities=[]),
    )  # fmt: skip
    ids = [TENCH, *CRANES]
    now = Classes.of(state.classes, ids)
    assert refuse_other_classes(now, state.known_classes, "x.beton") == ""
    stored = Classes.of_labels(now.labels, ids)
    assert stored == now and refuse_other_classes(stored, state.known_classes, "x.beton") == ""
