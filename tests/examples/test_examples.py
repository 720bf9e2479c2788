"""What the programs in examples/ promise beyond their documented commands, which `test_documented_commands.py` runs."""

import csv
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform

import fastft
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.machine.exits import NonFinite
from fastft.model import Tower, load_arch
from fastft.recipe import differences, load_recipe
from fastft.run.checkpoint import list_checkpoints
from fastft.run.metrics_lines import read_lines
from tests.train.runs import differing
from tests.train.runs import run as train_run

ROOT = Path(__file__).parent.parent.parent
MODEL = ["--model", "vit_tiny_patch16_224", "--size", "32", "--batch-size", "8", "--epochs", "2"]


Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a program of examples/ in a folder of its own; the lines that it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_the_plain_loop_trains_and_resumes(tiny, run):
    arguments = ["plain_loop.py", tiny["data.train"], tiny["data.val"], *MODEL]
    lines = run(*arguments)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all(0 < float(re.search(r"loss ([\d.]+)", line)[1]) < 5 for line in lines)
    assert run(*arguments) == ["state.pt: 2 of 2 epochs are trained. Delete it to start anew"]
    continued, third = run(*arguments, "--epochs", "3")
    assert continued.startswith("state.pt: 2 of 3 epochs are trained")
    assert third.startswith("epoch 2: loss")


def test_the_papers_loop_ends_with_the_weights_of_fastft_train_bit_for_bit(tiny, run, tmp_path):
    tower = Tower(load_arch(tiny["model.arch"]))
    save_file({f"visual.{name}": value for name, value in tower.state_dict().items()}, tmp_path / "tower.safetensors")
    options = {
        "model.arch": tiny["model.arch"], "model.weights": "tower.safetensors", "train.amp": "fp32", "train.device": "cpu",
        "schedule.epochs": "2", "optim.batch_size": "8", "train.micro_batch": "4", "optim.lr": "1e-3", "ema.decay": "1e-6",
    }  # fmt: skip
    names = {"schedule.epochs": "epochs", "ema.decay": "ema-decay", "model.image_size": "size"}
    short = {names.get(key, key.rpartition(".")[2].replace("_", "-")): value for key, value in options.items()}
    arguments = [f"--{key}={value}" for key, value in short.items()]
    lines = run(
        "paper.py", tiny["data.train"], tiny["data.val"], "--size=32", "--warmup=0.5", "--save=ema.pt", *arguments
    )
    assert len(lines) == 2 and re.search(r"loss [\d.]+, top-1 [\d.]+ %, EMA [\d.]+ ±", lines[-1])

    train_run(tiny | options, tmp_path / "run", schedule__warmup_epochs="1", ema__reference_batch="2048")
    assert (
        differing(
            torch.load("ema.pt"), load_file(list_checkpoints(tmp_path / "run/checkpoints")[-1] / "ema.safetensors")
        )
        == []
    )


def test_ffcvs_loader_names_a_file_that_is_smaller_than_a_batch(tiny, run, capsys):
    with pytest.raises(SystemExit):
        run("ffcv_loader.py", tiny["data.train"], "--size", "32", "--batch-size", "64")
    assert "has fewer images than a batch, 64. Give a smaller --batch-size" in capsys.readouterr().err


@pytest.fixture
def pictures(tiny: dict[str, str], tmp_path: Path) -> Path:
    """A folder of photographs with a folder per class."""
    (tmp_path / "pics").symlink_to(Path(tiny["data.train"]).parent / "train")
    return tmp_path / "pics"


def test_the_timm_loop_fits_a_head_chooses_its_augmentation_and_fits_photographs(pictures, tmp_path, run):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    options = ["--model=test_vit", "--weights=vit.pt", "--image-size=64", "--batch-size=8", "--workers=0", "--epochs=4"]
    lines = run("timm_baseline.py", "pics", "pics", *options)
    assert len([line for line in lines if line.startswith("epoch")]) == 3 * 4  # two trials, and all images
    shares = {line.removeprefix("augmentation: "): float(after.split()[0])
              for line, after in zip(lines[::6], lines[5::6], strict=True) if line.startswith("augmentation")}  # fmt: skip
    chosen = next(line for line in lines if line.startswith("all training images")).rpartition(": ")[2]
    assert len(shares) == 2 and shares[chosen] == max(shares.values())
    assert float(re.search(r"top-1 ([\d.]+) %", lines[-1])[1]) > 60


