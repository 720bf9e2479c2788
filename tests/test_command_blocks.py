"""Every command line in README.md and docs/ is run, with small data in the place of names, or listed here with a reason."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from beton_tools import cli as beton_cli
from beton_tools.read.beton_set import BetonSet
from beton_tools.write.convert import convert_folder, convert_imagenet
from beton_tools.write.writer import WriteOptions
from fastft.cli import build_parser, main
from fastft.machine.bench_result import write_result
from fastft.model.head_file import Head, write_head
from tests.bench import made_up
from tests.test_docs import BLOCKS

# beginnings of lines that are not run -> why
NOT_RUN = {
    "sudo apt-get": "installs Debian packages (make test-bare)",
    "apt-get": "installs Debian packages (make test-bare)",
    "python3 -m venv": "set-up, which needs a network (make test-bare)",
    "pip ": "needs a network (make test-bare)",
    "python3 -m pip": "installs into the system",
    "make ": "set-up, which needs a network (make test-bare)",
    "git clone": "needs a network",
    'python -c "from torchvision': "needs a network",
    "docker ": "needs Docker and a network",
    "torchrun ": "needs eight GPUs; tests/train/test_distributed.py starts torchrun",
    "python -m fastft.train.launch": "needs eight GPUs; tests/train/test_distributed.py starts the launcher",
    "sbatch ": "needs Slurm; tests/train/test_slurm.py runs the script",
    ".venv/bin/fastft doctor": "exit code 1 if the machine is not ready; tests/cli/test_doctor.py",
    "for call in": "needs a GPU", "done": "needs a GPU",
    ".venv/bin/python": "needs a GPU", "python3 benchmarks/gpu_day.py": "needs a GPU",
    "export PYTHONPATH": "sets the environment of the next line, which needs a GPU",
    "python train.py": "timm's, as a comparison", "from google.colab": "needs Colab",
    "python examples/": "tests/examples runs each example",
    "diff ": "two commands that are run by themselves",
    "fastft doctor": "exit code 1 if the machine is not ready; tests/cli/test_doctor.py",
    "fastft bench": "takes an hour; tests/bench runs every benchmark with --quick",
    "fastft zeroshot": "downloads a text tower; tests/evaluate/test_zero_shot.py",
    "fastft average START": "stands for the lines before it",
    "fastft convert imagenet --data s3:": "needs a network", "fastft convert folder --data s3:": "needs a network",
    "fastft convert folder --data https:": "needs a network", "fastft convert folder --data hf:": "needs a network",
    "fastft train --help": "tests/cli/test_cli.py reads it",
}  # fmt: skip
# what commands print, in the same blocks
OUTPUT = re.compile(
    r"^(result:|baseline:|training |accuracy |cost  |decay |of accuracy|83\.542|\.\.\.|1,200 images|\{|\"files\"|\"samples\")"
)
# names in the pages -> what the test has
NAMES = {
    "/data/ILSVRC2012": "ILSVRC",
    "/content/drive/MyDrive/run": "runs/mine",
    "/content/drive/MyDrive/": "",
    "05_llrd[LLRD 0.60, 6e-4]": "table.yaml[low]",
    "sweep 05_llrd": "sweep table.yaml",
    "starts[stopped, laion2b, 12k]": "final_b16",
    "in21k/train-*.beton": "in1k/train.beton",
    "20,50": "1,2",
}
# a short training of a small model
SMALL = {
    "model.weights": "random", "model.image_size": "32", "optim.batch_size": "8", "schedule.epochs": "1",
    "schedule.warmup_epochs": "0", "train.amp": "fp32", "train.device": "cpu",
}  # fmt: skip
WNIDS = ("n01440764", "n02123045")
ROBUSTNESS = {"imagenet-r": "in_r.beton", "imagenet-a": "in_a.beton", "sketch": "in_sketch.beton"}
TABLE = """\
title: two rates
source: this test
base: final_b16
rows:
  - {label: low, set: {optim.lr: 1e-4}}
  - {label: high, set: {optim.lr: 1e-3}}
