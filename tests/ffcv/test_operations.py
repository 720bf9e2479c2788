"""In stock FFCV's Loader the operations deliver what our own loaders do, and an error where FFCV would hang."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
import torch
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder as StockDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter

from beton_tools.base.errors import UserError
from beton_tools.read.format import Beton
from fastft.augment.cpu import CpuAugment
from fastft.augment.policies import AugmentPolicy
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.stage import Output, SampleError
from fastft.ffcv import Augment, CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

SIZE, BATCH = 48, 10
Batches = dict[int, tuple[torch.Tensor, int]]  # sample -> image, label


def stock_loader(path: Path, *image: Any, order: OrderOption = OrderOption.RANDOM, workers: int = 1) -> Loader:
    return Loader(str(path), BATCH, workers, order=order, seed=3, drop_last=False, pipelines={"image": list(image)})


def delivered(loader: Loader) -> Batches:
    """The next epoch of a stock loader."""
    order = loader.next_traversal_order()
    batches = [(images.clone(), labels.clone()) for images, labels in loader]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return {int(i): (images[k], int(labels[k])) for k, i in enumerate(order)}


def of_ours(batches: Any) -> Batches:
    return {int(i): (b.images[k].clone(), int(b.labels[k])) for b in batches for k, i in enumerate(b.ids)}


def assert_equal(stock: Batches, ours: Batches, least: int = 40) -> None:
    shared = stock.keys() & ours.keys()
    assert len(shared) >= least
    for i in shared:
        assert torch.equal(stock[i][0], ours[i][0]) and stock[i][1] == ours[i][1]


@pytest.mark.parametrize(
    ("file", "augment", "dtype"),
    [
        ("indexed", "rand-m9-mstd0.5-inc1", torch.float16),
        ("stock jpg", "3aug", torch.float32),
        ("stock raw", "rand-m9-mstd0.5-inc1", torch.float32),
        ("stock proportion", "3aug", torch.bfloat16),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_training_images_are_those_of_our_loader_in_every_epoch(
    file: str, augment: str, dtype: torch.dtype, indexed_beton: Path, stock_beton: Callable[[str], Path]
) -> None:
    path = indexed_beton if file == "indexed" else stock_beton(file.removeprefix("stock "))
    assert set(Beton.open(path).modes) == {"stock raw": {1}, "stock proportion": {0, 1}}.get(file, {0})
    decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=(0.3, 1), hflip=0.5)
    more: dict[str, Any] = {"erase_prob": 0.3}
    if augment == "3aug":
        more |= {"vflip": 0.5, "quarter_turns": 0.7, "color_jitter": 0.4, "color_jitter_prob": 0.8}
    stock = stock_loader(path, decoder, ToTensor(), Augment(augment, dtype=dtype, **more), workers=2)
    policy = AugmentPolicy(augment, scale=(0.3, 1), **more)
    with TrainLoader(path, policy, Output(SIZE, dtype=dtype), batch_size=BATCH, seed=3, workers=1) as ours:
        for epoch in range(2):
            images = delivered(stock)
            assert_equal(images, of_ours(ours.epoch(epoch)))
        assert images[0][0].dtype == dtype


def test_evaluation_images_are_those_of_our_loader_at_every_size(indexed_beton):
    decoder = CenterCropRGBImageDecoder((SIZE, SIZE), ratio=0.875)
    stock = stock_loader(indexed_beton, decoder, ToTensor(), Augment(), order=OrderOption.SEQUENTIAL)
    for size in (SIZE, 32):
        decoder.output_size = (size, size)  # as ffcv-imagenet changes the resolution
        policy = AugmentPolicy("none", crop_pct=0.875)
        with EvalLoader(indexed_beton, policy, size, batch_size=BATCH, workers=1) as ours:
            assert_equal(delivered(stock), of_ours(ours))


def test_the_crop_alone_takes_the_place_of_the_stock_decoder(indexed_beton):
    """uint8 as FFCV's, which its own operations can follow; a seed of its own gives other crops."""
    crops = [
        delivered(stock_loader(indexed_beton, RandomResizedCropRGBImageDecoder((SIZE, SIZE), seed=seed), ToTensor()))
        for seed in (3, None, 4)
    ]
    assert crops[0][5][0].dtype == torch.uint8 and crops[0][5][0].shape == (SIZE, SIZE, 3)
    assert_equal(crops[0], crops[1])
    assert not torch.equal(crops[0][5][0], crops[2][5][0])


