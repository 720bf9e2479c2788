"""A run on several data files trains the same weights as on one, in either order of the samples, and refuses changed files."""

import json
from pathlib import Path

import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.run.continuation import refuse_changed_data
from tests.train.runs import differing, end, run

PARTS = 2


@pytest.fixture(scope="module")
def in_parts(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny run's training images in two files, its validation images in two others."""
    out = tmp_path_factory.mktemp("in-parts")
    for split in ("train", "val"):
        data = Path(tiny[f"data.{split}"]).parent / split
        for number in range(1, PARTS + 1):
            options = WriteOptions(workers=0, page_size=1 << 16, part=Part(number, PARTS))
            convert_folder(data, out / f"{split}.beton", options)
    return tiny | {f"data.{split}": str(out / f"{split}-*.beton") for split in ("train", "val")}


def test_weights_and_accuracies_are_those_of_a_run_on_one_file(whole, in_parts, tmp_path):
    run(in_parts, tmp_path / "run", model__drop_path="0.3")
    assert differing(end(tmp_path / "run"), end(whole)) == []
    state = json.loads(next(iter((tmp_path / "run/checkpoints").glob("step-*/state.json"))).read_text())
    assert state["data"]["files"] == ["train-1-of-2.beton", "train-2-of-2.beton"]


def test_a_run_by_blocks_resumes_bit_for_bit_and_only_by_blocks(in_parts, tmp_path):
    blocks = {"data__order": "blocks", "data__block_mib": "1"}
    run(in_parts, tmp_path / "undisturbed", **blocks)
    run(in_parts, tmp_path / "run", schedule__stop_epoch="1", **blocks)
    with pytest.raises(UserError, match=r"data\.order 'blocks' -> 'random'"):
        run(in_parts, tmp_path / "run")
    run(in_parts, tmp_path / "run", **blocks)
    assert differing(end(tmp_path / "run"), end(tmp_path / "undisturbed")) == []


CONTENT = {
    "num_samples": 9, "checksum": "c", "files": ["a", "b"], "file_samples": [4, 5], "file_checksums": ["x", "y"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file_samples": [5, 4], "file_checksums": ["y", "x"]}, "a differs"),
        ({"file_checksums": ["x", "z"], "checksum": "d"}, "b differs"),
        ({"file_samples": [4, 4, 1], "file_checksums": ["x", "y", "z"]}, "2 files, there are 3"),
        ({"file_samples": None, "file_checksums": None}, "2 files, there are 1"),
    ],
)
def test_resuming_on_changed_files_is_one_line(changes, words):
    found = {key: value for key, value in (CONTENT | changes).items() if value is not None}
    with pytest.raises(UserError, match=words):
        refuse_changed_data(CONTENT, found, Path("run"))


def test_files_may_move_and_have_other_names():
    refuse_changed_data(CONTENT, CONTENT | {"files": ["c", "d"]}, Path("run"))
    refuse_changed_data({}, CONTENT, Path("run"))
    one = {"num_samples": 9, "checksum": "c"}
    refuse_changed_data(one, one, Path("run"))
    with pytest.raises(UserError, match="1 files, there are 2"):
        refuse_changed_data(one, CONTENT, Path("run"))
