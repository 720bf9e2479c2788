"""Convert a dataset in parts on a Ray cluster: one task per part, on whichever machines have free CPUs.

    pip install ray
    python examples/convert_ray.py --data /shared/photos --out /shared/photos.beton --parts 16

This writes photos-01-of-16.beton to photos-16-of-16.beton. Train with --data.train='photos-*.beton'. `--data` and
`--out` must be on a file system that all machines share. If the process or machine of a task dies, the task is started
again and continues its part.
"""

import argparse
import os
import sys
from pathlib import Path

import ray

from beton_tools.base.errors import UserError
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions

CPUS = 8  # for each part, at most, unless another number is given


@ray.remote(max_retries=3)
def convert_part(data: Path, out: Path, part: Part, workers: int) -> int:
    """Convert one part with `workers` processes, and return its number of images."""
    return convert_folder(data, out, WriteOptions(part=part, workers=workers)).num_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="images, as fastft convert folder takes them")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.beton", help="name of the files, without the part"
    )
    parser.add_argument("--parts", type=int, default=16, help="number of files (default 16)")
    cpus = f"CPUs for each part (default {CPUS}, or all of the largest machine if it has fewer)"
    parser.add_argument("--cpus-per-part", type=int, metavar="N", help=cpus)
    args = parser.parse_args()
    parts = [Part(number, args.parts) for number in range(1, args.parts + 1)]
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # only the first is printed
    ray.init()
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    cpus_per_part = args.cpus_per_part or min(CPUS, largest)
    if not 1 <= cpus_per_part <= largest:  # Ray would wait for such a machine for ever
        raise UserError(
            f"--cpus-per-part is {cpus_per_part}, but the largest machine has {largest} CPUs. Give at most {largest}"
        )
    task = convert_part.options(num_cpus=cpus_per_part)
    images = ray.get([task.remote(args.data, args.out, part, cpus_per_part) for part in parts])
    print(f"{sum(images):,} images in {args.parts} files: {args.out.stem}-*-of-{args.parts}{args.out.suffix}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        cause = getattr(error, "cause", error)  # Ray's error has the traceback of the task in its text
        sys.exit(f"convert_ray.py: {cause}")