@pytest.mark.parametrize(
    "others",
    [*(pytest.param(f, marks=pytest.mark.slow) for f in ({}, {"value": FloatField()})), {"id": IntField()}],
    ids=["image", "float", "ids"],
)
def test_files_without_class_labels_are_decoded(images, tmp_path, others):
    path, fields = tmp_path / "a.beton", {"image": RGBImageField(write_mode="jpg"), **others}
    rows = [(image, *(10_000_000 + k for _ in others)) for k, image in enumerate(images)]
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(rows)
    loader = stock_loader(path, CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1.0), ToTensor())
    assert sum(len(batch[0]) for batch in loader) == len(images)


def test_a_damaged_sample_raises_in_the_loop_and_ends_the_thread(indexed_beton, tmp_path):
    path = tmp_path / "damaged.beton"
    path.write_bytes(indexed_beton.read_bytes())
    beton = Beton.open(path)
    with path.open("r+b") as file:
        file.seek(int(beton.pointers[25]))
        file.write(bytes(300))
    loader = stock_loader(path, CenterCropRGBImageDecoder((SIZE, SIZE)), ToTensor(), order=OrderOption.SEQUENTIAL)
    iterator = iter(loader)
    assert len(next(iterator)[0]) == len(next(iterator)[0]) == BATCH
    with pytest.raises(SampleError, match=r"sample 25: .*beton verify"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    iterator.join(20)
    assert not iterator.is_alive()


def test_a_stock_decoder_works_beside_them_and_numba_keeps_its_types(indexed_beton):
    loader = stock_loader(indexed_beton, StockDecoder((SIZE, SIZE), 1.0), ToTensor(), Augment("3aug"))
    assert min(image.std() for image, _ in delivered(loader).values()) > 0.1
    assert numba.typeof(np.empty(1, np.uint8)).mutable


def test_on_a_gpu_images_offsets_and_plan_go_to_the_kernels(monkeypatch):
    """Without a card: a stand-in for `CudaAugment` that reads its tables back."""
    loader = SimpleNamespace(fname="", seed=7, next_epoch=3, num_workers=1)
    monkeypatch.setattr(threading.current_thread(), "loader", loader, raising=False)
    given = Augment("rand-m9-mstd0.5-inc1", erase_prob=1.0)
    images = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    ids = np.array([9, 1, 5, 2], np.uint64)
    on_cpu = given._run(images, torch.empty(images.shape), ids)

    class Kernels(CpuAugment):
        def __call__(self, packed: torch.Tensor, offsets: torch.Tensor, plan: torch.Tensor) -> Any:
            rows = plan.numpy().view(given._plan(ids.astype(np.int64), SIZE).dtype)
            return torch.from_numpy(super().__call__(packed.numpy(), offsets.numpy(), rows)).permute(0, 3, 1, 2)

    given._augment = Kernels(given.policy, SIZE)
    assert torch.equal(given._run(images, None, ids), on_cpu)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCropRGBImageDecoder((32, 48)), "two equal sides"),
        (lambda: RandomResizedCropRGBImageDecoder((32, 32), scale=(0.5, 0.1)), "scale"),
        (lambda: CenterCropRGBImageDecoder((32, 32), ratio=1.5), "crop_pct"),
        (lambda: Augment("rand-x3"), "rand-x3"),
        (lambda: Augment(dtype=torch.float64), "float16"),
    ],
)
def test_impossible_arguments_are_refused_at_once(make, message):
    with pytest.raises(UserError, match=message):
        make()
