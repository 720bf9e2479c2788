"""Stage 3: batches that reach the GPU through the loader equal the CPU's, with flat memory and no synchronisation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from beton_tools.write.convert import convert_folder
from fastft.augment import parse_policy
from fastft.bench.dataset import find_images
from fastft.bench.step_bench import our_step, shape
from fastft.data import Output, TrainLoader

POLICY = parse_policy("rand-m9-mstd0.5-inc1", erase_prob=0.25)
SMALLEST_WARM_UP = 8  # batches after which the allocator must not grow


def run(tiny: bool) -> dict[str, Any]:
    """Compare 200 batches with a slow consumer; then 20 training steps in which synchronisation is an error.

    Raises:
        AssertionError: bytes differ or reserved memory grows. RuntimeError: an operation synchronised.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, batch, batches = (32, 4, 3) if tiny else (224, 64, 200)
    with TemporaryDirectory() as folder:
        beton = small_beton(Path(folder), 24 if tiny else 600)
        compared = _compare(beton, Output(size, device), Output(size), batch, batches)
        steps = _steps_without_sync(beton, device, tiny)
    return {"device": device.type, **compared, "steps_without_synchronisation": steps}


def small_beton(folder: Path, count: int) -> Path:
    """A .beton of `count` images: of $FASTFT_IMAGENET_SAMPLE if it is set, else packaged photographs."""
    images = find_images(None, None, folder / "images", count)
    source = folder / "source"
    for number, path in enumerate(images.paths):
        link = source / path.parent.name / f"{number:06}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    convert_folder(source, folder / "train.beton")
    return folder / "train.beton"


def _compare(beton: Path, output: Output, reference: Output, batch: int, batches: int) -> dict[str, Any]:
    reserved: list[int] = []
    rotated_differences, count = 0, 0
    with (
        TrainLoader(beton, POLICY, output, batch_size=batch) as loader,
        TrainLoader(beton, POLICY, reference, batch_size=batch) as expected,
    ):
        for ours, theirs in zip(_endless(loader), _endless(expected), strict=False):
            time.sleep(0.01)  # a slow consumer must not see its batch overwritten
            difference = (ours.images.cpu() != theirs.images).float().mean().item()
            assert (ours.ids == theirs.ids).all() and difference < 1e-3, (
                f"batch {count}: {difference:.2%} differ"
            )
            rotated_differences += difference > 0
            if output.device != "cpu" and torch.cuda.is_available():
                reserved.append(torch.cuda.memory_reserved())
            count += 1
            if count == batches:
                break
    assert len(set(reserved[SMALLEST_WARM_UP:])) <= 1, f"reserved memory grows: {sorted(set(reserved))}"
    return {
        "batches": count,
        "batches_with_any_difference": rotated_differences,
        "reserved_bytes": reserved[-1:],
    }


def _endless(loader: TrainLoader) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def _steps_without_sync(beton: Path, device: torch.device, tiny: bool) -> int:
    arch = shape("T" if tiny else "B")
    step, precision = our_step(arch, "fp32" if device.type == "cpu" else "auto", None)
    output = Output(arch.image_size, device, precision.dtype)
    done, wanted = 0, 2 if tiny else 20
    with TrainLoader(beton, POLICY, output, batch_size=4 if tiny else 64) as loader:
        for batch in _endless(loader):
            with _no_synchronisation(device) if done > 2 else nullcontext():
                step(batch.images, batch.labels)
            done += 1
            if done == wanted:
                return done
    raise AssertionError("the loader ended")


@contextmanager
def _no_synchronisation(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
