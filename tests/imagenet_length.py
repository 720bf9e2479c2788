"""A sparse .beton with the tables of 1,281,167 images and holes for their bytes."""

from pathlib import Path

import numpy as np

from beton_tools.read.format import DEFAULT_PAGE_SIZE, SAMPLE_DTYPE, align_up, first_page_offset, write_tables
from fastft.recipe.constants import IMAGENET_TRAIN_SIZE as IMAGENET_LENGTH


def write_imagenet_length(path: Path, num_bytes: int = 1024) -> None:
    rows = np.zeros(IMAGENET_LENGTH, SAMPLE_DTYPE)
    first = first_page_offset(IMAGENET_LENGTH, DEFAULT_PAGE_SIZE)
    pointers = first + num_bytes * np.arange(IMAGENET_LENGTH, dtype=np.uint64)
    end = align_up(int(pointers[-1]) + num_bytes, DEFAULT_PAGE_SIZE)
    rows["f0"]["width"], rows["f0"]["height"], rows["f0"]["data_ptr"] = 500, 375, pointers
    rows["f1"] = np.arange(IMAGENET_LENGTH) % 1000
    sizes = np.full(IMAGENET_LENGTH, num_bytes)
    with path.open("wb") as file:
        write_tables(file, rows, sizes, page_size=DEFAULT_PAGE_SIZE, data_start=first, data_end=end)
