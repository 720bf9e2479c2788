"""Convert a dataset in parts on a Ray cluster: one task per part, on whichever machines have free CPUs.

    pip install ray
    python examples/convert_ray.py --data /shared/photos --out /shared/photos.beton --parts 16

This writes photos-01-of-16.beton to photos-16-of-16.beton. Train with --data.train='photos-*.beton'. `--data` and
`--out` must be on a file system that all machines share. If the process or machine of a task dies, the task is started
again and continues its part.
"""

import argparse
from pathlib import Path

import ray

from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions


@ray.remote(max_retries=3)
def convert_part(data: Path, out: Path, part: Part, workers: int) -> int:
    """Convert one part with `workers` processes, and return its number of images."""
    return convert_folder(data, out, WriteOptions(part=part, workers=workers)).num_samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--cpus-per-part", type=int, default=8)
    args = parser.parse_args()
    ray.init()
    task = convert_part.options(num_cpus=args.cpus_per_part)
    parts = [Part(number, args.parts) for number in range(1, args.parts + 1)]
    images = ray.get([task.remote(args.data, args.out, part, args.cpus_per_part) for part in parts])
    print(f"{sum(images):,} images in {args.parts} files: {args.out.stem}-*-of-{args.parts}{args.out.suffix}")


if __name__ == "__main__":
    main()