"""


def lines() -> Iterator[str]:
    for page, language, text in BLOCKS:
        if page.name != "CONTRIBUTING.md" and language in ("", "sh", "bash", "console"):
            for line in text.replace("\\\n", "").splitlines():
                words = re.split(r"\s#\s", line.strip().removeprefix("!"))[0].removeprefix("# ").strip()
                if words and not OUTPUT.match(words) and not line.strip().startswith("#"):
                    yield words


LINES = list(dict.fromkeys(lines()))


def reason(line: str) -> str | None:
    plain = line.replace("'", "")
    return next((why for begin, why in NOT_RUN.items() if plain.startswith(begin)), None)


def test_every_line_is_run_or_has_a_reason():
    assert [line for line in LINES if reason(line) is None and not line.startswith(("fastft ", "beton "))] == []
    assert [begin for begin in NOT_RUN if not any(line.replace("'", "").startswith(begin) for line in LINES)] == []


@pytest.mark.parametrize("line", [line for line in LINES if reason(line) and re.search(r"\bfastft[. ]", line)])
def test_what_cannot_run_is_parsed(line):
    """Also what torchrun, the launcher and Slurm are given."""
    words = shlex.split(line, posix=True)
    if line.startswith(("torchrun", "python -m fastft.train", "sbatch")):
        words = ["train", *words[words.index("train") + 1 :]] if "train" in words else ["train", *words[2:]]
    elif words[0] == "fastft":
        words = words[1:]
    else:
        return
    if "--help" in words:
        return
    args, rest = build_parser(words).parse_known_args(words)
    assert rest == [] and args.command == words[0]


# the others are run ------------------------------------------------------------------------------------------------------


def write_data(folder: Path, source: Path) -> None:
    """Write the photographs, ImageNet and .beton files that the pages name. source: train/ and val/ with two classes."""
    for name in ("PHOTOS", "PHOTOS2", "photos", "pics"):
        shutil.copytree(source / "train", folder / name)
    shutil.copytree(source / "val", folder / "test")
    shutil.copytree(source / "val/coffee", folder / "holiday")
    for number, name in enumerate(("astronaut", "coffee")):
        for split in ("train", "val"):
            shutil.copytree(source / split / name, folder / "ILSVRC" / split / WNIDS[number])
        for other in ROBUSTNESS:
            shutil.copytree(source / "val" / name, folder / other / WNIDS[number])
        shutil.copytree(source / "val" / name, folder / "imagenetv2-matched-frequency-format-val" / str(number))
    one = WriteOptions(workers=0)
    convert_imagenet(folder / "ILSVRC", folder / "in1k", one)
    for name, short in ROBUSTNESS.items():
        convert_folder(folder / name, folder / short, one, classes_of=folder / "in1k/train.beton")
    convert_folder(
        folder / "imagenetv2-matched-frequency-format-val", folder / "in_v2.beton", one,
        classes_of=folder / "in1k/train.beton", class_indices=True,
    )  # fmt: skip
    for name in ("train.beton", "photos.beton"):
        convert_folder(source / "train", folder / name, one)
    for name in ("val.beton", "more.beton", "other.beton", "held_out.beton", "test.beton"):
        convert_folder(source / "val", folder / name, one, classes_of=folder / "train.beton")
    weight_KD, classes = torch.zeros(2, 32), list(BetonSet.open(folder / "in1k/train.beton").class_names)
    write_head(folder / "head.safetensors", Head(weight_KD, weight_KD[:, 0].clone(), classes, "token"))


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder with the files, folders and runs that the pages name. Lines are run in their order."""
    folder = tmp_path_factory.mktemp("pages")
    write_data(folder, Path(tiny["data.train"]).parent)
    (folder / "mine.yaml").write_text("extends: final_b16\noptim: {lr: 3e-4}\n")
    (folder / "table.yaml").write_text(TABLE)
    for name in ("bench", "laptop", "server"):
        (folder / name).mkdir()
        write_result(folder / name / "all.json", made_up.result())
    for name in ("main.json", "branch.json"):
        write_result(folder / name, made_up.result())
    made = {
        "photos": [f"--data.train={folder}/PHOTOS"],
        "mine": [f"--data.train={folder}/train.beton", f"--data.val={folder}/val.beton"],
        "clip": [f"--data.train={folder}/in1k/train.beton", f"--data.val={folder}/in1k/val.beton"],
    }
    for name, words in made.items():
        assert main(["train", "photos", *words, *small({}, tiny), f"--train.run_dir={folder}/runs/{name}"]) == 0
    copies = {"mine": ("second", "third", "a", "b", "c", "first", "wise"), "clip": ("final_b16", "probe_dinov2_l14")}
    for original, names in copies.items():
        for name in names:
            shutil.copytree(folder / "runs" / original, folder / "runs" / name)
    return folder


def small(given: dict[str, str], tiny: dict[str, str]) -> list[str]:
    """Return the options of a short training, except those that the line gives several values or that its budget decides."""
    options = SMALL | {"model.arch": tiny["model.arch"]}
    options = {key: value for key, value in options.items() if "," not in given.get(key, "")}
    if given.get("model.head_init") == "weights":
        options["model.head_init"] = "small"  # weights at random have no head
    if "model.head" in given:
        options["model.head_init"] = "small"
    if "schedule.budget" in given:
        del options["schedule.epochs"], options["schedule.warmup_epochs"]
    return [f"--{key}={value}" for key, value in options.items()]


def prepared(line: str, tiny: dict[str, str]) -> list[str]:
    """Return the words of a line with names that the folder has, and with the options of a short training."""
    number = LINES.index(line)
    for name, own in NAMES.items():
        line = line.replace(name, own)
    words: list[str] = []
    for word in shlex.split(line)[1:]:
        words += sorted(map(str, Path().glob(word))) if "*" in word and "=" not in word else [word]
    words = [word for word in words if word != "..."]
    given = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if words[0] in ("train", "sweep"):
        if not {"data.train", "data"} & given.keys() and "--data" not in words:
            words += ["--data.train=train.beton", "--data.val=val.beton"]
        words += [*small(given, tiny), *([f"--train.run_dir=new/{number}"] if words[0] == "train" else [])]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if reason(line) is None])
def test_the_line_runs(line, place, tiny, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = prepared(line, tiny)
    outs = [Path(words[words.index(flag) + 1]) for flag in ("--out", "--csv", "--features") if flag in words]
    if words[0] == "convert":
        words.append("--overwrite")
    else:
        for out in outs:  # written by another page's line
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    run = main if line.startswith("fastft") else beton_cli.main
    assert run(words) == 0, (words, capsys.readouterr().err)
