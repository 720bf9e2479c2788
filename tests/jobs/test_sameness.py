"""An old result is never given as a new one: what changes a run, and every command that reuses one.

Each cell of the table is a change (an option, the images, their classes, the weights, the architecture) and a command that
finds an earlier result. The command trains anew, continues, or refuses in one line. Nothing that changes the numbers leaves
the earlier result in place.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fastft
from beton_tools.base.errors import UserError
from beton_tools.base.user_files import file_checksum
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from fastft.cli import main
from fastft.model.arch import load_open_clip_arch
from fastft.model.head_file import read_head
from fastft.recipe import load_recipe
from fastft.recipe.schema import option_fields
from fastft.run.identity import BY_CONTENT, FREE_OPTIONS, Identity, refuse_other_run
from fastft.run.inputs import open_inputs
from fastft.run.run_directory import read_identity
from tests.train.runs import differing, end, flags, rewind, run
from tests.written import write_clip, write_crops

# every option, by what another value does to a run that exists -------------------------------------------------------------

REFUSED, RESULT, FREE, CONTENT = "another run", "the same run, another result", "the same run and result", "by content"
VALUES: dict[str, tuple[str, Any]] = {  # a new option needs a line here: what another value of it means
    "data.train": (FREE, "elsewhere.beton"), "data.val": (FREE, "elsewhere.beton"), "data.hold_out_beton": (FREE, True),
    "data.background": (REFUSED, "black"), "data.train_size": (FREE, 7), "data.selection_share": (REFUSED, 0.1),
    "data.classes_by_position": (FREE, True),
    "data.num_classes": (REFUSED, 7), "data.multi_label": (REFUSED, True), "data.order": (REFUSED, "blocks"),
    "data.block_mib": (REFUSED, 2), "data.sampling": (REFUSED, "sqrt"), "data.workers": (FREE, 3),
    "data.batches_ahead": (FREE, 3),
    "model.arch": (CONTENT, None), "model.weights": (CONTENT, None), "model.head": (CONTENT, None),
    "model.image_size": (REFUSED, 64), "model.freeze_conv1": (REFUSED, False), "model.trainable_layers": (REFUSED, 1),
    "model.layer_scale": (REFUSED, 1.0), "model.rel_pos_bias": (REFUSED, True), "model.drop_path": (REFUSED, 0.1),
    "model.patch_dropout": (REFUSED, 0.1), "model.pool": (REFUSED, "class"), "model.head_init": (REFUSED, "probe"),
    "model.head_init_scale": (REFUSED, 1.0),
    "augment.policy": (REFUSED, "none"), "augment.crop": (REFUSED, "src"), "augment.scale_min": (REFUSED, 0.5),
    "augment.scale_max": (REFUSED, 0.9), "augment.ratio_min": (REFUSED, 1.0), "augment.ratio_max": (REFUSED, 1.0),
    "augment.interpolation": (REFUSED, "bilinear"), "augment.hflip": (REFUSED, 0.0), "augment.vflip": (REFUSED, 0.5),
    "augment.quarter_turns": (REFUSED, 0.5), "augment.color_jitter": (REFUSED, 0.4),
    "augment.color_jitter_prob": (REFUSED, 0.5), "augment.erase_prob": (REFUSED, 0.0),
    "augment.erase_mode": (REFUSED, "const"), "augment.erase_count": (REFUSED, 2), "augment.mixup": (REFUSED, 0.8),
    "augment.cutmix": (REFUSED, 1.0), "augment.mix_prob": (REFUSED, 0.5), "augment.mix_switch_prob": (REFUSED, 0.1),
    "augment.mean": (REFUSED, (0.5, 0.5, 0.5)), "augment.std": (REFUSED, (0.5, 0.5, 0.5)),
    "optim.batch_size": (REFUSED, 16), "optim.lr": (REFUSED, 1e-5), "optim.layer_decay": (REFUSED, 0.9),
    "optim.weight_decay": (REFUSED, 0.1), "optim.beta1": (REFUSED, 0.8), "optim.beta2": (REFUSED, 0.98),
    "optim.eps": (REFUSED, 1e-6), "optim.clip_grad": (REFUSED, 1.0), "optim.label_smoothing": (REFUSED, 0.0),
    "schedule.epochs": (REFUSED, 9), "schedule.budget": (REFUSED, "90s"), "schedule.warmup_epochs": (REFUSED, 0.5),
    "schedule.warmup": (REFUSED, 0.1), "schedule.min_lr": (REFUSED, 0.0), "schedule.stop_epoch": (RESULT, 1),
    "ema.decay": (REFUSED, 0.5), "ema.reference_batch": (REFUSED, 16), "ema.horizon": (REFUSED, 0.1),
    "train.run_dir": (FREE, "elsewhere"), "train.seed": (REFUSED, 1), "train.device": (FREE, "auto"),
    "train.amp": (REFUSED, "bf16"), "train.half_residual": (REFUSED, "on"), "train.micro_batch": (FREE, 4),
    "train.step": (FREE, "eager"), "train.grad_checkpointing": (FREE, True), "train.stop_after": (FREE, "1h"),
    "train.stop_when": (RESULT, 2), "train.timeout_minutes": (FREE, 1.0), "train.refit": (FREE, True),
    "train.log_every": (FREE, 7), "train.eval_every": (RESULT, 2), "train.eval_weights": (RESULT, "ema"),
    "train.eval_crop_pct": (REFUSED, 0.9), "train.eval_resize": (REFUSED, "squash"),
    "train.eval_interpolation": (REFUSED, "bilinear"), "train.eval_image_size": (REFUSED, 64),
    "train.checkpoint_steps": (FREE, 9),
    "train.checkpoint_epochs": (FREE, 9), "train.checkpoint_minutes": (FREE, 9.0), "train.tracker": (FREE, "wandb"),
    "train.profile": (FREE, 1), "train.keep_checkpoints": (FREE, 9),
    "about.top1": (FREE, 1.0), "about.source": (FREE, "x"),
}  # fmt: skip


def test_every_option_has_a_cell():
    assert VALUES.keys() == option_fields().keys()
    assert {key for key, (kind, _) in VALUES.items() if kind == FREE} == FREE_OPTIONS
    assert {key for key, (kind, _) in VALUES.items() if kind == CONTENT} == BY_CONTENT


@pytest.mark.parametrize("option", [key for key, (kind, _) in VALUES.items() if kind != CONTENT])
def test_another_value_is_another_run_another_result_or_nothing(tiny, tmp_path, option):
    recipe, inputs = open_inputs(load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path)))
    kind, value = VALUES[option]
    assert recipe.flat()[option] != value
    now = inputs.identify(recipe)
    other = inputs.identify(recipe.with_option(option, value))
    assert (other.digest() == now.digest()) is (kind == FREE)
    assert [difference.field for difference in now.differences(other)] == ([] if kind == FREE else [option])
    if kind == REFUSED:
        with pytest.raises(UserError, match=f"run holds another run: {option} .* -> .*use another --train.run_dir"):
            refuse_other_run(now, other, Path("run"))
    else:
        refuse_other_run(now, other, Path("run"))


def test_an_automatic_option_is_another_request_than_any_value(tiny, tmp_path):
    values = {key: value for key, value in tiny.items() if key != "optim.lr"}
    keys = {
        open_inputs(load_recipe("photos", flags(values, tmp_path, **given)))[1].request
        for given in ({}, {"optim__lr": "auto"}, {"optim__lr": "1e-3"})
    }
    assert len(keys) == 2


# everything else, by command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(photographs, tmp_path_factory) -> Path:
    """`photos`, `others` (other classes), weights `a` and `b`, a finished run, a grid, a table, a .beton of the photos."""
    home = tmp_path_factory.mktemp("workplace")
    write_crops(home / "photos", photographs, dict.fromkeys(("astronaut", "coffee"), 12), suffix="jpg")
    write_crops(home / "others", photographs, dict.fromkeys(("chelsea", "rocket"), 12), suffix="jpg")
    for name in ("a", "b"):
        (home / name).mkdir()
        write_clip(home / name)
    other = {key: value * 1.5 for key, value in load_file(home / "b/clip.safetensors").items()}
    save_file(other, home / "b/clip.safetensors")
    table = {"title": "t", "source": "s", "base": "photos", "rows": [{"label": "x", "set": {"optim.lr": "1e-3"}}]}
    (home / "table.yaml").write_text(json.dumps(table))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(command("train")) == 0
        assert main(command("grid")) == 0
        assert main(command("table")) == 0
    return home


def command(name: str, **changes: str) -> list[str]:
    values = {
        "data.train": "photos", "model.arch": "a/clip.json", "model.weights": "a/clip.safetensors",
        "model.image_size": "32", "train.amp": "fp32", "train.device": "cpu", "schedule.epochs": "2",
        "optim.batch_size": "8", "train.checkpoint_steps": "1", "train.keep_checkpoints": "9", "ema.horizon": "0.5",
    } | {key.replace("__", "."): value for key, value in changes.items()}  # fmt: skip
    options = [f"--{key}={value}" for key, value in values.items()]
    return {
        "train": ["train", "photos", *options, "--train.run_dir=runs/run", "--optim.lr=1e-3"],
        "grid": ["sweep", "photos", *options, "--optim.lr=1e-3,2e-3", "--out=grid"],
        "table": ["sweep", "table.yaml", *options, "--out=tables"],
        "refit": ["train", "photos", *options, "--train.run_dir=runs/run", "--optim.lr=1e-3", "--train.refit=true"],
    }[name]


@pytest.fixture
def place(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(workplace, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def other_data() -> dict[str, str]:
    return {"data__train": "others"}


def replaced_data() -> dict[str, str]:
    shutil.rmtree("photos")
    shutil.copytree("others", "photos")
    return {}


def one_image() -> dict[str, str]:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("photos/coffee/00.jpg")
    return {}


def class_names() -> dict[str, str]:
    Path("photos/coffee").rename("photos/tea")
    return {}


def class_order() -> dict[str, str]:
    Path("photos/coffee").rename("photos/abacus")
    return {}


def weights_content() -> dict[str, str]:
    shutil.copy("b/clip.safetensors", "a/clip.safetensors")
    return {}


def weights_file() -> dict[str, str]:
    return {"model__weights": "b/clip.safetensors"}


def architecture() -> dict[str, str]:
    config = json.loads(Path("a/clip.json").read_text())
    Path("a/clip.json").write_text(json.dumps(config | {"quick_gelu": False}))
    return {}


def weight_decay() -> dict[str, str]:
    return {"optim__weight_decay": "0.2"}


def seed() -> dict[str, str]:
    return {"train__seed": "5"}


def weights_name() -> dict[str, str]:
    shutil.copy("a/clip.safetensors", "renamed.safetensors")
    return {"model__weights": "renamed.safetensors"}


def workers() -> dict[str, str]:
    return {"data__workers": "1", "train__log_every": "1"}


CHANGES = [
    other_data, replaced_data, one_image, class_names, class_order, weights_content, weights_file, architecture, weight_decay,
    seed,
]  # fmt: skip
SAME = [weights_name, workers]
COMMANDS = ["train", "grid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resume", "table", "refit"))]
TABLE_TRAINS = [weights_content, weights_file, architecture, weight_decay, seed]  # in a folder of its own


def results() -> dict[str, str]:
    return {str(path): path.read_text() for path in Path().rglob("result.json")}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_the_numbers_is_trained_anew_or_refused(place, capsys, change, name):
    if name == "resume":
        rewind(Path("runs/run"), 3)  # in the second epoch
    before, options = results(), change()
    code = main(command("train" if name == "resume" else name, **options))
    if name == "table" and change in TABLE_TRAINS:
        assert code == 0 and len(results()) == len(before) + 1  # and the earlier result has its own row's folder
        return
    error = capsys.readouterr().err.strip()
    assert code == 2 and error.count("\n") == 0 and ("--train.run_dir" in error or "--out" in error), error
    assert results() == before, "an earlier result is neither replaced nor removed"


@pytest.mark.parametrize("changes", [{"train__eval_every": "2"}, {"train__eval_weights": "ema"}])
def test_what_is_evaluated_otherwise_continues_but_is_no_row_that_is_there(place, capsys, changes):
    """The numbers of the training are the same, those of the result are not."""
    before, finished = results(), end(Path("runs/run"))
    assert main(command("grid", **changes)) == 2
    assert "--out" in capsys.readouterr().err and results() == before
    rewind(Path("runs/run"), 3)
    assert main(command("train", **changes)) == 0, capsys.readouterr().err
    assert differing(end(Path("runs/run")), finished) == []


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("change", SAME, ids=lambda change: change.__name__)
def test_what_changes_no_number_continues_with_equal_bits(place, capsys, change, name):
    finished = end(Path("runs/run"))
    if name == "resume":
        rewind(Path("runs/run"), 3)
    before = results()
    assert main(command("train" if name == "resume" else name, **change())) == 0, capsys.readouterr().err
    assert differing(end(Path("runs/run")), finished) == []
    assert {path: json.loads(text)["last"] for path, text in before.items()}.items() <= {
        path: json.loads(text)["last"] for path, text in results().items()
    }.items()


def test_fit_refuses_as_the_command_does(place):
    options = {
        text[2:].partition("=")[0]: text.partition("=")[2] for text in command("train", data__train="others")[2:]
    }
    with pytest.raises(UserError, match="was trained on photos"):
        fastft.fit("photos", options, quiet=True)


# what reads a run ---------------------------------------------------------------------------------------------------------


def test_a_run_that_was_moved_is_evaluated_on_its_own_images(place, capsys):
    """Another run has its name now, with another split of the same photographs."""
    assert main(["eval", "runs/run", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    Path("runs/run").rename("runs/first")
    assert main(command("train", data__train="others")) == 0
    capsys.readouterr()
    for moved in ("runs/first", "elsewhere"):
        if moved != "runs/first":
            Path("runs/first").rename(moved)
        capsys.readouterr()
        assert main(["eval", moved, "--json"]) == 0
        after = json.loads(capsys.readouterr().out)
        assert after["top1"] == before["top1"] and after["loss"] == before["loss"]
        assert fastft.load(moved, "cpu").evaluate().top1 == before["top1"]
        assert (
            main(["report", moved, "--overwrite"]) == 0 and "has changed" not in Path(moved, "report.html").read_text()
        )


def test_the_card_and_the_report_of_a_moved_run_describe_its_own_images(place, capsys):
    files = [Path("runs/run/data") / f"{side}.beton" for side in ("train", "val")]
    own = [Manifest.of_beton(path).fingerprint for path in files]
    Path("runs/run").rename("runs/first")
    assert main(command("train", data__train="others")) == 0
    others = [Manifest.of_beton(path).fingerprint for path in files]
    for described, removed in ((own, False), ([], True)):
        if removed:
            shutil.rmtree("runs/first/data")
        assert main(["export", "runs/first", "--format=safetensors", "--out=x.safetensors", "--overwrite"]) == 0
        assert main(["report", "runs/first"]) == 0
        card, page = Path("x.safetensors.md").read_text(), Path("runs/first/report.html").read_text()
        assert [f for f in own + others if f in page] == described
        assert [f for f in own + others if f[:16] in card] == described


@pytest.mark.parametrize("reader", ["eval", "report", "average", "load"])
def test_validation_images_that_were_replaced_are_not_scored_as_the_runs(place, capsys, reader):
    other = Path("grid/lr=2e-3")
    for name in ("val.beton", "val.beton.manifest.json"):
        shutil.copy(Path("grid/data") / name.replace("val", "train"), Path("runs/run/data") / name)
    said = "has changed since runs/run was trained"
    if reader == "report":
        assert main(["report", "runs/run", "--overwrite"]) == 0
        assert said in Path("runs/run/report.html").read_text()
    elif reader == "load":
        with pytest.raises(UserError, match=said):
            fastft.load("runs/run", "cpu").evaluate()
    else:
        models = {"eval": ["eval", "runs/run"], "average": ["average", str(other), "runs/run", "--out", "soup"]}[reader]
        assert main(models) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["augment.mean=0.1,0.1,0.1", "train.eval_crop_pct=0.5", "train.eval_image_size=40"])
def test_runs_that_see_images_differently_are_not_averaged(place, capsys, option):
    arguments = [text for text in command("train") if not text.startswith("--train.run_dir")]
    assert main([*arguments, f"--{option}", "--train.run_dir=runs/other", "--schedule.epochs=1"]) == 0
    capsys.readouterr()
    assert main(["average", "runs/other", "runs/run", "--out", "soup"]) == 2
    error = capsys.readouterr().err
    assert "sees images differently" in error and option.partition("=")[0] in error
    assert not Path("soup").exists()


def test_the_start_of_an_average_is_what_the_run_started_from(place, capsys):
    assert main(["average", "start", "runs/run", "--weights=raw", "--alpha=0.5", "--out", "soup"]) == 0
    weights_content()
    assert main(["average", "start", "runs/run", "--weights=raw", "--alpha=0.5", "--out", "other"]) == 2
    assert "Give other --weights" in capsys.readouterr().err


def zero_shot_run(folder: str) -> None:
    """Train a run in `folder` that starts from the zero-shot head `head.safetensors`."""
    data = "runs/run/data/train.beton"
    tower = ["--model.arch=a/clip.json", "--model.weights=a/clip.safetensors", "--model.image_size=32"]
    assert main(["zeroshot", "final_b16", *tower, f"--data={data}", "--device=cpu", "--out=head.safetensors"]) == 0
    values = {"data__train": data, "data__val": "runs/run/data/val.beton", "model__head": "head.safetensors"}
    given = ["--model.pool=token", "--model.head_init=small", f"--train.run_dir={folder}"]
    assert main([*(text for text in command("train", **values) if "run_dir" not in text), *given]) == 0


def test_the_start_of_an_average_has_the_head_that_the_run_started_from(place, capsys):
    zero_shot_run("runs/zero")
    given = ["average", "start", "runs/zero", "--alpha=0", "--device=cpu", "--out"]
    assert main([*given, "soup"]) == 0
    with safe_open("head.safetensors", "pt") as file:
        header = file.metadata()
    save_file({name: -value for name, value in load_file("head.safetensors").items()}, "head.safetensors", header)
    capsys.readouterr()
    assert main([*given, "other"]) == 2
    assert "head.safetensors is gone or has changed since" in capsys.readouterr().err and not Path("other").exists()


def test_a_run_that_starts_from_a_linear_probe_has_the_tower_below_it(place, capsys):
    given = [text for text in command("train") if "run_dir" not in text]
    assert main([*given, "--schedule.stop_epoch=0", "--train.run_dir=runs/probe"]) == 0
    start = [
        *(text for text in given if "weights" not in text),
        "--model.weights=runs/probe",
        "--schedule.stop_epoch=1",
    ]
    assert main([*start, "--train.run_dir=runs/second"]) == 0
    weights_content()
    capsys.readouterr()
    assert main([*start, "--train.run_dir=runs/third"]) == 2
    error = capsys.readouterr().err
    assert "a/clip.safetensors is gone or has changed since runs/probe was trained from it" in error
    assert not Path("runs/third").exists()


# in one run ---------------------------------------------------------------------------------------------------------------


def test_validation_images_cannot_be_exchanged_over_an_epoch_without_any(tiny, tmp_path):
    """Otherwise `best` is of one set and `last` of another, with figures that cannot be compared."""
    run(tiny, tmp_path / "run", schedule__stop_epoch="1")
    run(tiny, tmp_path / "run", schedule__stop_epoch="2", data__val="none")
    assert read_identity(tmp_path / "run").val == BetonSet.open(tiny["data.val"]).content
    with pytest.raises(UserError, match=r"holds another run: data\.val: "):
        run(tiny, tmp_path / "run", data__val=tiny["data.train"])
    run(tiny, tmp_path / "run")


def test_a_probe_is_not_reused_for_another_architecture_behind_the_same_path(place, capsys):
    """A run that ended before its first checkpoint keeps its probe and its choices."""
    shutil.rmtree("runs/run/checkpoints")
    Path("runs/run/result.json").unlink()
    probe = read_head(Path("runs/run/probe.safetensors")).weight_KD
    assert main(command("train", schedule__stop_epoch="1")) == 0
    assert torch.equal(read_head(Path("runs/run/probe.safetensors")).weight_KD, probe)
    shutil.rmtree("runs/run/checkpoints")
    Path("runs/run/result.json").unlink()
    architecture()
    assert main(command("train", schedule__stop_epoch="1")) == 0
    assert not torch.equal(read_head(Path("runs/run/probe.safetensors")).weight_KD, probe)


def test_a_run_that_starts_from_a_run_has_its_architecture_from_anywhere(place, tmp_path, monkeypatch, capsys):
    shutil.copytree("photos", tmp_path / "photos")
    run_folder, folder = Path("runs/run").resolve(), tmp_path / "elsewhere"
    Path("a/clip.json").unlink()
    folder.mkdir()
    monkeypatch.chdir(folder)
    arguments = ["--data.train=../photos", f"--model.weights={run_folder}", "--train.device=cpu", "--train.run_dir=new"]
    assert main(["train", "photos", *arguments, "--schedule.epochs=1"]) == 0, capsys.readouterr().err
    assert read_identity(Path("new")).arch == read_identity(run_folder).arch
    assert load_open_clip_arch(load_recipe("new/recipe.yaml").model.arch).layers == 2


def test_a_head_of_other_weights_is_refused(place, capsys, monkeypatch):
    data = "runs/run/data/train.beton"
    arguments = [
        "--model.arch=a/clip.json",
        "--model.weights=a/clip.safetensors",
        "--model.image_size=32",
        f"--data={data}",
    ]
    assert main(["zeroshot", "final_b16", *arguments, "--device=cpu", "--out=head.safetensors"]) == 0
    capsys.readouterr()
    values = {"data__train": data, "data__val": "runs/run/data/val.beton", "model__head": "head.safetensors"}
    given = ["--model.pool=token", "--model.head_init=small", "--train.run_dir=runs/zero", "--optim.lr=1e-3"]
    wrong = command("train", **values, model__weights="b/clip.safetensors")
    assert main([*(text for text in wrong if "run_dir" not in text), *given]) == 2
    assert (
        "was made from other weights (a/clip.safetensors) than model.weights b/clip.safetensors"
        in capsys.readouterr().err
    )
    right = command("train", **values)
    assert main([*(text for text in right if "run_dir" not in text), *given]) == 0, capsys.readouterr().err


# opening ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "grid", "refit"])
def test_each_file_is_opened_at_most_twice(place, monkeypatch, name):
    from beton_tools.read import format as beton_format

    opened: dict[str, int] = {}
    original: Callable[..., Any] = beton_format.Beton.open.__func__  # type: ignore[attr-defined]

    def count(cls: type, path: Path) -> Any:
        opened[str(path)] = opened.get(str(path), 0) + 1
        return original(cls, path)

    monkeypatch.setattr(beton_format.Beton, "open", classmethod(count))
    for folder in ("runs", "grid"):
        shutil.rmtree(folder)
    assert main(command(name)) == 0
    assert opened and max(opened.values()) <= 2, opened


# runs of fastft 0.3 -------------------------------------------------------------------------------------------------------


def as_in_0_3(folder: Path) -> None:
    """Take away what that version did not store."""
    (folder / "identity.json").unlink()
    for state in folder.glob("checkpoints/*/state.json"):
        document = {
            key: value for key, value in json.loads(state.read_text()).items() if key not in ("weights", "head")
        }
        state.write_text(json.dumps(document))
        checksums = json.loads((state.parent / "checksums.json").read_text())
        (state.parent / "checksums.json").write_text(json.dumps(checksums | {"state.json": file_checksum(state)}))


def test_a_run_of_an_older_fastft_continues_and_is_compared_by_what_it_stored(place, capsys):
    finished = end(Path("runs/run"))
    as_in_0_3(Path("runs/run"))
    as_in_0_3(Path("grid/lr=1e-3"))
    assert main(command("grid")) == 0, capsys.readouterr().err
    rewind(Path("runs/run"), 3)
    assert main(command("train", optim__weight_decay="0.3")) == 2
    assert "optim.weight_decay 0.05 -> 0.3" in capsys.readouterr().err
    shutil.copy("b/clip.safetensors", "other.safetensors")
    assert main(command("train", model__weights="other.safetensors")) == 2
    assert "model.weights 'a/clip.safetensors' -> 'other.safetensors'" in capsys.readouterr().err
    assert main(command("train")) == 0
    assert differing(end(Path("runs/run")), finished) == []


def test_a_result_that_does_not_say_what_it_is_of_is_not_reused(place, capsys):
    (Path("grid/lr=1e-3") / "identity.json").unlink()
    shutil.rmtree("grid/lr=1e-3/checkpoints")
    before = results()
    assert main(command("grid")) == 2
    assert "lr=1e-3 has a result, but nothing says what it was trained on. Use another --out" in capsys.readouterr().err
    assert results() == before


def test_groups_that_change_how_a_linear_probe_is_scored_are_another_run(tiny, tmp_path):
    """The images, and so the bytes of the .beton, are the same. Only its manifest has the groups."""
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")

    def opened(groups: int | None, head_init: str = "probe") -> tuple[Identity, str]:
        cells = ["" if groups is None else f"g{i % groups}" for i in range(16)]
        rows = [f"{i:02}.png,{'ab'[i // 8]},{cell}" for i, cell in enumerate(cells)]
        (tmp_path / "photos.csv").write_text("\n".join(["image,label,group", *rows]))
        options = [
            f"--data={tmp_path / 'photos.csv'}",
            f"--out={tmp_path / 'train.beton'}",
            "--workers=0",
            "--overwrite",
        ]
        assert main(["convert", "folder", *options]) == 0
        given = {"data__train": str(tmp_path / "train.beton"), "data__val": "none", "model__head_init": head_init}
        recipe, inputs = open_inputs(load_recipe("rcp/final_b16.yaml", flags(tiny, tmp_path / "run", **given)))
        return inputs.identify(recipe), inputs.request

    (none, alone), (four, by_four), (again, repeated), (two, by_two) = (opened(n) for n in (None, 4, 4, 2))
    assert none.data.checksum == two.data.checksum and len({alone, by_four, by_two}) == 3
    assert repeated == by_four and not four.differences(again)
    for before, now in ((none, four), (four, two), (two, none)):
        with pytest.raises(UserError, match=r"another run: data\.train: its groups or identical images changed\. "):
            refuse_other_run(before, now, Path("run"))
    assert len({opened(n, "small")[1] for n in (None, 4)}) == 1, "without a probe nothing depends on them"
    earlier = msgspec.structs.replace(four, units=None)  # what a run of an earlier version stored
    refuse_other_run(earlier, two, Path("run"))
