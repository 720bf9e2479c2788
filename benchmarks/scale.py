"""Measure the cost of converting millions of images in parts: each part, the listing that all parts do, an interruption.

    python benchmarks/scale.py            # writes benchmarks/results/scale.json; about two minutes

The images are synthetic WebDataset shards: IMAGES samples of real photographs, cut to 64 px. Times are CPU seconds of
the commands, which do not depend on what else the machine does. Reading from a network is not included.
"""

import argparse
import io
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image
from records import FOLDER, Row, store

from beton_tools.read.manifest import Manifest, manifest_path
from fastft.bench.dataset import find_images

IMAGES, SHARDS, PARTS, CLASSES = 40_000, 40, 4, 1000
LIST = """
import sys, time
import psutil
from beton_tools.sources.find import open_source
from pathlib import Path
seconds, memory = time.process_time(), psutil.Process().memory_info().rss
source = open_source(Path(sys.argv[1]))
print(time.process_time() - seconds, psutil.Process().memory_info().rss - memory, len(source.labels))
"""


def photographs(folder: Path) -> list[bytes]:
    """Cut JPEGs with 64 x 64 pixels from packaged photographs or the ImageNet sample."""
    cuts = []
    for path in find_images(None, folder, 32).paths:
        with Image.open(path) as image:
            for left in range(0, min(image.width, 640) - 64, 128):
                buffer = io.BytesIO()
                image.convert("RGB").crop((left, 0, left + 64, 64)).save(buffer, "JPEG", quality=90)
                cuts.append(buffer.getvalue())
    return cuts


def write_shards(folder: Path, cuts: list[bytes], images: int) -> None:
    per_shard = images // SHARDS
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard:05}.tar", "w") as tar:
            for k in range(shard * per_shard, (shard + 1) * per_shard):
                for suffix, content in (("jpg", cuts[k % len(cuts)]), ("cls", str(k * 7919 % CLASSES).encode())):
                    info = tarfile.TarInfo(f"{k:09}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def convert(shards: Path, out: Path, part: int, kill_after: int | None = None) -> float:
    """Return the CPU seconds for converting a part. kill_after: bytes of the unfinished file at which it is killed."""
    command = [sys.executable, "-m", "fastft.cli", "convert", "folder", "--data", f"{shards}/*.tar", "--out", str(out),
               "--part", f"{part}/{PARTS}", "--workers", "0", "--write-mode", "jpg"]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while kill_after is not None and process.poll() is None:
        if sum(p.stat().st_size for p in out.parent.glob("*.part")) > kill_after:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    code = process.wait()
    assert code == (0 if kill_after is None else -signal.SIGKILL), code
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(folder: Path, images: int) -> Row:
    shards, parts, again = (folder / name for name in ("shards", "parts", "again"))
    for place in (shards, parts, again):
        place.mkdir()
    write_shards(shards, photographs(folder), images)
    listed = subprocess.run([sys.executable, "-c", LIST, f"{shards}/*.tar"], capture_output=True, text=True, check=True)
    seconds, memory, found = map(float, listed.stdout.split())
    assert found == images
    cpu = [convert(shards, parts / "x.beton", part) for part in range(1, PARTS + 1)]
    files = sorted(parts.glob("*.beton"))
    counts = [Manifest.load(manifest_path(path)).num_samples for path in files]
    half = files[0].stat().st_size // 2
    killed = convert(shards, again / "x.beton", 1, kill_after=half)
    resumed = convert(shards, again / "x.beton", 1)
    same = files[0].read_bytes() == (again / files[0].name).read_bytes()
    return {
        "images": images, "shards": SHARDS, "parts": PARTS,
        "bytes_per_image_in": sum(p.stat().st_size for p in shards.iterdir()) / images,
        "bytes_per_image_out": sum(p.stat().st_size for p in files) / images,
        "list_cpu_seconds": seconds, "list_bytes": memory, "part_cpu_seconds": cpu, "part_images": counts,
        "part_bytes": [p.stat().st_size for p in files],
        "killed_cpu_seconds": killed, "resumed_cpu_seconds": resumed, "same_bytes": same,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--out", type=Path, default=FOLDER / "scale.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store(args.out, measure(Path(scratch), args.images))
    print(args.out.read_text())
