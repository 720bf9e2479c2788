"""Every command of `fastft` and `beton` as people use it, on files so small that each takes seconds."""

import shutil
import sys
from pathlib import Path

from tests.written import RECIPES, write_clip

FASTFT, BETON = [sys.executable, "-m", "fastft.cli"], [sys.executable, "-m", "beton_tools.cli"]
WNIDS = {"astronaut": "n01440764", "coffee": "n02123045"}


def everyday_commands(tiny: dict[str, str], run: Path, folder: Path) -> dict[str, list[str]]:
    """Command lines by the words of their command; all succeed and write to `folder`.

    tiny, run: as the fixtures `tiny` and `whole`. `fastft demo` is left out: it downloads its images and weights, and does
    what `train` and `report` do.
    """
    photos, val = Path(tiny["data.train"]).with_suffix(""), tiny["data.val"]
    for split in ("train", "val"):
        for name, wnid in WNIDS.items():
            shutil.copytree(photos.parent / split / name, folder / "imagenet" / split / wnid)
    (folder / "clip").mkdir()
    write_clip(folder / "clip")
    clip = {"model.arch": folder / "clip/clip.json", "model.weights": folder / "clip/clip.safetensors"}
    recipe = RECIPES / "final_b16.yaml"
    (folder / "table.yaml").write_text(
        f"title: Mine\nsource: us\nrows:\n  - {{recipe: {recipe}, series: EMA, label: a}}\n"
    )
    short = tiny | {"schedule.epochs": "1", "schedule.warmup_epochs": "0"}
    options = [f"--{key}={value}" for key, value in short.items()]
    words = {
        "convert folder": ["--data", photos, "--out", folder / "a.beton"],
        "convert imagenet": ["--data", folder / "imagenet", "--out", folder / "in1k"],
        "train": [recipe, *options, f"--train.run_dir={folder / 'run'}"],
        "recipes": [],
        "options": [],
        "explain": [recipe],
        "preview": [recipe, *options, "--out", folder / "preview.png"],
        "cost": [recipe],
        "sweep": [folder / "table.yaml", *options, "--out", folder / "sweep"],
        "eval": [run, "--device=cpu"],
        "predict": [run, photos, "--device=cpu"],
        "zeroshot": [recipe, *(f"--{k}={v}" for k, v in (tiny | clip).items() if k.startswith(("model", "data")))],
        "average": [run, run, "--alpha=0.5", "--device=cpu", "--out", folder / "average"],
        "export": [run, "--format=safetensors", "--out", folder / "model.safetensors"],
        "report": [run, "--out", folder / "report.html"],
        "bench": ["loader.recipe", "--quick", "--images", photos, "--peers=timm", "--out", folder / "bench"],
        "doctor": [],
    }
    inspected = {
        "info": [val],
        "verify": [val],
        "sheet": [val, "--out", folder / "sheet.png"],
        "extract": [val, "--out", folder / "extracted", "--json"],
    }
    commands = {f"fastft {name}": [*FASTFT, *name.split(), *map(str, more)] for name, more in words.items()}
    return commands | {f"beton {name}": [*BETON, name, *map(str, more)] for name, more in inspected.items()}
