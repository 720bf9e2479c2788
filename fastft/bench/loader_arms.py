"""All contenders' loaders over the same JPEGs, each in its own process: a function that passes over them once, by batches.

Ours and the peers deliver normalised float32 images at `size`, unless their name says otherwise.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastft.bench.child import Arm, library
from fastft.bench.peers import (
    AUGMENT,
    ERASE,
    PREFETCH,
    dali_pipeline,
    timm_batches,
    timm_transform,
    torchvision_transform,
)
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD

Pass = Callable[[], Iterator[int]]  # one pass over the images; yields the size of each batch

# measurements --------------------------------------------------------------------------------------------------------


def warm(maker: str, **arguments: Any) -> dict[str, Arm]:
    """Whole passes with the files in the page cache."""
    one_pass = MAKERS[maker](**arguments)
    return {"pass": lambda: sum(one_pass())}


def first(maker: str, **arguments: Any) -> dict[str, Arm]:
    """Seconds of imports, of building the loader and for its first batch; this process's peak memory in MB over a whole pass."""
    if maker == "litdata":  # written once, before the clock starts
        litdata_chunks(arguments["folder"], arguments["threads"], arguments["repeat"])

    def run() -> dict[str, float]:
        began = time.perf_counter()
        batches = MAKERS[maker](**arguments)()
        count = next(batches)
        seconds = time.perf_counter() - began
        return {"count": count + sum(batches), "seconds": seconds, "peak_mb": peak_mb()}

    return {"first": run}


def peak_mb() -> float:
    """Peak memory of this process (getrusage would give a child its parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024 / 1e6


# loaders -------------------------------------------------------------------------------------------------------------


def ours(
    path: str, size: int, batch: int, threads: int, repeat: int, *, policy: str = AUGMENT, erase: float = ERASE,
    device: str = "cpu",
) -> Pass:  # fmt: skip
    import torch

    from fastft.augment import parse_policy
    from fastft.data import Output, TrainLoader

    loader = TrainLoader(
        path, parse_policy(policy, erase_prob=erase), Output(size, device), batch_size=batch, workers=threads,
        subset=repeated(path, repeat),
    )  # fmt: skip
    epochs = itertools.count()

    def one_pass() -> Iterator[int]:
        for b in loader.epoch(next(epochs)):
            yield len(b.ids)
        if device != "cpu":
            torch.cuda.synchronize()

    return one_pass


def ours_eval(path: str, size: int, batch: int, threads: int, repeat: int) -> Pass:
    from fastft.augment import parse_policy
    from fastft.data import EvalLoader, Output

    loader = EvalLoader(
        path, parse_policy("none"), Output(size), batch_size=batch, workers=threads, indices=repeated(path, repeat)
    )  # fmt: skip
    return lambda: (len(b.ids) for b in loader)


def ffcv(
    path: str, size: int, batch: int, threads: int, repeat: int, normalise: bool = False, train: bool = True,
    policy: str | None = None,
) -> Pass:  # fmt: skip
    """Stock FFCV: its decoder, flip, and with `normalise` float32 instead of uint8.

    policy: with fastft's operations instead; "crop" is uint8, another policy has erasing and normalisation too.
    """
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    last: list[Any] = [ToTorchImage()]
    if policy is not None:
        from fastft import ffcv as ours

        operations = [ours.RandomResizedCropRGBImageDecoder((size, size), hflip=0.5)]
        if policy != "crop":
            last = [ours.Augment(policy, erase_prob=0.0 if policy == "none" else ERASE)]
    elif train:
        operations = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip()]
    else:
        operations = [CenterCropRGBImageDecoder((size, size), ratio=1.0)]
    if normalise:
        mean, std = 255 * np.array(CLIP_MEAN), 255 * np.array(CLIP_STD)
        operations.append(NormalizeImage(mean, std, np.float32))
    loader = Loader(
        path, batch, threads, order=OrderOption.RANDOM if train else OrderOption.SEQUENTIAL, seed=0,
        indices=repeated(path, repeat), drop_last=train,
        pipelines={"image": [*operations, ToTensor(), *last]},
    )  # fmt: skip
    return lambda: (len(images) for images, _ in loader)


def repeated(path: str, times: int) -> np.ndarray | None:
    """Indices with every sample `repeat` times; None if once."""
    from beton_tools.read.format import Beton

    return None if times == 1 else np.tile(np.arange(Beton.open(path).num_samples), times)


def timm(folder: str, size: int, batch: int, threads: int, repeat: int, **options: Any) -> Pass:
    loader = timm_batches(folder, size, batch, threads, repeat, **options)
    return lambda: (len(images) for images, _ in loader)


def torchvision(folder: str, size: int, batch: int, threads: int, repeat: int) -> Pass:
    """ImageFolder and torch's DataLoader, as torchvision's references do."""
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(folder, torchvision_transform(size))
    dataset.samples = dataset.samples * repeat
    return torch_loader(dataset, batch, threads)


def webdataset(shards: str, size: int, batch: int, threads: int, repeat: int) -> Pass:
    """Shards read in order, decoded by Pillow, timm's transform."""
    wds = library("webdataset", "webdataset")
    data = wds.WebDataset(shards, shardshuffle=False).shuffle(1000).decode("pil").to_tuple("jpg")
    one_pass = torch_loader(data.map_tuple(timm_transform(size)), batch, threads, shuffle=None)
    return lambda: itertools.chain.from_iterable(one_pass() for _ in range(repeat))


