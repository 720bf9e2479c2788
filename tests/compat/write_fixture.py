"""Writes `written_by_<commit>.tar.xz`: files of an older version, for `test_compat.py` to read and to continue.

Run it with the older version's code, in an empty folder:

    git worktree add ../old COMMIT
    OMP_NUM_THREADS=1 PYTHONPATH=../old python tests/compat/write_fixture.py COMMIT OUT.tar.xz

The archive holds `images/` (16 JPEG files), `data.beton` with its manifest, `half.beton.part` with its journal (a conversion
that was killed after its first page), `recipe.yaml`, `arch.json`, `run/` (a run that was killed after 7 of 12 steps) and
`whole/` (the same run, not interrupted: its log and its last checkpoint), and `machine.json`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
import yaml

WRITTEN = 1_700_000_000  # time of change of the images: conversions compare it
PAGE = 64 << 10
RECIPE = {
    "data": {"train": "data.beton", "val": "data.beton", "num_classes": 2, "workers": 1},
    "model": {
        "arch": "arch.json", "weights": "random", "image_size": 32, "drop_path": 0.3, "patch_dropout": 0.25,
    },
    "augment": {"mixup": 0.8, "cutmix": 1.0},
    "optim": {"batch_size": 4, "lr": 1e-3},
    "schedule": {"epochs": 3, "warmup_epochs": 1},
    "ema": {"decay": 0.9, "reference_batch": 4},
    "train": {
        "device": "cpu", "amp": "fp32", "micro_batch": 2, "log_every": 1, "checkpoint_steps": 3, "keep_checkpoints": 1,
    },
}  # fmt: skip
ARCH = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16}}
KILL_AFTER_STEP = 7

TRAIN = """
import os, signal, sys
from fastft.recipe import load_recipe
from fastft.train.loop import Trainer, train
folder, last_step = sys.argv[1], int(sys.argv[2])
log = Trainer._log_interval
def log_then_die(trainer, epoch):
    log(trainer, epoch)
    if trainer.global_step == last_step:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer._log_interval = log_then_die
train(load_recipe("recipe.yaml", [f"--train.run_dir={folder}"]))
"""

CONVERT = """
import os, signal, sys
from pathlib import Path
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
def die_at(done, total, skipped):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
convert_folder(Path("images"), Path(sys.argv[1]), WriteOptions(workers=0, page_size=int(sys.argv[3])), die_at)
"""


def write_images() -> None:
    from PIL import Image
    from skimage import data

    for name in ("astronaut", "coffee"):
        image = Image.fromarray(getattr(data, name)())
        folder = Path("images", name)
        folder.mkdir(parents=True)
        for k in range(8):
            crop = image.crop((40 * k, 20 * k, 40 * k + 120, 20 * k + 96))
            crop.save(folder / f"{k}.jpg", quality=95)
            os.utime(folder / f"{k}.jpg", (WRITTEN, WRITTEN))


def run_old(script: str, *arguments: str, ends_with: int = 0) -> None:
    ended = subprocess.run([sys.executable, "-c", script, *arguments])
    assert ended.returncode == ends_with, ended


def main(commit: str, archive: Path) -> None:
    write_images()
    run_old(CONVERT, "data.beton", "-1", str(PAGE))
    run_old(CONVERT, "half.beton", "15", str(PAGE), ends_with=-signal.SIGKILL)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("arch.json").write_text(json.dumps(ARCH))
    run_old(TRAIN, "run", str(KILL_AFTER_STEP), ends_with=-signal.SIGKILL)
    run_old(TRAIN, "whole", "-1")
    for folder in ("run", "whole"):
        shutil.rmtree(Path(folder, "tensorboard"))
    for path in Path("whole", "checkpoints").glob("best-*"):
        shutil.rmtree(path)
    machine = {"commit": commit, "torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    Path("machine.json").write_text(json.dumps(machine))
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(Path().iterdir()):
            tar.add(path, filter=anonymous)


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    commit, out = sys.argv[1], Path(sys.argv[2]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(commit, out)
