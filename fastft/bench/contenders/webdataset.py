"""WebDataset (github.com/webdataset/webdataset): tar shards, Pillow, timm's transform, torch's DataLoader.

The shards hold the same JPEGs.
"""

import itertools

from fastft.bench.child import library
from fastft.bench.contenders.timm import NCHW, RetryingTransform
from fastft.bench.contenders.torchvision import torch_loader
from fastft.bench.task import SHARDS, Entry, Pass, Task, Work

TIMM = "timm's transform"


def make(task: Task) -> Pass:
    """Read shards in order and shuffle samples in a buffer of 1,000."""
    wds = library("webdataset", "webdataset")
    data = wds.WebDataset(task.files["shards"], shardshuffle=False).shuffle(1000).decode("pil").to_tuple("jpg")
    one_pass = torch_loader(data.map_tuple(RetryingTransform(task.size, task.work)), task, shuffle=None)
    return lambda: itertools.chain.from_iterable(one_pass() for _ in range(task.repeat))


ENTRIES = (Entry("WebDataset", "webdataset", make, {Work.RECIPE: (TIMM, NCHW), Work.CROP: (TIMM, NCHW)}, reads=SHARDS),)