def litdata(folder: str, size: int, batch: int, threads: int, repeat: int) -> Pass:
    """Optimised chunks of the JPEGs (written before the clock starts), decoded by Pillow, timm's transform."""
    lit = library("litdata", "litdata")
    chunks = litdata_chunks(folder, threads, repeat)
    transform = partial(_decoded, timm_transform(size))
    dataset = lit.StreamingDataset(chunks, shuffle=True, transform=transform)
    loader = lit.StreamingDataLoader(dataset, batch_size=batch, num_workers=threads, persistent_workers=True)
    return lambda: (len(images) for images in loader)


def litdata_chunks(folder: str, threads: int, repeat: int) -> str:
    lit = library("litdata", "litdata")
    chunks = f"{folder}.litdata-{threads}-{repeat}"
    if not Path(chunks).exists():
        inputs = [str(p) for p in sorted(Path(folder).glob("*/*"))] * repeat
        lit.optimize(read_file, inputs, chunks, num_workers=1, chunk_bytes="64MB")
    return chunks


def _decoded(transform: Callable[[Any], Any], file: bytes, *_: Any) -> Any:
    from io import BytesIO

    from PIL import Image

    return transform(Image.open(BytesIO(file)).convert("RGB"))


def read_file(path: str) -> bytes:
    return Path(path).read_bytes()


def dali(folder: str, size: int, batch: int, threads: int, repeat: int, gpu: bool = False) -> Pass:
    """DALI's CPU or GPU pipeline with the default prefetch of two batches; none is computed outside the pass."""
    paths = [str(p) for p in sorted(Path(folder).glob("*/*"))] * repeat
    pipeline = dali_pipeline(paths, size, batch, threads=threads, gpu=gpu)

    def one_pass() -> Iterator[int]:
        batches = len(paths) // batch
        for started in range(batches + PREFETCH):
            if started < batches:
                pipeline.schedule_run()
            if started >= PREFETCH:
                pipeline.share_outputs()
                yield batch
                pipeline.release_outputs()

    return one_pass


def torch_loader(data: Any, batch: int, threads: int, shuffle: bool | None = True) -> Pass:
    """`shuffle` None: a stream, where drop_last would make each worker discard its incomplete last batch."""
    from torch.utils.data import DataLoader

    drop_last = shuffle is not None
    loader = DataLoader(data, batch, shuffle=shuffle, num_workers=threads, drop_last=drop_last, persistent_workers=True)
    return lambda: (len(found[0]) for found in loader)


MAKERS: dict[str, Callable[..., Pass]] = {
    "ours": ours, "ours_eval": ours_eval, "ffcv": ffcv, "timm": timm, "torchvision": torchvision,
    "webdataset": webdataset, "litdata": litdata, "dali": dali,
}  # fmt: skip
