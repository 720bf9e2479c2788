"""Train contenders on the sets of photo_sets.py and append a line for each run to results/photo_sets.jsonl.

python benchmarks/photo_runs.py SETS --work WORK --methods fastft,opponent,head [--sets hands,rooms] [--seeds 0,1]

Everything is computed in fp32 at 42 px for 10 epochs, in this process; the time is this process's CPU time. A method is
`head`, `opponent` (examples/timm_baseline.py), `probe image-size=84`, `fastft`, or `fastft` with options: `fastft optim.lr=7e-4`,
`fastft schedule.epochs=26`, `fastft model.image_size=auto`. photos.py names stronger opponents (`HONEST`). A run whose line is
there is not repeated. What a line holds is described in photos.py.
"""

import argparse
import runpy
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from photo_sets import SETS
from records import FOLDER, Row, append, combined
from safetensors.torch import load_file, save_file
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from beton_tools.base.console import make_console
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.choose import budget
from fastft.choose.budget import Budget
from fastft.choose.image_size import TriedSizes
from fastft.evaluate.evaluation import evaluate_file, evaluate_model
from fastft.evaluate.linear_probe import FrozenTower, LinearProbe
from fastft.evaluate.ridge import LabelledFeatures, fit_ridge_head
from fastft.evaluate.scores import pooled_features
from fastft.evaluate.trained import load_trained
from fastft.export.to_timm import NAMES
from fastft.jobs.demo_files import WEIGHTS, fetch, write_backbone
from fastft.jobs.run import run_recipe
from fastft.machine.distributed import connected, find_world
from fastft.recipe import AskedRecipe, Choice, load_recipe
from fastft.recipe.constants import EVAL_IMAGE_SIZE
from fastft.run.run_directory import load_run

SIZE, EPOCHS, BATCH = 42, 10, 32
TIMM = "vit_small_patch14_dinov2"
PENALTIES = np.logspace(-1, 5, 13)


class Bench:
    """The converted sets and the weights in a folder that is kept between calls."""

    def __init__(self, sets: Path, work: Path) -> None:
        self.sets, self.work = sets, work
        work.mkdir(parents=True, exist_ok=True)
        self.weights = write_backbone(fetch(WEIGHTS, work), work)
        self.timm_weights = work / "timm.safetensors"
        if not self.timm_weights.exists():
            save_file(to_timm(load_file(self.weights)), self.timm_weights)

    def betons(self, name: str) -> tuple[Path, Path]:
        """Return the set's (train.beton, test.beton), converted if they are missing."""
        train, test = (self.work / f"{name}-{split}.beton" for split in ("train", "test"))
        if not test.exists():
            here = WriteOptions(workers=0)
            convert_folder(self.sets / name / "train", train, here, overwrite=True)
            convert_folder(self.sets / name / "test", test, here, classes_of=train)
        return train, test

    def recipe(self, name: str, seed: int, options: dict[str, str], folder: Path) -> AskedRecipe:
        fixed = {} if "schedule.budget" in options else {"model.image_size": SIZE, "schedule.epochs": EPOCHS}
        return load_recipe("demo", {
            "data.train": str(self.betons(name)[0]), "data.hold_out_beton": "false", "model.weights": str(self.weights),
            "train.seed": str(seed), "train.amp": "fp32", "train.run_dir": str(folder), "data.workers": "1", **fixed, **options,
        })  # fmt: skip


