import json
import os
import sys
import threading
import time
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import FIELD_DTYPE, HEADER_DTYPE, SAMPLE_DTYPE, Beton
from beton_tools.read.manifest import Manifest, manifest_path
from fastft.augment.policies import AugmentPolicy
from fastft.data.engine import Engine, Pass
from fastft.data.loader import EvalLoader, TrainLoader
from fastft.data.order import Shard
from fastft.data.stage import Output, SampleError, Stage

SIZE, BATCH = 48, 8
POLICY = AugmentPolicy("rand-m9-mstd0.5-inc1", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def train_loader(path, *, size=SIZE, dtype=torch.float32, device="cpu", rank=0, world_size=1, **options):
    defaults = {"seed": 5, "batch_size": BATCH, "micro_batch": 4, "workers": 2}
    shard = Shard(rank, world_size)
    return TrainLoader(path, POLICY, Output(size, device, dtype), shard=shard, **(defaults | options))


def eval_loader(path, *, device="cpu", rank=0, world_size=1, **options):
    defaults = {"batch_size": BATCH, "workers": 2}
    shard = Shard(rank, world_size)
    return EvalLoader(path, POLICY, Output(SIZE, device), shard=shard, **(defaults | options))


def collect(batches):
    """{(step, position): (id, label, bytes of the image)} of every image."""
    seen = {}
    for batch in batches:
        for b, sample in enumerate(batch.ids):
            image = batch.images[b].contiguous().view(torch.uint8).numpy().tobytes()
            seen[batch.step, batch.first_position + b] = (int(sample), int(batch.labels[b]), image)
    return seen


def loader_threads():
    return [thread for thread in threading.enumerate() if isinstance(thread, Pass)]


@pytest.fixture(scope="module")
def whole_epoch(indexed_beton):
    with train_loader(indexed_beton) as loader:
        return collect(loader.epoch(2))


# the order contract


@pytest.mark.parametrize(("world_size", "micro_batch", "workers"), [(1, 8, 1), (2, 2, 3), (4, 1, 2)])
def test_the_images_of_a_step_depend_on_neither_ranks_nor_micro_batches_nor_workers(
    indexed_beton, whole_epoch, world_size, micro_batch, workers
):
    together = {}
    for rank in range(world_size):
        split = {"rank": rank, "world_size": world_size, "micro_batch": micro_batch, "workers": workers}
        with train_loader(indexed_beton, **split) as loader:
            together |= collect(loader.epoch(2))
    assert together == whole_epoch


def test_an_epoch_is_whole_steps_of_distinct_samples(indexed_beton, whole_epoch):
    assert sorted(whole_epoch) == [(step, position) for step in range(5) for position in range(8)]
    assert len({sample for sample, _, _ in whole_epoch.values()}) == 40
    labels = Beton.open(indexed_beton).labels
    assert all(label == labels[sample] for sample, label, _ in whole_epoch.values())


def test_a_subset_trains_on_its_samples_only(indexed_beton):
    subset = np.arange(3, 44, 2)
    with train_loader(indexed_beton, subset=subset) as loader:
        seen = collect(loader.epoch(0))
        assert (loader.num_samples, loader.steps_per_epoch, len(seen)) == (21, 2, 16)
    assert {sample for sample, _, _ in seen.values()} <= set(subset.tolist())


@pytest.mark.parametrize("order", ["random", "blocks"])
def test_a_sampled_epoch_is_the_same_at_any_world_size_and_repeats_images_with_other_augmentation(indexed_beton, order):
    options = {"sampling": "balanced", "subset": np.array([*range(9), 9, 18]), "order": order}  # of 9, 1 and 1 images
    with train_loader(indexed_beton, **options) as loader:
        whole = collect(loader.epoch(1))
        assert loader.samples_of_step(1, 0).tolist() == [sample for sample, _, _ in whole.values()]
    together = {}
    for rank in range(2):
        with train_loader(indexed_beton, rank=rank, world_size=2, **options) as loader:
            together |= collect(loader.epoch(1))
    assert together == whole
    rare = [image for sample, _, image in whole.values() if sample in (9, 18)]
    assert len(rare) >= 4 and len(set(rare)) == len(rare)


# what a batch is


def test_a_batch_is_channels_last_in_the_requested_dtype(indexed_beton):
    pairs = {}
    for dtype in (torch.float32, torch.bfloat16):
        with train_loader(indexed_beton, dtype=dtype) as loader:
            batch = next(loader.epoch(0))
            pairs[dtype] = batch.images.clone()
            assert batch.images.shape == (4, 3, SIZE, SIZE)
            assert batch.images.dtype == dtype
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert batch.labels.dtype == torch.int64 and batch.ids.dtype == np.int64
    rounded = pairs[torch.float32].to(torch.bfloat16)
    assert torch.equal(rounded, pairs[torch.bfloat16])


def test_a_batch_stays_intact_until_the_next_one_is_requested(indexed_beton):
    with train_loader(indexed_beton, micro_batch=1) as loader:
        for batch in loader.epoch(0):
            before = batch.images.clone()
            while not loader.engine.thread.free.empty() and loader.engine.thread.is_alive():
                time.sleep(0.005)
            time.sleep(0.02)  # the thread works on the last free slot
            assert torch.equal(batch.images, before)


# evaluation


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (2, 7), (3, 64)])
def test_evaluation_sees_every_sample_once(indexed_beton, world_size, batch_size):
    with eval_loader(indexed_beton, batch_size=5) as loader:
        alone = {sample: rest for sample, *rest in collect(loader).values()}
        assert len(alone) == loader.num_samples == 44
    together = []
    for rank in range(world_size):
        with eval_loader(indexed_beton, rank=rank, world_size=world_size, batch_size=batch_size) as loader:
            batches = collect(loader)
            positions = [position for _, position in batches]
            assert positions == list(range(positions[0], positions[0] + len(positions)))
            together += batches.values()
    assert sorted(sample for sample, _, _ in together) == list(range(44))
    assert all(alone[sample] == rest for sample, *rest in together)


