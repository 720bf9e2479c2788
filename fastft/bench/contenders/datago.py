"""datago (github.com/Photoroom/datago): threads in Rust read and decode files, and timm's transform follows in Python."""

import json
import os
from collections.abc import Iterator

from fastft.bench.child import library
from fastft.bench.contenders.timm import NCHW, RetryingTransform
from fastft.bench.task import Entry, Pass, Task, Work

WORK = ("timm's transform in one thread", NCHW)


def make(task: Task) -> Pass:
    """Let it read as many files at a time as there are threads, in random order."""
    import torch

    os.environ["DATAGO_MAX_TASKS"] = str(task.threads)
    config = {
        "source_type": "file", "limit": len(task.paths), "samples_buffer_size": task.batch,
        "source_config": {"root_path": task.files["folder"], "random_sampling": True, "rank": 0, "world_size": 1},
    }  # fmt: skip
    client = library("datago", "datago").DatagoClient(json.dumps(config))
    transform = RetryingTransform(task.size, task.work)

    def one_pass() -> Iterator[int]:
        batch: list[torch.Tensor] = []
        for _ in range(task.repeat):
            client.start()
            while (sample := client.get_sample()) is not None:
                batch.append(transform(sample.image.to_pil_image().convert("RGB")))
                if len(batch) == task.batch:
                    yield len(torch.stack(batch))
                    batch.clear()

    return one_pass


ENTRIES = (Entry("datago", "datago", make, {Work.RECIPE: WORK, Work.CROP: WORK}),)