def to_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tower's tensors under timm's names."""
    own = {name.removeprefix("visual."): value for name, value in state.items()}
    named = {
        "cls_token": own["class_embedding"].view(1, 1, -1), "pos_embed": own["positional_embedding"][None],
        "patch_embed.proj.weight": own["conv1.weight"], "patch_embed.proj.bias": torch.zeros_like(own["class_embedding"]),
        "norm.weight": own["ln_post.weight"], "norm.bias": own["ln_post.bias"],
    }  # fmt: skip
    for name, value in own.items():
        if name.startswith("transformer.resblocks."):
            _, _, block, part = name.split(".", 3)
            named[f"blocks.{block}.{NAMES[part]}"] = value
    return {name: value.contiguous() for name, value in named.items()}


# contenders ------------------------------------------------------------------------------------------------------------------


def ours(bench: Bench, name: str, seed: int, options: dict[str, str]) -> Row:
    """Train fastft. A budget is one of CPU time.

    `probe`: the accuracy of the linear probe that it starts from. `unresized`: accuracy at the image size in training,
    where the model is evaluated at a larger one. `same_without_caution`: whether a budget would have chosen the same.
    """
    folder, test, same = bench.work / "run", bench.betons(name)[1], list[bool]()
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    decide = partial(_choose_twice, same)
    with patch("time.monotonic", time.process_time), patch("fastft.choose.choose.choose_within", decide):
        run_recipe(bench.recipe(name, seed, options, folder), make_console(quiet=True))
    cpu = time.process_time() - began
    final = load_run(folder).recipe
    right = evaluate_file(folder, test, "cpu", "auto")[1].predictions.right_N
    probe = evaluate_file(folder, test, "cpu", "probe")[1].predictions.right_N if final.epochs else right
    made = {"policy": final.augment.policy, "epochs": int(final.epochs), "image_size": int(final.model.image_size)}
    if final.evaluated_size != final.model.image_size:
        with connected(find_world("cpu")) as world:
            trained = load_trained(folder, world.device)
            trained = replace(trained, recipe=trained.recipe.with_option(EVAL_IMAGE_SIZE, None))
            unresized = evaluate_model(trained, test, world).predictions.right_N
        made |= {"evaluated_size": final.evaluated_size, "unresized": round(100 * unresized.mean(), 2)}
    made |= {"same_without_caution": all(same)} if same else {}
    return {"cpu": cpu, "right": right, "probe": 100 * probe.mean(), **made}


def _choose_twice(same: list[bool], within: Budget, sizes: TriedSizes) -> tuple[list[Choice], LinearProbe]:
    """Choose within a budget, and append whether a caution of 0 chooses the same with the same time left."""
    now = replace(within, left=partial(float, within.left()))
    with patch.object(budget, "CAUTION", 0.0):
        bold, _ = budget.choose_within(now, sizes)
    chosen, probe = budget.choose_within(now, sizes)
    same.append([(c.option, c.value) for c in bold] == [(c.option, c.value) for c in chosen])
    return chosen, probe


def opponent(bench: Bench, name: str, seed: int, options: dict[str, str]) -> Row:
    """Run examples/timm_baseline.py, with its options."""
    program = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "timm_baseline.py"))
    folders = [str(bench.sets / name / split) for split in ("train", "test")]
    numbers = {"image-size": SIZE, "epochs": EPOCHS, "batch-size": BATCH, "workers": 0, "seed": seed} | options
    arguments = [f"--model={TIMM}", f"--weights={bench.timm_weights}"]
    for name, value in numbers.items():  # "image-sizes=42+84" are several values, and "flips=" is none
        arguments += [f"--{name}", *filter(None, str(value).split("+"))]
    fast = options.get("precision") != "fp32" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    began = time.process_time()
    with redirect_stdout(StringIO()) as printed:
        right = program["train"](program["parse"]([*folders, *arguments]))
    cpu = time.process_time() - began
    return {
        "cpu": cpu,
        "right": right.numpy(),
        "policy": printed.getvalue().rpartition("augmentation: ")[2].split("\n")[0],
        "precision": "bf16" if fast else "fp32",
    }


def head(bench: Bench, name: str, seed: int, options: dict[str, str]) -> Row:
    """Fit the cheap heads by ridge regression, and take what is best on training images that it was not fitted to.

    There are four at each of the `image-sizes`, such as 42+84: on the patches or also the class token, with or without
    mirror images.
    """
    train, test = bench.betons(name)
    labels_N, tested_M = Beton.open(train).labels, Beton.open(test).labels
    best, began = (-1.0, "", np.zeros(0), 0), time.process_time()
    sizes = options.pop("image-sizes", str(SIZE)).split("+")
    for size, pool in product(sizes, ("patches", "class+patches")):
        changes = {"model.image_size": size, "model.pool": pool, "data.num_classes": str(labels_N.max() + 1)}
        recipe = bench.recipe(name, seed, changes | options, bench.work)
        with connected(find_world("cpu")) as world:
            tower = FrozenTower.build(recipe, world, lambda: False)
            plain_ND, mirrored_ND, test_MD = (
                _features(tower, path, m) for path, m in ((train, 0), (train, 1), (test, 0))
            )
        for flips in (False, True):
            accuracy = np.mean([
                fit_ridge(plain_ND[fitted], mirrored_ND[fitted] if flips else None, labels_N[fitted])
                .score(plain_ND[kept], labels_N[kept])
                for fitted, kept in StratifiedKFold(5, shuffle=True, random_state=seed).split(plain_ND, labels_N)
            ])  # fmt: skip
            if accuracy > best[0]:
                model = fit_ridge(plain_ND, mirrored_ND if flips else None, labels_N)
                best = accuracy, pool + " and flips" * flips, model.predict(test_MD) == tested_M, int(size)
    return {
        "cpu": time.process_time() - began, "right": best[2], "policy": best[1], "epochs": 0, "image_size": best[3],
    }  # fmt: skip


def probe(bench: Bench, name: str, seed: int, options: dict[str, str]) -> Row:
    """Fit fastft's linear probe at `image-size`. `out_of_fold`: its accuracy on training images, by which sizes are compared."""
    train, test = bench.betons(name)
    labels_N, tested_M = Beton.open(train).labels, Beton.open(test).labels
    size, classes, began = int(options["image-size"]), int(labels_N.max()) + 1, time.process_time()
    recipe = bench.recipe(name, seed, {"model.image_size": str(size), "data.num_classes": str(classes)}, bench.work)
    with connected(find_world("cpu")) as world:
        tower = FrozenTower.build(recipe, world, lambda: False)
        plain_ND, test_MD = (_features(tower, path, 0) for path in (train, test))
    fitted = fit_ridge_head(LabelledFeatures(plain_ND, labels_N, classes, seed))
    right_M = (test_MD @ fitted.weight_KD.T + fitted.bias_K).argmax(1) == tested_M
    return {
        "cpu": time.process_time() - began, "right": right_M, "out_of_fold": round(100 * float(fitted.right_N.mean()), 2),
        "epochs": 0, "image_size": size,
    }  # fmt: skip