def test_the_timm_loop_tries_sizes_with_fewer_epochs_for_the_same_time(pictures, tmp_path, run):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    options = ["--model=test_vit", "--weights=vit.pt", "--batch-size=8", "--workers=0", "--precision=fp32", "--flips"]
    lines = run(
        "timm_baseline.py", "pics", "pics", *options, "--trial-epochs=4", "--epochs=8", "--image-sizes", "32", "64"
    )
    named = [line.removeprefix("augmentation: ") for line in lines if line.startswith("augmentation")]
    assert named == [f"{way}, {size} px" for size in (32, 64) for way in ("RandAugment and crops", "none")]
    chosen = next(line for line in lines if line.startswith("all training images")).rpartition("augmentation: ")[2]
    final = 8 if chosen.endswith("32 px") else 2  # four times as many pixels
    assert len([line for line in lines if line.startswith("epoch")]) == 2 * 4 + 2 * 1 + final


def test_the_timm_loops_head_starts_as_a_classifier_of_its_features(pictures):
    from torchvision.datasets import ImageFolder

    program = runpy.run_path(str(ROOT / "examples" / "timm_baseline.py"))
    torch.manual_seed(0)
    model = timm.create_model(
        "test_vit", num_classes=len(list(pictures.iterdir())), img_size=64, global_pool="avg", fc_norm=False
    )
    images = ImageFolder(str(pictures), create_transform((3, 64, 64), crop_pct=1.0))
    before = program["recognised"](model, images).float().mean()
    program["fit_head"](model, images)
    assert program["recognised"](model, images).float().mean() > max(0.6, before)


@pytest.mark.slow  # the call itself is tested in tests/photos/test_fit.py
def test_a_script_trains_on_photographs_in_one_call(tiny, pictures, run):
    options = [f"--model={tiny['model.arch']}", "--weights=random", "--image-size=32", "--epochs=2"]
    image = str(pictures / "coffee/01.jpg")
    top1, label, files = run("fit.py", "pics", *options, "--predict", image)[-3:]
    assert top1.startswith("top-1") and label.startswith(image)
    assert all((pictures.parent / file).is_file() for file in files.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--data.train", "nowhere"], "nowhere: no such file or folder"),
        (["no_such_recipe"], "no_such_recipe"),
        (["photos", "--data.train=nowhere", "--optim.lrr", "3"], "unrecognized arguments: --optim.lrr 3"),
    ],
    ids=["path", "recipe", "option"],
)
def test_bad_input_of_the_search_is_one_line(run, arguments, message, capsys):
    pytest.importorskip("optuna")
    with pytest.raises(SystemExit) as stop:
        run("tune_optuna.py", *arguments)
    assert message in (str(stop.value) + capsys.readouterr().err)


@pytest.mark.slow
def test_a_search_compares_runs_with_several_labels_by_their_map_and_needs_validation_images(
    tiny, run, tmp_path, monkeypatch
):
    pytest.importorskip("optuna")
    photos = Path(tiny["data.train"]).parent / "train"
    rows = [(str(path), path.parent.name) for path in sorted(photos.rglob("*.jpg"))]
    rows = [(path, "astronaut;coffee" if i % 3 == 0 else label) for i, (path, label) in enumerate(rows)]
    (tmp_path / "several.csv").write_text("\n".join(f"{path},{label}" for path, label in [("image", "labels"), *rows]))
    own = {key: tiny[key] for key in ("model.arch", "model.weights", "model.image_size", "train.amp", "train.device")}
    options = [f"--{key}={value}" for key, value in (own | {"schedule.epochs": "1", "optim.batch_size": "8"}).items()]
    search = ["tune_optuna.py", "photos", *options, "--trials=1"]
    said = run(*search, "--data.train=several.csv", "--out=tune")[-1]
    (folder,) = Path("tune").glob("lr-*")
    result = json.loads((folder / "result.json").read_text())
    assert said.startswith(f"mAP {result['weights']['map']:.2f} % on the validation images")
    assert run(*search, "--data.train=several.csv", "--out=tune")[-1] == said  # no trial is left to run
    with pytest.raises(SystemExit, match=r"there are no validation images to compare trials by\. Set --data\.val"):
        run(*search, f"--data.train={tiny['data.train']}", "--data.hold_out_beton=false", "--out=blind")

    def diverges(*arguments, **options):
        raise NonFinite("the loss is NaN")

    monkeypatch.setattr(fastft, "fit", diverges)
    with pytest.raises(SystemExit, match=r"all trials diverged\. Give a lower --optim\.lr"):
        run(*search, "--data.train=several.csv", "--out=steep")


