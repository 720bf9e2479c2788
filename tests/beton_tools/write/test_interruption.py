"""After a kill, an interruption or a full disk the final name holds no partial file, and the next run continues."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image
from PIL.ExifTags import Base

from beton_tools import UserError
from beton_tools.read.format import Beton
from beton_tools.read.manifest import manifest_path
from beton_tools.sources import open_source
from beton_tools.write.pagefile import PageFile
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.base.test_signals import start
from tests.refusals import refuses

PAGE = 1 << 16
OPTIONS = WriteOptions(workers=2, page_size=PAGE, max_resolution=120)
INLINE = replace(OPTIONS, workers=0)

# converts argv[1] to argv[2]; waits after 21 images
CHILD = f"""
import sys, time
from pathlib import Path
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton
def watch(done, total, skipped):
    if done == 21:
        print("ready", flush=True)
        time.sleep(600)
options = WriteOptions(workers=2, page_size={PAGE}, max_resolution=120)
write_beton(Path(sys.argv[2]), open_source(sys.argv[1]), options, watch)
"""


@pytest.fixture
def whole(photo_folder: Path, tmp_path: Path) -> tuple[bytes, bytes]:
    """The file and the manifest of an uninterrupted conversion."""
    out = tmp_path / "whole" / "photos.beton"
    write_beton(out, open_source(photo_folder), INLINE)
    return out.read_bytes(), manifest_path(out).read_bytes()


def both(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), manifest_path(out).read_bytes()


def test_after_kill_9_the_next_run_finishes_the_same_file_without_redoing_pages(photo_folder, tmp_path, whole):
    out = tmp_path / "photos.beton"
    child = start("-c", CHILD, photo_folder, out)
    child.kill()
    child.communicate(timeout=60)
    assert not out.exists()
    journal = out.with_name("photos.beton.part.journal").read_text().splitlines()[1:]
    finished = json.loads(journal[-1][9:])["next_position"]
    assert finished > 0
    source = open_source(photo_folder)
    for i in range(finished):  # must not be read again: their pages are written
        blank(Path(source.locate(i).path))
    write_beton(out, source, OPTIONS)
    assert both(out) == whole
    assert sorted(p.name for p in tmp_path.glob("*.beton*")) == ["photos.beton", "photos.beton.manifest.json"]


@pytest.mark.parametrize("damage", ["torn journal", "lost page", "foreign journal", "no journal"])
def test_damage_left_by_a_kill_is_written_again(photo_folder, tmp_path, whole, damage):
    out = tmp_path / "photos.beton"
    leave_unfinished(photo_folder, out)
    part, journal = out.with_name("photos.beton.part"), out.with_name("photos.beton.part.journal")
    if damage == "torn journal":
        journal.write_bytes(journal.read_bytes()[:-7])
    if damage == "lost page":
        part.write_bytes(part.read_bytes()[: PAGE + 1000])
    if damage == "foreign journal":
        journal.write_bytes(os.urandom(500))
    if damage == "no journal":
        journal.unlink()
    write_beton(out, open_source(photo_folder), INLINE)
    assert both(out) == whole


def test_a_kill_while_the_journal_is_replaced_loses_nothing(photo_folder, tmp_path, whole, monkeypatch):
    out = tmp_path / "photos.beton"
    leave_unfinished(photo_folder, out)
    journal = out.with_name("photos.beton.part.journal")
    before, truly_open = journal.read_bytes(), Path.open

    def die_when_open(path: Path, mode: str = "r", *rest: Any, **more: Any) -> IO[Any]:
        file = truly_open(path, mode, *rest, **more)
        if mode == "wb":
            file.close()
            raise KeyboardInterrupt
        return file

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "open", die_when_open)
        write_beton(out, open_source(photo_folder), OPTIONS)
    assert journal.read_bytes() == before
    write_beton(out, open_source(photo_folder), OPTIONS)
    assert both(out) == whole


def test_the_journal_reaches_the_disk_with_the_pages_that_it_lists(photo_folder, tmp_path, monkeypatch):
    synced: list[str] = []
    truly_sync = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        truly_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr("beton_tools.write.pagefile.SYNC_EVERY", 1)
    out = tmp_path / "photos.beton"
    manifest = write_beton(out, open_source(photo_folder), WriteOptions(workers=0, page_size=PAGE))
    pages = len(manifest.page_crc32)
    assert pages > 1
    part, journal = "photos.beton.part", "photos.beton.part.journal"
    assert [name for name in synced if name in (part, journal)] == [part, journal] * pages + [part]


def blank(path: Path) -> None:
    """Replace the content, but not the size and modification time, of a file."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_image_that_changed_since_the_kill_is_read_again(photo_folder, tmp_path):
    out, fresh = tmp_path / "photos.beton", tmp_path / "fresh.beton"
    leave_unfinished(photo_folder, out)
    first, *_, last = sorted(photo_folder.rglob("*.JPEG"))
    first.write_bytes(last.read_bytes())
    write_beton(out, open_source(photo_folder), INLINE)
    write_beton(fresh, open_source(photo_folder), INLINE)
    assert both(out) == both(fresh)


