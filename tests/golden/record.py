"""Record what fastft does today: `python -m tests.golden.record` writes tests/golden/*.json, `... record cost` only cost.json.

Both run in the root of the checkout: some outputs name files of rcp/ relative to it.

test_golden.py computes the same items again and compares. Record an item again only when its change is intended, and read the
diff of the .json before committing it. The settings of all recipes are in golden_recipes.json, compared in tests/recipe.

Left out of the items, since they differ between runs or machines: times, rates, memory, versions, absolute paths.

data/ has 40 crops of scikit-image's photographs in 4 classes: JPEGs with three kinds of subsampling, grey, progressive, CMYK,
with restart markers or an EXIF orientation, and PNGs. They are files, because another version of Pillow might write other bytes.
"""

import base64
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

import beton_tools.cli
import fastft.cli
from fastft import EvalLoader, TrainLoader, load_recipe
from fastft.augment.describe import chains_of, describe_policy
from fastft.augment.draw import draw_plan
from fastft.augment.plan import HFLIP, PLAN_DTYPE, TRANSPOSE, VFLIP
from fastft.augment.recipe_policy import build_policy
from fastft.recipe.constants import ERASE_MODES

FOLDER = Path(__file__).parent

EXPLAINED = ("final_b16", "final_l14", "frugal_b16_half", "quick_b16_half")
ESTIMATED_KEYS = ("cost", "gpu_hours", "gpu_hours_range", "train_flops_per_image")  # only in cost.json

COSTS = {
    "one recipe with a price": "final_b16 --gpu v100 --price 2.48",
    "two recipes on two GPUs": "frugal_b16_half quick_l14_half --gpu h100 --gpus 2 --val-images 10000",
    "MFU of one's own": "final_l14 --gpu a100 --mfu 0.4 --cores-per-gpu 4",
    "a table": "07_erase --gpu a100",
}

OTHER_OPTIONS = "--max-resolution 96 --quality 80 --subsampling 4:4:4 --shuffle-seed 3 --subset-per-class 8"
MODIFIED = 1_700_000_000  # seconds: of all source files, since the fingerprint of a conversion depends on it

POLICIES = {
    "final_b16": [],
    "3aug": ["--augment.policy=3aug", "--augment.crop=src"],
    "augmix": ["--augment.policy=augmix-m5-w4-d2", "--augment.erase_mode=const", "--augment.erase_count=2"],
}
EPOCHS = 5  # of 40 images: 200 samples
SHOWN_ROWS = 4  # of each plan; the other rows are compared by hash

TOWER = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}}
TINY = {
    "data.num_classes": "4", "model.weights": "random", "model.image_size": "32", "optim.batch_size": "8",
    "optim.lr": "3e-3", "schedule.epochs": "2", "schedule.warmup_epochs": "1", "train.amp": "fp32",
    "train.log_every": "1", "train.device": "cpu", "ema.decay": "0.9", "ema.reference_batch": "8",
}  # fmt: skip
RUNS = {
    "final": {},
    "regularised": {
        "augment.policy": "3aug", "augment.mixup": "0.8", "augment.cutmix": "1.0", "model.rel_pos_bias": "true",
        "model.layer_scale": "0.1", "model.drop_path": "0.2",
        "optim.clip_grad": "1.0", "train.micro_batch": "4", "ema.decay": "0",
    },
    "partial": {
        "augment.policy": "none", "augment.erase_prob": "0", "model.patch_dropout": "0.25",
        "model.trainable_layers": "1", "model.pool": "token", "optim.weight_decay": "0.2",
        "optim.label_smoothing": "0", "train.eval_weights": "ema",
    },
}  # fmt: skip


def output_of(main: Callable[[list[str]], int], *arguments: str) -> str:
    """Standard output of a command.

    Raises:
        RuntimeError: the command fails.
    """
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    if code != 0:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {code}\n{err.getvalue()}")
    return out.getvalue()


def fastft_json(*arguments: str) -> Any:
    return json.loads(output_of(fastft.cli.main, *arguments, "--json"))


def without(values: Any, names: tuple[str, ...]) -> Any:
    """The values less all entries of these names, at any depth."""
    if isinstance(values, dict):
        return {key: without(value, names) for key, value in values.items() if key not in names}
    if isinstance(values, list):
        return [without(value, names) for value in values]
    return values


def explain(folder: Path) -> dict[str, Any]:
    """`fastft explain` without costs: settings, parameter groups, schedule, augmentation in words."""
    return without({name: fastft_json("explain", name) for name in EXPLAINED}, ESTIMATED_KEYS)