@pytest.mark.slow
def test_a_search_of_learning_rates_continues_and_prunes(tiny, run, monkeypatch):
    optuna = pytest.importorskip("optuna")
    fit, calls = fastft.fit, []

    def interrupted_once(*arguments, **options):
        calls.append(arguments[1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(fastft, "fit", interrupted_once, raising=False)
    options = [f"--{key}={value}" for key, value in (tiny | {"schedule.epochs": "4"}).items()]
    search = ["tune_optuna.py", str(ROOT / "rcp/final_b16.yaml"), *options, "--out=tune"]
    with pytest.raises(KeyboardInterrupt):
        run(*search, "--trials=1")
    said = run(*search, "--trials=1")[-1]
    (command,) = re.findall("fastft train .*", said)
    (folder,) = Path("tune").glob("lr-*")  # the recipe's own setting, whose epochs were trained once each
    words = shlex.split(command)
    found, trained = load_recipe(words[2], words[3:]), load_recipe(folder / "recipe.yaml")
    assert found.optim.lr == 0.001 and set(differences(found, trained)) == {
        "about.source", "data.train_size", "schedule.stop_epoch", "train.run_dir",
    }  # fmt: skip
    starts = [line["step"] for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "start"]
    assert starts == [0, 6, 6, 12]
    before = len(calls)
    run(*search, "--trials=1")
    assert len(calls) == before

    def diverges(*arguments, **options):
        raise NonFinite("the loss is NaN")

    monkeypatch.setattr(fastft, "fit", diverges)
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda *arguments: True)
    run(*search, "--trials=2")
    monkeypatch.setattr(fastft, "fit", fit)
    run(*search, "--trials=3")
    study = optuna.load_study(study_name="tune", storage="sqlite:///tune/study.db")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "PRUNED", "PRUNED"]
    assert [len(trial.intermediate_values) for trial in study.trials] == [1, 3, 0, 1]
    assert len(list(Path("tune").glob("lr-*/checkpoints"))) == 1  # pruned trials keep none


@pytest.mark.slow
def test_the_notebook_runs(tiny, pictures):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    settings = next(cell for cell in notebook.cells if cell.id == "settings")
    options = {"model": tiny["model.arch"], "weights": "random", "image_size": 32, "epochs": 2}
    settings.source += f"\noptions = {options}"
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(pictures.parent)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "top-1" in said and "runs/quickstart.safetensors" in said and "pics/astronaut/00.jpg" in said


@pytest.mark.slow
def test_wrong_labels_and_near_duplicates_are_found_in_embeddings(tmp_path, run):
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(0)
    labels_N = np.repeat([0, 1, 2], 40)
    features_ND = 8 * np.eye(3, 16)[labels_N] + rng.normal(size=(120, 16))
    features_ND[70] = features_ND[50] + 1e-4  # of the same class
    labels_N[[3, 90]] = 1, 0
    for split, rows in {"train": slice(0, 60), "val": slice(60, 120)}.items():
        files = [f"{i}.jpg" for i in range(120)][rows]
        np.savez(tmp_path / f"{split}.npz", features=features_ND[rows].astype(np.float32), labels=labels_N[rows],
                 files=files, classes=["a", "b", "c"])  # fmt: skip
    run("check_labels.py", "train.npz", "val.npz")
    with (tmp_path / "suspects.csv").open() as file:
        table = [(row["issue"], row["image"], list(row.values())[-1]) for row in csv.DictReader(file)]
    assert {row for row in table if row[0] == "label"} == {
        ("label", "train: 3.jpg", "a"),
        ("label", "val: 90.jpg", "c"),
    }
    pairs = {("train: 50.jpg", "val: 70.jpg"), ("val: 70.jpg", "train: 50.jpg")}
    assert {row[1:] for row in table if row[0] == "near_duplicate"} == pairs


