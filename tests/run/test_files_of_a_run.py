"""A run on several data files trains the same weights as on one, in either order of the samples, and refuses changed files."""

import json
import shutil
from pathlib import Path

import pytest
from msgspec import structs

from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet, Content
from beton_tools.read.format import Beton
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.recipe import load_recipe
from fastft.run.identity import Identity, refuse_other_run
from fastft.run.inputs import open_inputs
from tests.train.runs import differing, end, flags, run

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


@pytest.mark.parametrize("option", ["model.weights", "model.head"])
def test_a_replaced_file_of_weights_is_another_request_and_a_moved_one_is_not(tiny, tmp_path, option):
    def key(folder: str) -> str:
        file = str(tmp_path / folder / "clip.safetensors")
        return open_inputs(load_recipe("final_b16", flags(tiny | {option: file}, tmp_path)))[1].request

    (tmp_path / "a").mkdir()
    (tmp_path / "a/clip.safetensors").write_bytes(bytes(64))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = key("a")
    assert key("b") == first
    (tmp_path / "a/clip.safetensors").write_bytes(bytes(63) + b"1")
    assert key("a") != first


CONTENT = Content(num_samples=9, files=["a", "b"], identities=[4, 5], checksum="c")
IDENTITY = Identity(recipe={}, arch={}, classes=["x", "y"], data=CONTENT, val=CONTENT)


def with_val(content: Content | None) -> Identity:
    return structs.replace(IDENTITY, val=content)


@pytest.mark.parametrize("stored", [CONTENT, structs.replace(CONTENT, checksum=None)])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identities": [5, 4], "checksum": "d"}, "a, b changed"),
        ({"identities": [4, 6], "checksum": "d"}, "b changed"),
        ({"files": ["a", "b", "c"], "identities": [4, 5, 6]}, "2 files became 3"),
        ({"num_samples": 8}, "its images changed"),
    ],
)
def test_resuming_on_changed_files_is_one_line(stored, changes, words):
    with pytest.raises(UserError, match=f"run holds another run: data.val: {words}"):
        refuse_other_run(with_val(stored), with_val(structs.replace(CONTENT, **changes)), Path("run"))


def test_any_exchanged_image_of_a_file_without_manifest_is_noticed(tiny, tmp_path):
    """FFCV's writer writes none. Images of the same size leave the tables as they were."""
    path = tmp_path / "train.beton"
    shutil.copy(tiny["data.train"], path)
    assert BetonSet.open(path).content == BetonSet.open(tiny["data.train"]).content, "the manifest may be lost"
    before, beton = BetonSet.open(path).content, Beton.open(path)
    with path.open("r+b") as file:
        for sample in range(20, 30):
            file.seek(int(beton.pointers[sample]) + int(beton.sizes[sample]) // 2)
            file.write(b"other")
    with pytest.raises(UserError, match=r"data\.val: its images changed"):
        refuse_other_run(with_val(before), with_val(BetonSet.open(path).content), Path("run"))


def test_files_may_move_and_validation_images_may_be_added():
    moved = structs.replace(CONTENT, files=["c", "d"])
    for stored, current in ((CONTENT, moved), (None, CONTENT), (CONTENT, None)):
        refuse_other_run(with_val(stored), with_val(current), Path("run"))
    assert not with_val(CONTENT).differences(with_val(moved))
    # a result without validation images is not the result with them
    assert [d.field for d in with_val(None).differences(with_val(CONTENT))] == ["data.val"]
