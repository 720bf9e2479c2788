"""Every `python examples/...` in a docstring or page is run as it is written, with small data in the place of names."""

import ast
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fastft.model import Tower, load_arch
from tests.test_docs import PAGES, ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
COMMAND = re.compile(r"python examples/([^`#\n\\]*(?:\\\n[^`#\n\\]*)*)")
LOOP = "--model vit_tiny_patch16_224 --size 32 --batch-size 8"
TOWER = (
    "--size=32 --epochs=1 --batch-size=8 --micro-batch=4 --warmup=0.5 --amp=fp32 --device=cpu --arch=ARCH "
    "--weights=tower.safetensors"
)
# program -> (what makes it short, what its output ends with, a package that it needs)
SHORT = {
    "check_labels.py": ("", r"outlier: \d+ of 80 images", "cleanlab"),
    "ffcv_loader.py": ("--size 32 --batch-size 8", r"epoch 1: .*images 3x32x32 torch\.float", "ffcv"),
    "fit.py": (
        "--model=ARCH --weights=random --image-size=32 --epochs=2",
        r"top-1 [\d.]+ %\n(holiday/\S+ .*\n)+.*report\.html", "fastft",
    ),
    "lightning_module.py": (LOOP, r"'loss':.*'top1':", "lightning"),
    "paper.py": (TOWER, r"EMA [\d.]+ ±", "fastft"),
    "plain_loop.py": (LOOP, "epoch 1: loss", "fastft"),
    "timm_baseline.py": (
        "--model=test_vit --weights=vit.pt --image-size=64 --batch-size=8 --workers=0 --epochs=1",
        "top-1 .* test images", "sklearn",
    ),
    "timm_loop.py": (LOOP, "epoch 1: .*EMA top-1", "fastft"),
    "tune_optuna.py": (
        "--trials=1 --model.arch=ARCH --model.weights=random --model.image_size=32 --optim.batch_size=8 --schedule.epochs=2 "
        "--schedule.warmup_epochs=0 --train.amp=fp32 --train.device=cpu", "fastft train .*--optim.lr=", "optuna",
    ),
}  # fmt: skip
NOT_HERE = {
    "votes.py": "needs a trained run: tests/examples/test_examples.py trains one and runs this command",
    "convert_ray.py": "starts a Ray cluster: tests/examples/test_examples.py runs this command with three parts",
}


def commands() -> Iterator[str]:
    """Programs with their arguments, each once."""
    docstrings = [ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in EXAMPLES]
    for text in [*docstrings, *(page.read_text(encoding="utf-8") for page in PAGES)]:
        for found in COMMAND.findall(text):
            for line in re.sub(r"\\\n", " ", found).split("\n"):
                yield " ".join(line.split())


COMMANDS = list(dict.fromkeys(commands()))


def test_every_example_has_a_documented_command_that_is_run():
    assert {line.split()[0] for line in COMMANDS} == {path.name for path in EXAMPLES} == {*SHORT, *NOT_HERE}


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    """The current folder, with the files that the commands name."""
    data = Path(tiny["data.train"]).parent
    for name in ("pics", "photos/train", "photos/test", "holiday"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(data / ("val/coffee" if name == "holiday" else "train"))
    for folder in (".", "in1k", "runs/photos/data", "runs/demo/fine_tuned/data"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for file in data.glob("*.beton*"):
            (tmp_path / folder / file.name).symlink_to(file)
    (tmp_path / "mine.yaml").write_text("extends: final_b16\noptim: {lr: 3e-4}\n")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pt")
    tower = Tower(load_arch(tiny["model.arch"]))
    save_file({f"visual.{name}": value for name, value in tower.state_dict().items()}, tmp_path / "tower.safetensors")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        np.savez(
            tmp_path / f"{split}.npz", features=rng.normal(size=(40, 8)).astype(np.float32), classes=["a", "b"],
            labels=np.arange(40) % 2, files=[f"{i}.jpg" for i in range(40)],
        )  # fmt: skip
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.split()[0] in SHORT])
def test_the_documented_command_runs(line, place, tiny, monkeypatch, capsys):
    options, end, package = SHORT[line.split()[0]]
    pytest.importorskip(package)
    line = re.sub(r"(\S*)\{train,val\}(\S*)", r"\1train\2 \1val\2", line)  # as bash expands it
    words = shlex.split(f"{line} {options}".replace("ARCH", tiny["model.arch"]))
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    runpy.run_path(str(ROOT / "examples" / words[0]), run_name="__main__")
    assert re.search(end, capsys.readouterr().out)