def _features(tower: FrozenTower, path: Path, mirrored: int) -> np.ndarray:
    with tower.open(BetonSet.open(str(path))) as loader:
        batches = (replace(b, images=b.images.flip(-1)) if mirrored else b for b in loader)
        return pooled_features(tower.model, batches, tower.world, tower.precision)[0]


def fit_ridge(plain_ND: np.ndarray, mirrored_ND: np.ndarray | None, labels_N: np.ndarray) -> Pipeline:
    rows, labels = (
        (plain_ND, labels_N) if mirrored_ND is None else (np.concatenate([plain_ND, mirrored_ND]), np.tile(labels_N, 2))
    )
    return make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES)).fit(rows, labels)


# the file of results ----------------------------------------------------------------------------------------------------------

METHODS: dict[str, Callable[..., Row]] = {"head": head, "opponent": opponent, "probe": probe, "fastft": ours}


def measure(bench: Bench, set: str, method: str, seed: int) -> Iterator[Row]:
    kind, *changes = method.split()
    found = METHODS[kind](bench, set, seed, dict(change.split("=", 1) for change in changes))
    labels = [Beton.open(path).labels for path in bench.betons(set)]
    row = {
        "images": [len(of_split) for of_split in labels], "classes": int(labels[0].max()) + 1, "image_size": SIZE,
        "epochs": EPOCHS, "precision": "fp32", **found, "right": found["right"].astype(int).tolist(),
    }  # fmt: skip
    yield row | {key: round(row[key], 2) for key in ("cpu", "probe") if key in row}


def measure_sets(
    doc: str | None, name: str, measure: Callable[..., Iterable[Row]], sets: Sequence[str] = tuple(SETS), **more: str
) -> None:
    """Be a script that measures sets of photo_sets.py with one thread and appends to results/NAME.jsonl.

    more: further options with their defaults, each a list of values with commas. `measure` is called with a `Bench`, a set,
    and a value of each of them.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="SETS")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER / f"{name}.jsonl")
    for option, default in {"set": ",".join(sets), **more}.items():
        parser.add_argument(f"--{option}s", default=default, required=not default, help="with commas")
    options = vars(parser.parse_args())
    torch.set_num_threads(1)
    bench = Bench(options["folder"], options["work"])
    values = {option: options[f"{option}s"].split(",") for option in ("set", *more)}
    if "seed" in values:  # the slowest to change
        values = {"seed": [int(seed) for seed in values.pop("seed")], **values}
    append(options["out"], combined(**values), partial(measure, bench))


if __name__ == "__main__":
    measure_sets(__doc__, "photo_sets", measure, method="", seed="0")
