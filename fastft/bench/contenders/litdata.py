"""LitData (github.com/Lightning-AI/litData): optimised chunks with the same JPEGs, Pillow, timm's transform."""

from pathlib import Path

from fastft.bench.child import library
from fastft.bench.contenders.timm import NCHW, RetryingTransform
from fastft.bench.contenders.webdataset import TIMM
from fastft.bench.task import Entry, Pass, Task, Work, read_file

CHUNK_BYTES = "64MB"  # its documentation's


def make(task: Task) -> Pass:
    lit = library("litdata", "litdata")
    dataset = lit.StreamingDataset(chunks(task), shuffle=True, transform=RetryingTransform(task.size, task.work))
    loader = lit.StreamingDataLoader(dataset, batch_size=task.batch, num_workers=task.threads, persistent_workers=True)
    return lambda: (len(images) for images in loader)


def chunks(task: Task) -> str:
    """Write the chunks before anything is timed."""
    folder = f"{task.files['scratch']}/litdata-{task.repeat}"
    if not Path(folder).exists():
        paths = [str(path) for path in task.paths] * task.repeat
        library("litdata", "litdata").optimize(read_file, paths, folder, num_workers=1, chunk_bytes=CHUNK_BYTES)
    return folder


ENTRIES = (Entry("LitData", "litdata", make, {Work.RECIPE: (TIMM, NCHW), Work.CROP: (TIMM, NCHW)}, prepare=chunks),)
