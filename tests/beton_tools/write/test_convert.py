"""`convert imagenet` on every layout, `convert folder` on one, and what they print."""

import argparse
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools import UserError
from beton_tools.base.console import by_suffix, format_bytes, format_duration, printable
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.write.images import decode_sample
from fastft.cli.cmd_convert import Folder, Imagenet
from tests.beton_tools.conftest import damaged, devkit_files, tar_of, train_tar, write_folder

Jpegs = dict[str, list[bytes]]
ValImages = dict[str, tuple[str, bytes]]


def imagenet(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    Imagenet.add_arguments(parser)
    return Imagenet.run(parser.parse_args([str(a) for a in arguments]))


def folder(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    Folder.add_arguments(parser)
    return Folder.run(parser.parse_args([str(a) for a in arguments]))


def write_folders(root: Path, jpegs: Jpegs, val: ValImages) -> None:
    write_folder(root / "train", jpegs)
    write_folder(root / "val", {w: [data for wnid, data in val.values() if wnid == w] for w in jpegs})


def write_flat(root: Path, jpegs: Jpegs, val: ValImages) -> None:
    write_folder(root / "ILSVRC" / "Data" / "CLS-LOC" / "train", jpegs)
    (root / "ILSVRC" / "Data" / "CLS-LOC" / "val").mkdir()
    for name, (_, data) in val.items():
        (root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / name).write_bytes(data)
    for name, content in devkit_files([wnid for wnid, _ in val.values()]).items():
        (root / name).write_bytes(content)


def write_tars(root: Path, jpegs: Jpegs, val: ValImages) -> None:
    root.mkdir()
    (root / "ILSVRC2012_img_train.tar").write_bytes(train_tar(jpegs))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of({name: data for name, (_, data) in val.items()}))
    devkit = devkit_files([wnid for wnid, _ in val.values()])
    packed = gzip.compress(tar_of({f"ILSVRC2012_devkit_t12/data/{n}": data for n, data in devkit.items()}))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(packed)


@pytest.mark.parametrize("layout", [write_flat, write_tars])
def test_every_layout_gives_the_same_training_file(tmp_path, photo_jpegs, val_images, layout):
    layout(tmp_path / "in", photo_jpegs, val_images)
    write_folders(tmp_path / "plain", photo_jpegs, val_images)
    for data in ("in", "plain"):
        assert imagenet("--data", tmp_path / data, "--out", tmp_path / f"{data}-out", "--workers", 0) == 0
    ours, plain = tmp_path / "in-out", tmp_path / "plain-out"
    assert (ours / "train.beton").read_bytes() == (plain / "train.beton").read_bytes()
    manifest, val = Manifest.of_beton(ours / "val.beton"), Beton.open(ours / "val.beton")
    assert manifest.classes == sorted(photo_jpegs)
    stored = [
        (manifest.classes[label], Path(name).name) for name, label in zip(manifest.names, val.labels, strict=True)
    ]
    assert {name: wnid for wnid, name in stored} == {name: wnid for name, (wnid, _) in val_images.items()}


def test_labels_of_val_are_those_of_train_even_when_val_lacks_a_class(tmp_path, photo_jpegs, val_images):
    write_folder(tmp_path / "in" / "train", photo_jpegs)
    write_folder(tmp_path / "in" / "val", {"n04008634": photo_jpegs["n04008634"]})
    imagenet("--data", tmp_path / "in", "--out", tmp_path / "out", "--workers", 0)
    assert set(Beton.open(tmp_path / "out" / "val.beton").labels.tolist()) == {2}


def test_a_missing_devkit_is_reported_before_anything_is_converted(tmp_path, photo_jpegs, val_images):
    write_tars(tmp_path / "in", photo_jpegs, val_images)
    (tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match="devkit"):
        imagenet("--data", tmp_path / "in", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_convert_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no train or val images. .* --help"):
        imagenet("--data", tmp_path, "--out", tmp_path / "out")
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.jpg")
    with pytest.raises(UserError, match=r"`fastft convert folder --data .* --out .*/out/train.beton`"):
        imagenet("--data", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        imagenet("--data", tmp_path / "nowhere", "--out", tmp_path / "out")


def test_the_summary_counts_what_was_kept_encoded_and_skipped(tmp_path, photo_folder, capsys):
    (photo_folder / "n01440764" / "bad\n.JPEG").write_bytes(b"no image")
    broken = photo_folder / "n02123045" / "n02123045_1.JPEG"
    broken.write_bytes(damaged(broken.read_bytes()))
    out = tmp_path / "out" / "a.beton"
    folder("--data", photo_folder, "--out", out, "--max-resolution", 120, "--on-error", "skip", "--workers", 2)
    text = capsys.readouterr().out
    manifest = Manifest.load(manifest_path(out))
    assert "24 images in 3 classes" in text
    assert f"  {manifest.encodings['kept']} kept bit for bit. Re-encoded: " in text
    assert f"{manifest.encodings['resized']} resized" in text
    assert "1 with damage, stored as Pillow reads them (all in a.beton.manifest.json)" in text
    assert "    n02123045/n02123045_1.JPEG" in text
    assert r"bad\n.JPEG: cannot be decoded" in text
    assert max(Beton.open(out).heights.max(), Beton.open(out).widths.max()) == 120


def test_every_format_that_pillow_decodes_is_converted_and_other_files_are_counted(tmp_path, photo_folder, capsys):
    jpegs = sorted((photo_folder / "n01440764").iterdir())
    jpegs[0].rename(jpegs[0].with_suffix(".jfif"))
    frames = [Image.open(path).resize((60, 40)) for path in jpegs[1:3]]
    gif = photo_folder / "n01440764" / "n01440764_1.GIF"
    frames[0].save(gif, save_all=True, append_images=frames[1:])
    shown = np.asarray(Image.open(gif).convert("RGB"), np.int16)
    for name in ("a.txt", "b.txt", "a.xml", "c\x1b.\x1b[2J"):
        (photo_folder / "n02123045" / name).write_text("no image")
    folder("--data", photo_folder, "--out", tmp_path / "a.beton", "--workers", 0)
    text = capsys.readouterr().out
    assert "25 images in 3 classes" in text
    assert "24 kept bit for bit, 1 stored as raw pixels" in text
    assert r"  left out: 2 .txt, 1 .\x1b[2j, 1 .xml" in text
    manifest, beton = Manifest.load(manifest_path(tmp_path / "a.beton")), Beton.open(tmp_path / "a.beton")
    stored = decode_sample(beton, list(manifest.names).index("n01440764/n01440764_1.GIF"))
    assert np.abs(stored - shown).mean() < 10  # the first frame


def test_classes_of_another_file_determine_the_labels(tmp_path, photo_jpegs, photo_folder):
    train, val = tmp_path / "train.beton", tmp_path / "val.beton"
    folder("--data", photo_folder, "--out", train, "--workers", 0)
    write_folder(tmp_path / "val", {"n04008634": photo_jpegs["n04008634"]})
    folder("--data", tmp_path / "val", "--out", val, "--workers", 0, "--classes-of", train)
    assert set(Beton.open(val).labels.tolist()) == {2}
    with pytest.raises(UserError, match="exists already"):  # the labels would be others
        folder("--data", tmp_path / "val", "--out", val, "--workers", 0)
    manifest_path(train).unlink()
    with pytest.raises(UserError, match="has no manifest that lists its classes"):
        folder("--data", tmp_path / "val", "--out", val, "--classes-of", train)


def test_only_imagenet_is_stored_as_timm_reads_it(tmp_path, photo_jpegs, val_images):
    """Not turned by Exif: accuracies on ImageNet are reported that way."""
    exif = Image.Exif()
    exif[0x0112] = 6
    write_folders(tmp_path / "in", photo_jpegs, val_images)
    turned = sorted((tmp_path / "in" / "train" / "n01440764").iterdir())[0]
    image = Image.open(turned).crop((0, 0, 96, 64))
    image.save(turned, exif=exif)
    imagenet("--data", tmp_path / "in", "--out", tmp_path, "--workers", 0)
    folder("--data", tmp_path / "in" / "train", "--out", tmp_path / "a.beton", "--workers", 0)
    sizes = [Beton.open(tmp_path / name) for name in ("train.beton", "a.beton")]
    assert [(beton.widths[0], beton.heights[0]) for beton in sizes] == [(96, 64), (64, 96)]


def test_reencode_encodes_every_image_as_ffcv_does(tmp_path, photo_folder):
    out = tmp_path / "a.beton"
    folder("--data", photo_folder, "--out", out, "--reencode", "--quality", 40, "--workers", 0)
    assert Manifest.load(manifest_path(out)).encodings == {"RGB JPEG": 24}


def test_readable_numbers():
    shown = [format_duration(s) for s in (45, 725, 12_000, math.inf)]
    assert shown == ["45 s", "12 min 05 s", "3 h 20 min", "no limit"]
    assert [format_bytes(n) for n in (999, 138_200_000_000)] == ["999 B", "138.2 GB"]
    assert printable("a\x1b[2J\nb é") == r"a\x1b[2J\nb é"
    counts = {".a": 1, ".b": 2, "": 3000, ".d": 4, ".e": 5, ".f": 6, ".g": 7}
    assert by_suffix(counts) == "3,000 without suffix, 7 .g, 6 .f, 5 .e, 4 .d, 3 others"
