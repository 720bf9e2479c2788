"""Claim: 64 files of 20 million samples in all open as one training set in less than 2 s and 120 bytes a sample.

Setting: synthetic tables and manifests of files as `fastft convert` writes them (110 kB an image, 1,000 classes), with holes
in the place of the images; in the page cache. `TrainLoader` is opened in a process of its own, with one worker and a
micro-batch of 1, after its modules are imported. Memory is the peak of the resident set beyond what it was before.
n: 5 rounds, each in a new process.

Run: python benchmarks/open.py --rounds 5 [--json benchmarks/results/open.json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from beton_tools.base.names import Names
from beton_tools.read.format import DEFAULT_PAGE_SIZE, SAMPLE_DTYPE, first_page_offset, write_tables
from beton_tools.read.manifest import Manifest, manifest_path, pack_names
from beton_tools.read.parts import Part
from fastft.bench.environment import describe_machine, load, now

FILES, SAMPLES = 64, 20_000_000
IMAGE_BYTES, CLASSES = 110_000, 1000
MEASURES = {"wall": ("Time", "s"), "cpu": ("CPU time", "s"), "memory": ("Memory", "bytes per sample")}


def write_files(folder: Path, files: int, samples: int) -> str:
    """Write sparse files with `samples` samples in all; returns the pattern that names them."""
    names = pack_names(
        Names.of(f"n{k % CLASSES:08}/n{k % CLASSES:08}_{k}.JPEG" for k in range(samples // files))
    )
    for number in range(1, files + 1):
        path = Part(number, files).path(folder / "train.beton")
        _write_file(path, samples // files, number, names)
    return str(folder / "train-*.beton")


def _write_file(path: Path, samples: int, seed: int, names: dict[str, str]) -> None:
    per_page = DEFAULT_PAGE_SIZE // IMAGE_BYTES
    first, pages = first_page_offset(samples, DEFAULT_PAGE_SIZE), -(-samples // per_page)
    page, place = np.divmod(np.arange(samples), per_page)
    rows = np.zeros(samples, SAMPLE_DTYPE)
    rows["f0"]["width"], rows["f0"]["height"] = 500, 375
    rows["f0"]["data_ptr"] = first + page * DEFAULT_PAGE_SIZE + place * IMAGE_BYTES
    rows["f1"] = np.random.default_rng(seed).integers(0, CLASSES, samples)
    sizes, end = np.full(samples, IMAGE_BYTES), first + pages * DEFAULT_PAGE_SIZE
    with path.open("wb") as file:
        size = write_tables(file, rows, sizes, page_size=DEFAULT_PAGE_SIZE, data_start=first, data_end=end)
    Manifest(
        fingerprint=f"{seed:032x}",
        num_samples=samples,
        page_size=DEFAULT_PAGE_SIZE,
        data_start=first,
        file_size=size,
        tables_crc32=seed,
        page_crc32=[seed] * pages,
        classes=[f"n{k:08}" for k in range(CLASSES)],
        class_names=None,
        source={"kind": "folder", "root": "synthetic"},
        options={"part": f"{seed}/{FILES}"},
        encodings={},
        skipped=[],
        damaged=[],
        left_out={},
        packed_names=names,
    ).save(manifest_path(path))


def open_once(pattern: str) -> dict[str, float]:
    """Seconds, also of all threads' CPU time, and bytes per sample of opening a loader, in this process."""
    from fastft.data import TrainLoader

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, began, cpu = _resident("VmRSS"), perf_counter(), process_time()
    loader = TrainLoader(pattern, "3aug", 224, batch_size=2048, micro_batch=1, workers=1)
    wall, cpu, peak = perf_counter() - began, process_time() - cpu, _resident("VmHWM")
    loader.close()
    return {"wall": wall, "cpu": cpu, "memory": (peak - before) / loader.num_samples}


def _resident(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024


def run(files: int, samples: int, rounds: int) -> list[dict[str, Any]]:
    """One measure for each of MEASURES, in the schema of docs/bench-schema.md."""
    with tempfile.TemporaryDirectory() as folder:
        pattern = write_files(Path(folder), files, samples)
        command = [sys.executable, __file__, "--pattern", pattern]
        trials = [json.loads(subprocess.check_output(command)) for _ in range(rounds)]
    setting = {"files": files, "samples": samples, "rounds": rounds}
    return [
        {
            "name": name, "bench": "open", "unit": unit, "better": "lower", "setting": setting,
            "contenders": [_contender([trial[key] for trial in trials])],
        }
        for key, (name, unit) in MEASURES.items()
    ]  # fmt: skip


def _contender(values: list[float]) -> dict[str, Any]:
    return {
        "name": "fastft", "rounds": values, "median": median(values), "min": min(values), "max": max(values), "note": "",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--pattern", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pattern:
        print(json.dumps(open_once(arguments.pattern)))
        return
    notes = [f"load of the machine at the start {load()}"]
    measures = run(arguments.files, arguments.samples, arguments.rounds)
    document = {
        "machine": describe_machine(), "date": now(), "command": f"python benchmarks/open.py --rounds {arguments.rounds}",
        "notes": notes, "measures": measures,
    }  # fmt: skip
    for measure in measures:
        own = measure["contenders"][0]
        print(
            f"{measure['name']:10}{own['median']:.3g} {measure['unit']} ({own['min']:.3g}-{own['max']:.3g})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
