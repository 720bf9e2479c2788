"""ILSVRC's tars give the same images as their unpacked folders."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from beton_tools import UserError
from beton_tools.sources import Source, open_source
from tests.beton_tools.conftest import tar_of, train_tar


def contents(source: Source) -> list[tuple[str, int, bytes]]:
    return [(Path(name).name, int(source.labels[i]), source.locate(i).read()) for i, name in enumerate(source.names)]


def test_the_train_tar_reads_like_its_folder(tmp_path, photo_folder, photo_jpegs):
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(train_tar(photo_jpegs))
    tar, folder = open_source(tmp_path, "train"), open_source(photo_folder)
    assert tar.classes == folder.classes
    assert list(tar.names) == list(folder.names)
    assert contents(tar) == contents(folder)


def test_a_folder_of_class_tars_reads_like_the_train_tar(tmp_path, photo_jpegs):
    (tmp_path / "train").mkdir()
    for wnid, images in photo_jpegs.items():
        files = {f"{wnid}_{i}.JPEG": data for i, data in enumerate(images)}
        (tmp_path / "train" / f"{wnid}.tar").write_bytes(tar_of(files))
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(train_tar(photo_jpegs))
    by_class = open_source(tmp_path, "train")
    assert contents(by_class) == contents(open_source(tmp_path / "ILSVRC2012_img_train.tar"))


def tar_with_links(images: list[bytes], links: dict[str, tuple[bytes, str]]) -> bytes:
    """A tar of the images 0.JPEG, 1.JPEG, ..., then members of the given types that refer to them."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for k, image in enumerate(images):
            info = tarfile.TarInfo(f"{k}.JPEG")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return data.getvalue()


def test_hard_links_are_images_and_other_members_without_data_are_counted(tmp_path, photo_jpegs):
    first, second = photo_jpegs["n01440764"][:2]
    links = {
        "a.JPEG": (tarfile.LNKTYPE, "1.JPEG"),
        "b.JPEG": (tarfile.LNKTYPE, "a.JPEG"),
        "c.JPEG": (tarfile.LNKTYPE, "missing.JPEG"),
        "d.JPEG": (tarfile.SYMTYPE, "0.JPEG"),
        "pipe": (tarfile.FIFOTYPE, ""),
        "folder": (tarfile.DIRTYPE, ""),
    }
    (tmp_path / "n01440764.tar").write_bytes(tar_with_links([first, second], links))
    source = open_source(tmp_path)
    expected = [("0.JPEG", first), ("1.JPEG", second), ("a.JPEG", second), ("b.JPEG", second)]
    assert [(name, data) for name, _, data in contents(source)] == expected
    assert source.left_out == {".jpeg link": 2, "special file": 1}


@pytest.mark.parametrize("damage", ["cut in data", "broken header", "compressed", "empty file"])
def test_a_damaged_tar_is_an_error_not_fewer_images(tmp_path, photo_jpegs, damage):
    data = bytearray(tar_of({f"{i}.JPEG": image for i, image in enumerate(photo_jpegs["n01440764"])}))
    second_header = 512 + -(-len(photo_jpegs["n01440764"][0]) // 512) * 512
    if damage == "cut in data":
        del data[second_header + 700 :]
    if damage == "broken header":
        data[second_header : second_header + 200] = np.random.default_rng(0).bytes(200)
    if damage == "compressed":
        data[:4] = b"\x1f\x8b\x08\x00"
    if damage == "empty file":
        data.clear()
    (tmp_path / "n01440764.tar").write_bytes(data)
    with pytest.raises(UserError, match="archive") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tar_that_shrinks_after_indexing_is_a_read_error(tmp_path, photo_jpegs):
    path = tmp_path / "n01440764.tar"
    path.write_bytes(tar_of({"a.JPEG": photo_jpegs["n01440764"][0]}))
    source = open_source(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"n01440764\.tar changed after it was indexed"):
        source.locate(0).read()
