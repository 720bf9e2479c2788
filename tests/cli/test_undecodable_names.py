"""Class folders and files whose names are not UTF-8 can be converted, trained on, reported, predicted and exported."""

import os
import shutil
from pathlib import Path

import pytest

from fastft.cli import main
from tests.train.runs import flags

CLASSES = (b"caf\xe9", b"na\xffme\x1b[31m")  # Latin-1; a byte that no encoding uses, and an escape sequence
ESCAPED = [r"caf\udce9", "na\\udcffme\x1b[31m"]


@pytest.fixture(scope="module")
def folder(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `tiny` in folders of other names, and their `.beton` files."""
    folder = tmp_path_factory.mktemp("names")
    for split in ("train", "val"):
        images = Path(tiny[f"data.{split}"]).with_suffix("")
        for name, new in zip(sorted(p.name for p in images.iterdir()), CLASSES, strict=True):
            target = os.fsencode(folder / split) + b"/" + new
            shutil.copytree(images / name, os.fsdecode(target))
            os.rename(target + b"/00.jpg", target + b"/\xff.jpg")  # noqa: PTH104 - paths of bytes
    for split in ("train", "val"):
        arguments = ["--data", folder / split, "--out", folder / f"{split}.beton", "--workers", 0]
        arguments += ["--classes-of", folder / "train.beton"] if split == "val" else []
        assert main(["convert", "folder", *map(str, arguments)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tiny: dict[str, str]) -> Path:
    data = {f"data.{split}": str(folder / f"{split}.beton") for split in ("train", "val")}
    changes = {"schedule__epochs": "1", "schedule__warmup_epochs": "0"}
    assert main(["train", "rcp/final_b16.yaml", *flags(tiny | data, folder / "run", **changes)]) == 0
    return folder / "run"


def test_report(run, tmp_path):
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert ESCAPED[0] in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_predict(run, folder, tmp_path, capsysbinary):
    assert main(["predict", str(run), str(folder / "val"), "--csv", str(tmp_path / "p.csv")]) == 0
    assert os.fsencode(folder / "val") + b"/" + CLASSES[0] + b"/\xff.jpg" in (tmp_path / "p.csv").read_bytes()
    assert main(["predict", str(run), str(folder / "val")]) == 0
    printed = capsysbinary.readouterr().out
    assert rb"caf\udce9 " in printed
    assert b"\x1b" not in printed