def test_the_votes_of_several_images_are_one_picture(tiny, tmp_path, run, photographs):
    train_run(tiny | {"schedule.epochs": "1", "schedule.warmup_epochs": "0"}, tmp_path / "run")
    files = [f"{name}.png" for name in photographs]
    for file, image in zip(files, photographs.values(), strict=True):
        Image.fromarray(image).save(tmp_path / file)
    assert run("votes.py", "run", *files, "missing.png")[-1] == f"votes.png: {len(files)} images"
    page = np.asarray(Image.open(tmp_path / "votes.png"))
    assert page.shape[0] > 2 * 150 * -(-len(files) // 5) and len(np.unique(page.reshape(-1, 3), axis=0)) > 1000


EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "convert_ray.py"
PARTS = 3


def writers(path: Path) -> list[int]:
    """Processes that have the file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                found.append(int(link.parts[2]))
        except OSError:  # the process or the descriptor is gone, or is not ours
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--cpus-per-part", "100000"],
            r"--cpus-per-part is 100000, but the largest machine has \d+ CPUs. Give at most \d+",
        ),
        ([], "nowhere: no such file or folder. Set --data to the images"),
    ],
)
def test_what_a_cluster_cannot_convert_is_refused_in_one_line(words, message, tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, str(EXAMPLE), "--data", "nowhere", "--out", str(tmp_path / "x.beton"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(f"convert_ray.py: {message}", done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_no_byte(imagenet_sample, tmp_path):
    pytest.importorskip("ray")
    out, journal = tmp_path / "ray/photos.beton", tmp_path / "ray/photos-2-of-3.beton.part.journal"
    data = imagenet_sample.resolve()
    command = [
        sys.executable, str(EXAMPLE), "--data", str(data), "--out", str(out), "--parts", str(PARTS),
    ]  # fmt: skip
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 200
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):  # its first page is written
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    (killed,) = writers(journal.with_suffix(""))
    os.kill(killed, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert f"images in {PARTS} files" in output

    for number in range(1, PARTS + 1):
        part = Part(number, PARTS)
        undisturbed = tmp_path / "undisturbed/photos.beton"
        convert_folder(data, undisturbed, WriteOptions(workers=2, part=part))
        for suffix in ("", ".manifest.json"):
            made, expected = (Path(f"{part.path(path)}{suffix}") for path in (out, undisturbed))
            assert made.read_bytes() == expected.read_bytes(), made.name
    assert not list(out.parent.glob("*.part*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_of_two_workers_converts_to_the_bytes_of_one_process(photographs, tmp_path, monkeypatch):
    """Each worker has one CPU, so two parts are converted at a time, one on each."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # a worker starts slowly on a busy machine
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    data, out = tmp_path / "photos", tmp_path / "ray" / "photos.beton"
    for number, image in enumerate(list(photographs.values()) * 4):
        path = data / f"class{number % 3}" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[: 40 + number, : 60 + number]).save(path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes(timeout=300)
        nodes = cluster.list_all_nodes()
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), "--data", str(data), "--out", str(out), "--parts", "4"],
            env=os.environ | {"RAY_ADDRESS": cluster.address, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(nodes) == 2
    count = len(list(data.glob("*/*")))
    assert f"{count:,} images in 4 files: photos-*-of-4.beton" in done.stdout
    for number in range(1, 5):
        part = Part(number, 4)
        convert_folder(data, tmp_path / "alone" / out.name, WriteOptions(workers=0, part=part))
        for suffix in ("", ".manifest.json"):
            made, expected = (Path(f"{part.path(path)}{suffix}") for path in (out, tmp_path / "alone" / out.name))
            assert made.read_bytes() == expected.read_bytes(), made.name
