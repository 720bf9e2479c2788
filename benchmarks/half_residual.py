"""Claim: fine-tuning with a half-precision copy of fp32 weights (train.half_residual) follows the loss of fp32, step by step.

Setting: the demo's photographs of solar cells and pretrained ViT-S/14 at 42 px, batch 16, 4 epochs, on a CPU; the same images,
order, augmentation and head in every training. fp16 has the trainer's loss scaler. Its matrix products are computed in fp32 and
rounded to fp16, as tensor cores do; a CPU's own take ten times as long.
n: one training each; losses are compared as means over 20 steps.

Run: python benchmarks/half_residual.py [--cache .cache/demo] [--json benchmarks/results/half_residual.json]
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from beton_tools.read.beton_set import BetonSet
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.bench.demo_assets import IMAGES, WEIGHTS, extract_cells, fetch
from fastft.bench.demo_backbone import write_backbone
from fastft.bench.demo_trainings import PER_CLASS
from fastft.optim import set_lr
from fastft.optim.schedule import build_schedule
from fastft.recipe import Recipe, load_recipe
from fastft.train.distributed import World
from fastft.train.evaluate import evaluate
from fastft.train.models import build_step, build_training_models
from fastft.train.precision import Precision
from fastft.train.setup import open_loaders, plan_phases
from fastft.train.step import StepChoice

CPU = torch.device("cpu")
PRECISIONS = {
    "fp32": Precision(torch.float32, "cpu"),
    "fp16 copy": Precision(torch.float16, "cpu", half_residual=True),
    "bf16 copy": Precision(torch.bfloat16, "cpu", half_residual=True),
}
WINDOW = 20  # steps per compared mean
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.bmm)


class TensorCoreProducts(TorchDispatchMode):
    """fp16 matrix products with fp32 sums, rounded once."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in PRODUCTS or args[0].dtype != torch.float16:
            return func(*args, **kwargs)
        exact = [arg.float() for arg in args]
        if func.overloadpacket is torch.ops.aten.addmm_:
            return args[0].copy_(torch.addmm(*exact, **kwargs))
        return func(*exact, **kwargs).half()


def train(recipe: Recipe, precision: Precision) -> dict[str, Any]:
    """Losses of all steps, skipped steps, and the raw model's scores on the validation images."""
    world = World(0, 1, 0, CPU)
    products = TensorCoreProducts() if precision.scaled else nullcontext()
    losses: list[float] = []
    scales: list[float] = []
    with ExitStack() as opened:
        model, ema = build_training_models(recipe, CPU, pretrained=True)
        files = BetonSet.open(str(recipe.data.train))
        phases = plan_phases(recipe, model, world, precision, files, 1)
        loader, _ = open_loaders(recipe, world, precision, phases, files, opened, on_wait=lambda: None)
        _, eval_loader = open_loaders(
            recipe, world, PRECISIONS["fp32"], phases, files, opened, on_wait=lambda: None
        )
        step = build_step(recipe, model, ema, world, precision, 1)
        step.connect(StepChoice())
        schedule = build_schedule(recipe, loader.steps_per_epoch)
        with products:
            for number in range(recipe.epochs * loader.steps_per_epoch):
                epoch, within = divmod(number, loader.steps_per_epoch)
                if within == 0:
                    model.train()
                    batches = loader.epoch(epoch)
                batch = next(batches)
                set_lr(step.optimizer, schedule(number))
                step.split.begin()
                step.micro_batch(batch.images, batch.labels, step=number, last=True)
                step.update()
                losses.append(step.loss_sum.item())
                scales.append(step.scaler.get_scale())
                step.reset_loss()
        assert eval_loader is not None
        (scores,) = evaluate([model], eval_loader, world, PRECISIONS["fp32"])
    skipped = sum(after < before for before, after in pairwise(scales))
    return {"losses": losses, "skipped_steps": skipped, "top1": scores.top1, "eval_loss": scores.loss}


def demo_recipe(cache: Path, folder: Path) -> Recipe:
    """The demo's recipe on its photographs, with smaller batches, fewer epochs, a higher learning rate and crops."""
    extract_cells(fetch(IMAGES, cache), folder, PER_CLASS)
    for split in PER_CLASS:
        convert_folder(folder / split, folder / f"{split}.beton", WriteOptions())
    options = {
        "data.train": folder / "train.beton", "data.val": folder / "val.beton",
        "model.weights": write_backbone(fetch(WEIGHTS, cache), cache), "optim.batch_size": 16,
        "optim.lr": 3e-4, "schedule.epochs": 4, "augment.policy": "none", "augment.scale_min": 0.5,
    }  # fmt: skip
    return load_recipe("demo", [f"--{key}={value}" for key, value in options.items()])


def means(losses: list[float]) -> list[float]:
    """Means over windows of WINDOW steps; the rest of the last window is left out."""
    return [sum(losses[i : i + WINDOW]) / WINDOW for i in range(0, len(losses) - WINDOW + 1, WINDOW)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/demo"), help="downloads (default .cache/demo)"
    )
    parser.add_argument("--json", type=Path, help="write the curves to this file")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = demo_recipe(arguments.cache, Path(folder))
        for name, precision in PRECISIONS.items():
            results[name] = found = train(recipe, precision)
            curve, exact = means(found["losses"]), means(results["fp32"]["losses"])
            distance = max(abs(a - b) for a, b in zip(curve, exact, strict=True))
            print(
                f"{name:9} {len(found['losses'])} steps, {found['skipped_steps']} skipped; loss {curve[0]:.3f} -> "
                f"{curve[-1]:.3f}, at most {distance:.3f} from fp32; validation loss {found['eval_loss']:.3f}, top-1 "
                f"{found['top1']:.1f} %",
                flush=True,
            )
    if arguments.json:
        rounded = {
            name: {**found, "losses": [round(loss, 4) for loss in found["losses"]]}
            for name, found in results.items()
        }
        arguments.json.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
