"""Claim: `fastft train` trains timm's models of many kinds, resumes them bit for bit, and timm loads what they become.

Setting: random weights, 20 steps of 8 crops of four photographs (scikit-image's), no RandAugment, fp32 on a CPU, at a small image
size. Each tower is trained once whole, and once more from the checkpoint of step 10; weights and moments of step 20 are
compared bit for bit. The exported model is loaded by `timm.create_model` alone and its logits are compared.
n: one training each. Loss: of the first step, and the mean of the last five.

Run: python benchmarks/towers.py [NAME ...] [--json benchmarks/results/towers.json]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.evaluate.trained import load_trained
from fastft.model import count_flops, load_arch
from fastft.run.checkpoint import list_checkpoints, read_checkpoint
from fastft.run.run_directory import read_metrics

# timm's name -> pixels of a training image
TOWERS = {
    "vit_base_patch16_224": 64,
    "vit_small_patch14_dinov2": 56,
    "vit_small_patch16_dinov3": 64,
    "vit_base_patch16_siglip_224.v2_webli": 64,
    "eva02_small_patch14_336": 56,
    "vit_pe_core_base_patch16_224": 64,
    "convnext_tiny": 64,
    "swin_tiny_patch4_window7_224": 64,
}
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
CROP, PER_CLASS, STEPS, BATCH, STOP, LAST = 160, 40, 20, 8, 10, 5
OPTIONS: dict[str, Any] = {
    "model.weights": "random", "model.head_init_scale": 1, "model.freeze_conv1": "false", "augment.policy": "none",
    "augment.erase_prob": 0, "optim.batch_size": BATCH, "optim.lr": 2e-4, "optim.layer_decay": 1, "schedule.epochs": 1,
    "schedule.warmup_epochs": 0.2, "ema.decay": 0, "train.amp": "fp32", "train.device": "cpu", "train.log_every": 1,
    "train.checkpoint_steps": STOP, "train.keep_checkpoints": 10, "train.step": "eager",
}  # fmt: skip


def make_images(folder: Path) -> Path:
    """A .beton file of crops of photographs, a class per photograph."""
    from skimage import data

    rng = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        (folder / "images" / name).mkdir(parents=True)
        photograph = getattr(data, name)()[..., :3]
        for i in range(PER_CLASS):
            y, x = (int(rng.integers(0, side - CROP)) for side in photograph.shape[:2])
            crop = Image.fromarray(photograph[y : y + CROP, x : x + CROP])
            crop.save(folder / "images" / name / f"{i:02}.jpg", quality=95)
    convert_folder(folder / "images", folder / "train.beton", WriteOptions(workers=0))
    return folder / "train.beton"


def train_tower(name: str, size: int, images: Path, folder: Path) -> dict[str, Any]:
    """Train a tower, resume it, export it; the row of the table.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    run = folder / "run"
    values = OPTIONS | {
        "data.train": images, "model.arch": f"timm/{name}", "model.image_size": size, "train.run_dir": run,
    }  # fmt: skip
    command = ["train", "final_b16", *(f"--{key}={value}" for key, value in values.items())]
    fastft(command)
    losses, end = read_losses(run), read_end(run)
    for path in list_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(path)
    fastft(command)
    again = read_end(run)
    fastft(["export", str(run), "--format", "timm", "--out", str(folder / "export")])
    arch = load_arch(f"timm/{name}").at(size)
    return {
        "name": name,
        "image_size": size,
        "parameters": sum(v.numel() for key, v in end.items() if key.startswith("model/")),
        "forward_flops": count_flops(arch, len(PHOTOGRAPHS)).forward,
        "loss_first": losses[0],
        "loss_last": mean(losses[-LAST:]),
        "resume_equal": read_losses(run) == losses and all(torch.equal(again[key], end[key]) for key in end),
        "export_difference": compare_with_timm(run, folder / "export", size),
    }


def fastft(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "fastft.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def read_losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


def read_end(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimiser state of the last step."""
    found = read_checkpoint(list_checkpoints(run / "checkpoints")[-1], ("model", "optimizer")).tensors
    return {f"{kind}/{key}": value.clone() for kind, named in found.items() for key, value in named.items()}


@torch.inference_mode()
def compare_with_timm(run: Path, exported: Path, size: int) -> float:
    """Largest difference of logits between the checkpoint and `timm.create_model` of the export, over the largest logit."""
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours = load_trained(run, torch.device("cpu")).model(images)
    theirs = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()(images)
    return float((ours - theirs).abs().max() / ours.abs().max())


def train_all(towers: Iterable[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        images, rows = make_images(Path(folder)), []
        for name in towers:
            (Path(folder) / name).mkdir()
            rows.append(train_tower(name, TOWERS[name], images, Path(folder) / name))
            shutil.rmtree(Path(folder) / name)
            print(json.dumps(rows[-1]), flush=True)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", metavar="NAME", nargs="*", choices=[*TOWERS, []], help="default: all")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    args = parser.parse_args()
    rows = train_all(args.names or TOWERS)
    versions = {"timm": timm.__version__, "torch": torch.__version__}
    result = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "versions": versions, "towers": rows}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