def lists(folder: Path) -> dict[str, Any]:
    """`fastft recipes` without costs, and `fastft options`."""
    return {"recipes": without(fastft_json("recipes"), ESTIMATED_KEYS), "options": fastft_json("options")}


def cost(folder: Path) -> dict[str, Any]:
    """All figures of the cost model that the commands print."""
    explained = {name: fastft_json("explain", name) for name in EXPLAINED}
    return {
        "explain": {name: {"cost": values["cost"]} for name, values in explained.items()},
        "recipes": {r["name"]: r["gpu_hours"] for r in fastft_json("recipes")["recipes"]},
        "cost": {title: fastft_json("cost", *arguments.split()) for title, arguments in COSTS.items()},
    }


def betons(folder: Path) -> tuple[Path, Path]:
    """(training, validation) files in `folder`; converted if they are not there yet: default options, and others."""
    train, val = folder / "train.beton", folder / "val.beton"
    if not val.exists():
        shutil.copytree(FOLDER / "data", folder / "photos", dirs_exist_ok=True)
        for path in (folder / "photos").rglob("*.*"):
            os.utime(path, (MODIFIED, MODIFIED))
        with working_directory(folder):  # the manifest has the path as it was given
            convert("--out", train.name)
            convert("--out", val.name, "--classes-of", train.name, *OTHER_OPTIONS.split())
    return train, val


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def convert(*arguments: str) -> None:
    output_of(fastft.cli.main, "convert", "folder", "--data", "photos", "--workers", "0", *arguments)


def conversion(folder: Path) -> dict[str, Any]:
    """Hash of the bytes, manifest and `beton verify` of two conversions."""
    return {path.name: describe_beton(path) for path in betons(folder)}


def describe_beton(path: Path) -> dict[str, Any]:
    manifest = json.loads(path.with_name(path.name + ".manifest.json").read_text())
    tables = manifest.pop("tables")
    packed = tables["names"]
    manifest["contents"] = np.frombuffer(base64.b64decode(tables["contents"]["ids"]), "<u8").tolist()
    assert tables["groups"] is None
    unpacked = {key: zlib.decompress(base64.b64decode(packed[key])) for key in ("text", "lengths")}
    manifest["names"] = unpacked["text"].decode()  # compressed, its bytes depend on zlib's version
    manifest["name_lengths"] = np.frombuffer(unpacked["lengths"], "<u2").tolist()
    data, start = path.read_bytes(), manifest["data_start"]
    hashes = {"before the pages": sha256(data[:start]), "from the first page on": sha256(data[start:])}
    verified = json.loads(output_of(beton_tools.cli.main, "verify", str(path), "--json"))
    return {"bytes": hashes, "manifest": manifest, "verify": without(verified, ("path",))}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def augmentation(folder: Path) -> dict[str, Any]:
    """Plans and normalised float32 pixels of 200 training samples for each policy, and of the evaluation."""
    train, _ = betons(folder)
    found = {name: augmented(train, overrides) for name, overrides in POLICIES.items()}
    policy = build_policy(load_recipe("final_b16", ["--train.eval_crop_pct=0.9"]))
    with EvalLoader(train, policy, 224, batch_size=40, workers=2) as loader:
        evaluated = {f"sample {i}": sha256(image.tobytes()) for i, _, image in samples(loader)}
    return found | {"evaluation": evaluated}


def augmented(beton: Path, overrides: list[str]) -> dict[str, Any]:
    recipe = load_recipe("final_b16", overrides)
    policy, size = build_policy(recipe), recipe.model.image_size
    plans: list[np.ndarray] = []
    pixels: dict[str, str] = {}
    with TrainLoader(beton, policy, size, batch_size=40, seed=1, workers=2) as loader:
        draw = partial(draw_plan, policy, seed=1, size=size)
        heights, widths = loader.betons.heights, loader.betons.widths
        for epoch in range(EPOCHS):
            found = {(i, label): sha256(image.tobytes()) for i, label, image in samples(loader)}
            pixels |= {f"epoch {epoch}, sample {i}, label {label}": found[i, label] for i, label in found}
            ids = np.array([i for i, _ in found])
            plans.append(draw(epoch=epoch, sample_ids=ids, heights=heights[ids], widths=widths[ids]))
    plan = np.concatenate(plans)
    return {
        "policy": describe_policy(policy, size),
        "plan": {name: sha256(np.ascontiguousarray(plan[name]).tobytes()) for name in PLAN_DTYPE.names or ()},
        "first rows": plan_to_json(plan[:SHOWN_ROWS]),
        "pixels": pixels,
    }


