import tracemalloc

from beton_tools.read.format import SAMPLE_DTYPE
from fastft.augment import parse_policy
from fastft.bench.dataset import IMAGENET_LENGTH, write_imagenet_length
from fastft.data import Output, TrainLoader

BUDGET = 100e6  # bytes beyond the metadata; stock FFCV takes 634 MB
WORKERS = 2  # each has scratch memory, whatever the file's length


def test_a_file_of_imagenets_length_opens_in_little_memory(tmp_path):
    path, policy = tmp_path / "long.beton", parse_policy()
    write_imagenet_length(path)
    tracemalloc.start()
    try:
        loader = TrainLoader(path, policy, Output(224), batch_size=256, micro_batch=1, workers=WORKERS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (loader.num_samples, loader.num_classes) == (IMAGENET_LENGTH, 1000)
    assert peak < IMAGENET_LENGTH * SAMPLE_DTYPE.itemsize + BUDGET
    loader.close()
