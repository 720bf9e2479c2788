"""A loader on a card that only answers: where its batches are, and that a batch is not overwritten while it is kept."""

import torch

from fastft.bench.dataset import ORIGINAL, Workspace, find_images
from fastft.data.loader import TrainLoader
from fastft.data.stage import Output

IMAGES, BATCH = 32, 8


def test_a_loader_without_a_gpus_number_uses_the_current_one_and_kept_batches_have_their_own_memory(tmp_path):
    beton = Workspace(tmp_path, find_images(None, tmp_path, IMAGES)).beton(ORIGINAL)
    with TrainLoader(beton, "none", Output(32, "cuda"), batch_size=BATCH) as loader:
        kept = [batch.images for batch in loader.epoch(0)]
    assert {images.device for images in kept} == {torch.device("cuda", 0)}
    assert len({images.data_ptr() for images in kept}) == len(kept) == IMAGES // BATCH