def plan_to_json(plan: np.ndarray) -> list[dict[str, Any]]:
    """One object per image with every field that has an effect; ops by name, boxes as [y, x, h, w]."""
    return [_row_to_json(row) for row in plan]


def _row_to_json(row: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "sample": int(row["sample"]),
        "crop": row["crop"].tolist(),
        "resize": row["resize"].tolist(),
        "window": row["window"].tolist(),
        "flip": bool(row["flip"] & HFLIP),
        **{key: True for key, bit in (("vflip", VFLIP), ("transpose", TRANSPOSE)) if row["flip"] & bit},
        "interpolation": "bicubic" if row["bicubic"] else "bilinear",
    }
    chains = [
        (weight, [{"op": op.name, **({"argument": value} if op.format else {})} for op, value in ops])
        for weight, ops in chains_of(row)
    ]
    mixed = [{"weight": weight, "ops": ops} for weight, ops in chains if weight is not None]
    if mixed:
        values |= {"blend": float(row["blend"]), "chains": mixed}
    if not mixed or (chains[-1][0] is None and chains[-1][1]):
        values["ops"] = chains[-1][1]
    values["erase"] = [box for box in row["erase"].tolist() if box[2] > 0]
    values["erase_mode"] = ERASE_MODES[row["erase_mode"]]
    values["noise_key"] = f"{int(row['noise_key']):#018x}"  # JSON readers lose digits of 64-bit integers
    return values


def samples(loader: TrainLoader | EvalLoader) -> Iterator[tuple[int, int, np.ndarray]]:
    """(sample id, label, image (3, H, W)) of one pass."""
    for batch in loader:
        for i, label, image in zip(batch.ids, batch.labels, batch.images, strict=True):
            yield int(i), int(label), np.ascontiguousarray(image.numpy())


def training(folder: Path) -> dict[str, Any]:
    """Losses, learning rates and evaluations of three runs of ten steps, and `fastft eval` of them."""
    return {name: train(folder, name, options) for name, options in RUNS.items()}


def train(folder: Path, name: str, options: dict[str, str]) -> dict[str, Any]:
    data = dict(zip(("data.train", "data.val"), map(str, betons(folder)), strict=True))
    (folder / "arch.json").write_text(json.dumps(TOWER))
    run = folder / name
    shutil.rmtree(run, ignore_errors=True)
    files = data | {"model.arch": str(folder / "arch.json"), "train.run_dir": str(run)}
    flags = [f"--{key}={value}" for key, value in (TINY | options | files).items()]
    output_of(fastft.cli.main, "train", "final_b16", *flags)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    return {
        "lines": [f"{line['kind']} {line['step']}" for line in lines],
        "steps": [{key: x[key] for key in ("epoch", "step", "loss", "lr")} for x in lines if x["kind"] == "train"],
        "evaluations": [scores(line) for line in lines if line["kind"] == "eval"],
        "result": {key: result[key] for key in ("recipe", "epochs", "expectation")} | {"keys": sorted(result)},
        "norms": {kind: norms(run, kind) for kind in ("model", "ema") if kind == "model" or "ema.decay" not in options},
        "eval": evaluation(run),
    }


def norms(run: Path, kind: str) -> dict[str, float]:
    """Norm of every matrix in the last checkpoint; not of vectors, as the gradients of some biases are rounding errors only."""
    (path,) = run.glob(f"checkpoints/step-*10/{kind}.safetensors")
    return {name: float(tensor.double().norm()) for name, tensor in load_file(path).items() if tensor.ndim > 1}


def scores(line: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, loss and number of images; the other scores depend on the order of nearly equal outputs."""
    return {key: value for key, value in line.items() if key.endswith(("top1", "loss", "samples"))}


def evaluation(run: Path) -> dict[str, Any]:
    found = fastft_json("eval", str(run), "--device", "cpu")
    classes = [{key: c[key] for key in ("name", "label", "images")} for c in found["classes"]]
    shared = {key: found[key] for key in ("weights", "ranked_classes", "logit_adjustment")}
    return scores(found) | shared | {"classes": classes, "keys": sorted(found)}


# name of the file -> function that computes it in a working folder, which all may share
ITEMS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "explain": explain,
    "lists": lists,
    "cost": cost,
    "conversion": conversion,
    "augmentation": augmentation,
    "training": training,
}


def golden_file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def main(names: list[str]) -> None:
    """Write the files of these items, or of all."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ITEMS:
            text = json.dumps(ITEMS[name](Path(folder)), indent=1, ensure_ascii=False)
            golden_file(name).write_text(text + "\n", encoding="utf-8")
            print(golden_file(name), f"{len(text):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