def test_an_evaluation_can_be_repeated_and_run_in_the_middle_of_an_epoch(indexed_beton, whole_epoch):
    with train_loader(indexed_beton) as loader, eval_loader(indexed_beton) as evaluation:
        epoch = loader.epoch(2)
        first = collect([next(epoch)])
        assert collect(evaluation) == collect(evaluation)
        assert first | collect(epoch) == whole_epoch


# errors


@pytest.fixture
def damaged_beton(indexed_beton, tmp_path):
    """A copy in which the JPEG of sample 17 is cut off by zeros, and its manifest."""
    path = tmp_path / "damaged.beton"
    data = bytearray(indexed_beton.read_bytes())
    beton = Beton.open(indexed_beton)
    start, size = int(beton.pointers[17]), int(beton.sizes[17])
    data[start + size // 2 : start + size] = bytes(size - size // 2)
    path.write_bytes(data)
    manifest = indexed_beton.with_name("indexed.beton.manifest.json")
    path.with_name("damaged.beton.manifest.json").write_bytes(manifest.read_bytes())
    return path


@pytest.mark.timeout(60)
def test_a_sample_that_does_not_decode_is_named_in_the_training_loop(damaged_beton):
    name = Manifest.of_beton(damaged_beton).names[17]
    with eval_loader(damaged_beton, batch_size=4) as loader:
        seen = []
        with pytest.raises(SampleError, match=rf"sample 17 \({name}\)") as caught:
            for batch in loader:
                seen += batch.ids.tolist()
        assert caught.value.sample == 17 and seen == list(range(16))
    assert loader_threads() == []


@pytest.mark.timeout(60)
def test_an_image_that_does_not_fit_the_memory_is_named(indexed_beton):
    betons = BetonSet.open(indexed_beton)
    sample = int((betons.heights.astype(int) * betons.widths).argmax())
    stage = SimpleNamespace(betons=betons, decoders=range(1 << 40))  # as many workers, each with its scratch
    with pytest.raises(SampleError, match=f"sample {sample}.* do not fit the memory. .*beton verify"):
        Stage.new_workers(stage)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_that_disagrees_with_its_jpeg_is_named(indexed_beton, tmp_path, side):
    path, data = tmp_path / "copy.beton", bytearray(indexed_beton.read_bytes())
    column = Beton.open(indexed_beton).metadata["f0"]
    at = HEADER_DTYPE.itemsize + 2 * FIELD_DTYPE.itemsize + 9 * SAMPLE_DTYPE.itemsize
    at += SAMPLE_DTYPE["f0"].fields[("height", "width")[side]][1]
    smaller = int(column[("height", "width")[side]][9]) - 1
    data[at : at + 2] = smaller.to_bytes(2, "little")
    path.write_bytes(data)
    with eval_loader(path) as loader, pytest.raises(SampleError, match=r"sample 9: .* size of the JPEG differs"):
        list(loader)


def test_the_manifest_of_another_file_is_refused(indexed_beton, tmp_path):
    path, manifest = tmp_path / "copy.beton", json.loads(manifest_path(indexed_beton).read_text())
    path.write_bytes(indexed_beton.read_bytes())
    for other in ({"num_samples": 43}, {"tables_crc32": 1}):  # the second has as many samples and bytes
        manifest_path(path).write_text(json.dumps(manifest | other))
        with pytest.raises(UserError, match="its manifest belongs to another file"):
            eval_loader(path)


def test_a_closed_loader_says_so(indexed_beton):
    loader = eval_loader(indexed_beton)
    loader.close()
    with pytest.raises(RuntimeError, match="this loader is closed"):
        list(loader)


def test_a_gpu_without_numba_cuda_is_one_line(indexed_beton, monkeypatch):
    monkeypatch.setattr("fastft.data.stage.has_numba_cuda", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"needs numba-cuda. Run: pip install .*'numba-cuda\[cu1[23]\]>="):
        eval_loader(indexed_beton, device="cuda")


def test_a_broken_numba_cuda_is_one_line(indexed_beton, monkeypatch):
    """Such as numba-cuda 0.30.4 with NumPy 2.5."""
    broken = ModuleType("fastft.augment.cuda")
    broken.CudaAugment = Mock(side_effect=TypeError("no such dtype\nmore lines"))
    monkeypatch.setitem(sys.modules, "fastft.augment.cuda", broken)
    monkeypatch.setattr("fastft.data.stage.has_numba_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(UserError, match=r"fails here \(TypeError: no such dtype\). Run `fastft doctor` to examine it$"):
        eval_loader(indexed_beton, device="cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 6}, "not a multiple"),
        ({"subset": np.array([44])}, "from 0 to 43"),
        ({"subset": np.arange(44) < 20}, "flatnonzero"),
        ({"dtype": torch.int32}, "int32"),
        ({"batches_ahead": 0}, "batches_ahead is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"size": 0}, "size is 0"),
        ({"size": 32.5}, "size is 32.5. Give a whole number"),
        ({"batch_size": -1, "micro_batch": None}, "batch size is -1. Give a whole number, 1 or more"),
        ({"device": "tpu"}, "device is tpu. Give cpu or cuda"),
        ({"device": "cuda:99"}, "device is cuda:99, but torch finds"),
        ({"order": "sorted"}, "Give one of"),
        ({"order": "blocks", "block_mib": 0}, "1 or"),
    ],
)
def test_impossible_options_are_refused(indexed_beton, options, words):
    with pytest.raises(UserError, match=words):
        train_loader(indexed_beton, **options)


# threads


def test_closing_ends_an_abandoned_pass_and_a_new_pass_ends_the_old_one(indexed_beton):
    with train_loader(indexed_beton, micro_batch=1) as loader:
        abandoned = loader.epoch(0)
        next(abandoned)
        replacement = loader.epoch(1)
        next(replacement)
        assert len(loader_threads()) == 1
        with pytest.raises(RuntimeError, match="closed"):
            next(abandoned)
        next(replacement)
    assert loader_threads() == []


def test_more_workers_than_cores_make_the_same_images_and_torch_keeps_its_threads(indexed_beton, whole_epoch):
    threads = torch.get_num_threads()
    with train_loader(indexed_beton, workers=(os.cpu_count() or 1) + 5) as loader:
        assert collect(loader.epoch(2)) == whole_epoch
    assert torch.get_num_threads() == threads


def test_a_batch_kept_on_a_gpu_is_not_overwritten_while_it_is_read(monkeypatch):
    """torch's allocator reuses memory in the stream that made it, unless told which other stream reads it."""

    class Tensor:
        def __init__(self) -> None:
            self.read_in: list[object] = []

        def record_stream(self, stream: object) -> None:
            self.read_in.append(stream)

    consumer, batches = MagicMock(), [(Tensor(), Tensor()), (Tensor(), Tensor())]
    stage = SimpleNamespace(device=torch.device("cuda"), run=lambda ids, slot, draw: batches[int(ids[0])])
    monkeypatch.setattr(torch.cuda, "Stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: consumer)
    engine = Engine(stage, batches_ahead=2)  # type: ignore[arg-type]
    assert list(engine.start(np.arange(2)[:, None], lambda *_: np.empty(0))) == batches
    assert all(tensor.read_in == [consumer] for batch in batches for tensor in batch)
