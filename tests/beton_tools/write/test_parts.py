"""`convert --part K/N`: the parts one after another are the single conversion, whatever is interrupted or repeated."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions

SLURM = Path(__file__).parents[3] / "rcp" / "slurm"


def options(**changes: object) -> WriteOptions:
    return WriteOptions(**({"workers": 0, "max_resolution": 120} | changes))


@pytest.mark.parametrize("choice", [{}, {"shuffle_seed": 3}, {"subset_per_class": 2}])
def test_parts_one_after_another_have_the_samples_of_the_single_conversion(photo_folder, tmp_path, choice):
    convert_folder(photo_folder, tmp_path / "whole.beton", options(**choice))
    for number in range(1, 4):
        manifest = convert_folder(
            photo_folder, tmp_path / "parts/photos.beton", options(part=Part(number, 3), **choice)
        )
        assert manifest.part == Part(number, 3)
    whole, parts = Beton.open(tmp_path / "whole.beton"), BetonSet.open(str(tmp_path / "parts/*.beton"))
    assert [beton.path.name for beton in parts.files] == [f"photos-{k}-of-3.beton" for k in (1, 2, 3)]
    assert np.array_equal(parts.labels, whole.labels)
    for sample in range(len(whole)):
        assert parts.read_bytes(sample) == whole.read_bytes(sample)
    manifests = [Manifest.of_beton(beton.path) for beton in (whole, *parts.files)]
    assert len({tuple(m.classes) for m in manifests if m}) == 1
    names = [[m.names[k] for k in range(m.num_samples)] for m in manifests if m]
    assert [name for part in names[1:] for name in part] == names[0]
    assert parts.missing_parts == ""


def test_a_finished_part_is_not_written_again_and_another_division_is_another_file(photo_folder, tmp_path):
    for _ in range(2):
        convert_folder(photo_folder, tmp_path / "photos.beton", options(part=Part(1, 2)))
        before = (tmp_path / "photos-1-of-2.beton").stat().st_mtime_ns
    assert (tmp_path / "photos-1-of-2.beton").stat().st_mtime_ns == before
    convert_folder(photo_folder, tmp_path / "photos.beton", options(part=Part(1, 3)))
    assert len(list(tmp_path.glob("*.beton"))) == 2


def test_names_sort_in_the_order_of_the_parts():
    names = [Part(k, 16).path(Path("in21k/train.beton")).name for k in range(1, 17)]
    assert names[2] == "train-03-of-16.beton" and names == sorted(names)


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "1/0", "3", "1/2/3", "a/b", "-1/4", "1/", "²/3", "1/1000000", "1/" + "9" * 5000]
)
def test_a_part_that_does_not_exist_is_one_line(text, refused):
    assert "Give NUMBER/COUNT" in refused(["convert", "folder", "--data", ".", "--out", "x.beton", f"--part={text}"])


@pytest.mark.parametrize(
    ("part", "missing"),
    [
        ("2/3", "1/3, 3/3"),
        ("1/12", ", ".join(f"{k}/12" for k in range(2, 12)) + " and 1 more"),
        ("1/999999", ", ".join(f"{k}/999999" for k in range(2, 12)) + " and 999,988 more"),
        ("1/99999999999", ""),  # not a part that convert writes
        ("1/" + "9" * 5000, ""),
    ],
    ids=lambda text: text[:14],
)
def test_missing_parts_are_listed_up_to_a_limit(photo_folder, tmp_path, part, missing):
    path = tmp_path / "photos.beton"
    manifest = convert_folder(photo_folder, path, options())
    replace(manifest, options={"part": part}).save(manifest_path(path))
    assert BetonSet.open(path).missing_parts == missing


def test_more_parts_than_images_are_refused(photo_folder, tmp_path):
    with pytest.raises(UserError, match="Use no more parts than images"):
        convert_folder(photo_folder, tmp_path / "x.beton", options(part=Part(1, 10_000)))
    assert not list(tmp_path.glob("x*"))


def test_the_array_script_converts_every_part_with_the_environment_beside_it(photo_folder, tmp_path):
    """Run by bash with Slurm's variables; the environment puts a `fastft` into PATH that notes its arguments."""
    bin_folder = tmp_path / ".venv/bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
    (bin_folder / "fastft").write_text('#!/bin/bash\necho "$@"\n')
    (bin_folder / "fastft").chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_TASK_ID": "3"}
    for more in ({"SLURM_ARRAY_TASK_COUNT": "16"}, {"SLURM_ARRAY_TASK_COUNT": "1", "PARTS": "16"}):
        done = subprocess.run(
            ["bash", str(SLURM / "convert.sbatch"), "folder", "--data", "a b", "--out", "x.beton"],
            env=os.environ | slurm | more,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "convert folder --data a b --out x.beton --part 3/16\n", done.stderr
