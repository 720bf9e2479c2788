"""The `beton` command on a real file: what it prints and writes, and its exit codes."""

import contextlib
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beton_tools.base.names import Names
from beton_tools.cli import main
from beton_tools.read.format import Beton
from beton_tools.read.manifest import Manifest, manifest_path
from beton_tools.sources import open_source
from beton_tools.write.images import decode_sample
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.conftest import write_folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, photo_jpegs: dict[str, list[bytes]]) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_folder(folder / "photos", photo_jpegs)
    write_beton(folder / "photos.beton", open_source(folder / "photos"), WriteOptions(workers=0))
    return folder / "photos.beton"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_info_shows_what_was_converted(written, capsys):
    text = run(capsys, "info", written)
    assert "24 images" in text
    assert "24 x kept" in text
    values = json.loads(run(capsys, "info", written, "--json"))
    assert values["num_samples"] == values["manifest"]["num_samples"] == 24
    assert values["fields"] == ["image", "label"] and len(values["classes"]) == 3


def test_verify_prints_ok_or_exits_with_1(written, tmp_path, capsys):
    assert ": ok, 24 of 24 images decoded" in run(capsys, "verify", written)
    damaged = tmp_path / "damaged.beton"
    data = bytearray(written.read_bytes())
    data[int(Beton.open(written).pointers[3])] = 0
    damaged.write_bytes(data)
    assert main(["verify", str(damaged), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["problems"][0][0] == "sample 3"


def test_sheet_shows_the_images(written, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    run(capsys, "sheet", written, "--out", out, "--ids", 0, 9, 17, "--columns", 2, "--cell", 64)
    sheet = np.asarray(Image.open(out))
    photo = Image.fromarray(decode_sample(Beton.open(written), 0))
    photo = photo.resize([max(1, round(side * 64 / max(photo.size))) for side in photo.size], Image.Resampling.LANCZOS)
    x, y = 12 + (64 - photo.width) // 2, 12 + 64 - photo.height
    np.testing.assert_array_equal(sheet[y : y + photo.height, x : x + photo.width], np.asarray(photo))
    assert sheet.shape[1] == 12 + 2 * (64 + 12)
    assert main(["sheet", str(written), "--out", str(out)]) == 2
    assert "exists. Give another path, or replace it with --overwrite" in capsys.readouterr().err
    run(capsys, "sheet", written, "--out", out, "--overwrite", "--ids", 0)
    one = Image.open(out).size
    run(capsys, "sheet", written, "--out", out, "--overwrite", "--limit", 1)
    assert Image.open(out).size == one


def test_extract_follows_no_link(written, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    manifest = Manifest.of_beton(written)
    (tmp_path / "out" / manifest.classes[0]).symlink_to(tmp_path / "elsewhere")
    assert main(["extract", str(written), "--out", str(tmp_path / "out")]) == 2
    assert "a link, not a folder. Remove it, or give another --out" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_extract_writes_the_stored_bytes(written, tmp_path, capsys):
    out = tmp_path / "x"
    choice = ("--label", 1, "--limit", 3)
    paths = json.loads(run(capsys, "extract", written, "--out", out, *choice, "--json"))
    again = ["extract", str(written), "--out", str(out), *map(str, choice), "--json"]
    Path(paths[-1]).write_text("mine")
    assert main(again) == 2
    assert "exists. Give another path, or replace it with --overwrite" in capsys.readouterr().err
    assert Path(paths[-1]).read_text() == "mine"
    assert main([*again, "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out) == paths and Path(paths[-1]).read_bytes()[:2] == b"\xff\xd8"
    beton = Beton.open(written)
    assert len(paths) == 3
    for path in map(Path, paths):
        assert path.parent == out / "n02123045"
        assert path.read_bytes() == beton.read_bytes(int(path.name[:7]))
        assert path.stem[8:].startswith("n02123045_")


def test_a_hostile_manifest_cannot_write_outside_the_folder(written, tmp_path, capsys):
    evil = tmp_path / "evil.beton"
    evil.write_bytes(written.read_bytes())
    manifest = Manifest.of_beton(written)
    object.__setattr__(manifest, "classes", ["../../up", "/root", ".."])
    object.__setattr__(manifest, "names", Names.of(["../../../etc/passwd.jpg", "/abs/\x1b[2Jx.jpg"] * 12))
    manifest.save(manifest_path(evil))
    out = tmp_path / "deep" / "out"
    for path in json.loads(run(capsys, "extract", evil, "--out", out, "--json")):
        assert Path(path).resolve().is_relative_to(out)
        assert path.isprintable()


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["кошка 猫", "c++ (2)", ".hidden"], {"кошка 猫", "c++ (2)", "_hidden"}),
        (["a/b", "a_b", "c"], {"a_b_0", "a_b_1", "c"}),
        (["a/b", "a_b", "a_b_0"], {"a_b_0_0", "a_b_1", "a_b_0_2"}),
        (["猫" * 100, "猫" * 101, "c"], {"猫" * 66 + "_0", "猫" * 66 + "_1", "c"}),
    ],
)
def test_extract_gives_every_class_its_own_folder(written, tmp_path, capsys, classes, folders):
    named, out = tmp_path / "named.beton", tmp_path / "out"
    named.write_bytes(written.read_bytes())
    manifest = Manifest.of_beton(written)
    replace(manifest, classes=classes, class_names=None).save(manifest_path(named))
    run(capsys, "extract", named, "--out", out)
    assert {path.name for path in out.iterdir()} == folders
    assert [len(list(path.iterdir())) for path in out.iterdir()] == [8, 8, 8]


def test_undecodable_names_and_control_characters_harm_no_command(tmp_path, photo_jpegs):
    """Class folders and images with names that are not UTF-8 or contain escape sequences, on two kinds of terminal."""
    from fastft.cli import main as fastft

    names = [b"caf\xe9", b"red\x1b[31m", b"new\nline", "日本".encode()]
    for name, jpegs in zip(names, [*photo_jpegs.values(), photo_jpegs["n01440764"][:2]], strict=True):
        folder = os.fsencode(tmp_path / "photos") + b"/" + name
        os.makedirs(folder)  # noqa: PTH103 - a path of bytes
        for i, data in enumerate(jpegs):
            with open(folder + b"/im\xffage_%d.jpg" % i, "wb") as file:  # noqa: PTH123
                file.write(data)
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.beton")
    out = str(tmp_path / "files")
    commands = [
        ["fastft", "convert", "folder", "--data", str(tmp_path / "photos"), "--out", path, "--workers", "0"],
        *(["beton", command, path] for command in ("info", "verify")),
        ["beton", "info", path, "--json"],
        ["beton", "sheet", path, "--out", str(tmp_path / "sheet.png"), "--overwrite"],
        ["beton", "extract", path, "--out", out, "--overwrite"],
    ]
    for encoding in ("utf-8", "ascii"):
        out_and_err = [io.TextIOWrapper(io.BytesIO(), encoding, errors) for errors in ("strict", "backslashreplace")]
        with redirect_stdout(out_and_err[0]), redirect_stderr(out_and_err[1]):
            for program, *words in commands:
                assert {"beton": main, "fastft": fastft}[program](words) == 0
        for stream in out_and_err:
            stream.seek(0)
            assert all(line.isprintable() for line in stream.read().split("\n"))
    assert {f.name for f in Path(out).iterdir()} == {"caf_", "red_[31m", "new_line", "日本"}


def test_a_sheet_replaces_a_file_only_with_overwrite(written, tmp_path, capsys):
    mine = tmp_path / "mine.png"
    mine.write_text("mine")
    command = ["sheet", str(written), "--out", str(mine), "--ids", "0"]
    assert main(command) == 2
    assert "mine.png exists. Give another path, or replace it with --overwrite" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0 and Image.open(mine).size[0] > 100


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "/dev/zero"],
        ["info", "missing.beton"],
        ["extract", "FILE", "--out", "x", "--ids", "24"],
        ["extract", "FILE", "--out", "x", "--label", "9"],
        ["sheet", "FILE", "--out", "/nowhere/sheet.png"],
        ["sheet", "FILE", "--out", "/"],
        ["sheet", "FILE", "--out", "sheet.xyz"],
        ["info", "x" * 246 + ".beton"],
        ["extract", "FILE", "--out", "x", "--ids", "9" * 30],
        ["sheet", "FILE", "--out", "sheet.png", "--cell", "1000000"],
        ["sheet", "FILE", "--out", "sheet.png", "--columns", "9" * 30, "--cell", "8192"],
        ["sheet", "FILE", "--out", "sheet.png", "--label", "9" * 30],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(written, capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(written) if a == "FILE" else a for a in arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"beton {arguments[0]}: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "FILE", "--jsn"], "beton info: unrecognized argument --jsn. Did you mean --json?"),
        (["verify", "FILE", "--num-workers", "4"], "argument --num-workers. Did you mean --workers?"),
        (["sheet", "FILE", "--output", "a.png"], "argument --output. Did you mean --out?"),
        (["info", "FILE", "more"], "beton info: unrecognized argument more. See beton info --help"),
        (["info", "FILE", "--workrs=1", "--jsn"], "unrecognized arguments --workrs, --jsn (Did you mean --json?). See"),
    ],
)
def test_a_mistyped_argument_is_refused_with_the_nearest(written, capsys, arguments, message):
    with contextlib.suppress(SystemExit):  # where an argument that must be given is lacking
        assert main([str(written) if a == "FILE" else a for a in arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["verfy", "FILE"],
        ["verify"],
        ["verify", "FILE", "--workers", "0"],
        ["sheet", "FILE", "--out", "sheet.png", "--limit", "0"],
        ["sheet", "FILE", "--out", "sheet.png", "--seed", "x"],
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(written, capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([str(written) if a == "FILE" else a for a in arguments])
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert errors.startswith("beton") and errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["extract", "FILE", "--out", "OUT"], ["sheet", "FILE", "--out", "OUT/sheet.png"]]
)
def test_a_full_disk_is_one_line_and_leaves_no_partial_file(written, tmp_path, arguments, full_disk, capsys):
    (tmp_path / "out").mkdir()
    with full_disk(300):
        assert main([a.replace("FILE", str(written)).replace("OUT", str(tmp_path / "out")) for a in arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be written" in last and "File too large" in last and ".png;" not in last
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_output_that_cannot_be_written_is_one_line(written):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "beton_tools.cli", "info", str(written)]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    advice = "Correct this, then run the same command again"
    assert (done.returncode, done.stderr) == (2, f"beton info: No space left on device. {advice}\n")


def test_a_removed_working_directory_is_one_line(tmp_path, monkeypatch, capsys):
    from fastft.cli import main as fastft

    monkeypatch.chdir(tmp_path)  # and back at the end
    (tmp_path / "gone").mkdir()
    os.chdir("gone")
    (tmp_path / "gone").rmdir()
    for command in (main, fastft):
        assert command(["info", "a.beton"]) == 2
        assert "the working directory was removed. Change to another one" in capsys.readouterr().err


def test_a_locale_that_cannot_name_a_file_is_the_reason_given():
    code = "from beton_tools.base.user_files import open_regular; open_regular('\\xe9.beton')"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | ascii_only, capture_output=True, text=True)
    assert "the locale's encoding, ascii, has no such name. Set LC_ALL=C.UTF-8" in done.stderr


@pytest.mark.parametrize("command", ["info", "verify", "sheet", "extract"])
def test_help_shows_an_example_that_parses(command, capsys):
    from beton_tools.cli import build_parser

    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    example = text[text.index("example:\n") + 9 :].strip()
    assert build_parser().parse_args(example.split()[1:]).command == command


def test_beton_tools_needs_neither_torch_nor_ffcv():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ffcv'] = None\n"
        "import beton_tools.cli, beton_tools.write.convert, beton_tools.inspect.verify\n"
        "import beton_tools.inspect.extract, beton_tools.jpeg"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