def test_an_image_that_an_earlier_run_skipped_is_an_error_with_on_error_fail(photo_folder, tmp_path):
    bad = photo_folder / "n01440764" / "n01440764_0.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    out = tmp_path / "photos.beton"
    skip = WriteOptions(workers=0, page_size=PAGE, on_error="skip")
    fail = WriteOptions(workers=0, page_size=PAGE)

    def stop(done: int, total: int, skipped: int) -> None:
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beton(out, open_source(photo_folder), skip, stop)
    with pytest.raises(UserError, match=r"n01440764_0\.JPEG: empty file. Pass --on-error skip to continue"):
        write_beton(out, open_source(photo_folder), fail)
    write_beton(out, open_source(photo_folder), skip)
    with pytest.raises(UserError, match=r"n01440764_0\.JPEG: empty file. .* finished without it"):
        write_beton(out, open_source(photo_folder), fail)
    bad.write_bytes(good)
    with pytest.raises(UserError, match="exists already, made from other images"):
        write_beton(out, open_source(photo_folder), fail)
    assert write_beton(out, open_source(photo_folder), fail, overwrite=True).skipped == []


def test_a_kill_between_manifest_and_file_leaves_no_file_with_another_files_manifest(
    photo_folder, tmp_path, monkeypatch
):
    out = tmp_path / "photos.beton"
    write_beton(out, open_source(photo_folder), WriteOptions(workers=0, subset_per_class=2))
    monkeypatch.setattr("beton_tools.write.pagefile.PageFile.publish", lambda self: os.kill(os.getpid(), 9))
    if (child := os.fork()) == 0:
        try:
            write_beton(out, open_source(photo_folder), WriteOptions(workers=0), overwrite=True)
        finally:
            os._exit(1)  # the child must not run the other tests
    assert os.waitpid(child, 0)[1] == 9
    monkeypatch.undo()
    assert not out.exists()
    assert write_beton(out, open_source(photo_folder), WriteOptions(workers=0)).num_samples == 24


def leave_unfinished(photos: Path, out: Path, options: WriteOptions = INLINE) -> None:
    """One page written, then the 22nd image could not be stored: what --on-error fail leaves."""
    bad = photos / "n04008634" / "n04008634_5.JPEG"
    good, before = bad.read_bytes(), bad.stat()
    bad.write_bytes(b"")
    with pytest.raises(UserError):
        write_beton(out, open_source(photos), options)
    bad.write_bytes(good)
    os.utime(bad, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("first", [True, False])
def test_turned_and_unturned_images_are_never_in_one_file(photo_folder, tmp_path, first):
    out, fresh = tmp_path / "photos.beton", tmp_path / "fresh.beton"
    for path in photo_folder.glob("*/*"):
        image, exif = Image.open(path), Image.Exif()
        exif[Base.Orientation] = 6
        image.save(path, format="JPEG", exif=exif, quality=95)  # more than a page of them before the interruption
    leave_unfinished(photo_folder, out, replace(INLINE, upright=first))
    other = replace(INLINE, upright=not first)
    write_beton(out, open_source(photo_folder), other)
    write_beton(fresh, open_source(photo_folder), other)
    assert both(out) == both(fresh)
    with refuses("exists already, made from other images or with other options"):
        write_beton(out, open_source(photo_folder), replace(INLINE, upright=first))


def test_the_default_quality_given_for_all_images_is_another_option():
    given = WriteOptions(quality=90, subsampling="4:2:0").recorded()
    assert WriteOptions().recorded() == WriteOptions(quality=None).recorded() != given
    assert given | WriteOptions().recorded() == given  # the same values, and that they are those of every image


def test_a_full_disk_is_one_line_and_the_next_run_completes_the_file(photo_folder, tmp_path, whole, full_disk):
    """The file may end anywhere: in a page, just before its end, or in a table."""
    out, end = tmp_path / "photos.beton", len(whole[0])
    for size in (2 * PAGE, 2 * PAGE - 100, PAGE + 1, *range(50, end, end // 17)):
        with full_disk(size), refuses("cannot be written .*free some space"):
            write_beton(out, open_source(photo_folder), INLINE)
        assert not out.exists()
    write_beton(out, open_source(photo_folder), OPTIONS)
    assert both(out) == whole


def test_a_journal_that_finds_no_space_is_one_line_too(photo_folder, tmp_path, whole, monkeypatch):
    """Closing a file on a full disk fails a second time, because the unwritten data are still in its buffer."""

    def full_device(*_: object) -> IO[bytes]:
        return Path("/dev/full").open("wb")

    out = tmp_path / "photos.beton"
    with (
        monkeypatch.context() as patched,
        refuses("page 0 cannot be written .No space left on device.*free some space"),
    ):
        patched.setattr(PageFile, "_replace_journal", full_device)
        write_beton(out, open_source(photo_folder), INLINE)
    write_beton(out, open_source(photo_folder), OPTIONS)
    assert both(out) == whole


def test_two_writers_of_one_file_do_not_mix(photo_folder, tmp_path):
    out = tmp_path / "photos.beton"
    refused = []

    def second_writer(done: int, total: int, skipped: int) -> None:
        if done == 3:
            with pytest.raises(UserError, match="another process is writing it"):
                write_beton(out, open_source(photo_folder), WriteOptions(workers=0))
            refused.append(done)

    write_beton(out, open_source(photo_folder), WriteOptions(workers=0), second_writer)
    assert refused == [3]
    assert Beton.open(out).num_samples == 24


def test_a_file_that_another_writer_completed_first_is_not_replaced(photo_folder, tmp_path, monkeypatch):
    out = tmp_path / "photos.beton"
    part = out.with_name("photos.beton.part")
    monkeypatch.setattr("fcntl.flock", lambda *_: part.rename(out))
    with pytest.raises(UserError, match="another process is writing it"):
        write_beton(out, open_source(photo_folder), WriteOptions(workers=0))


def test_a_file_is_written_to_a_file_system_without_locks(photo_folder, tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    out = tmp_path / "photos.beton"
    write_beton(out, open_source(photo_folder), WriteOptions(workers=0))
    assert Beton.open(out).num_samples == 24
