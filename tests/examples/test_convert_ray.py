"""`examples/convert_ray.py` on a real local Ray cluster: a killed worker leaves no trace in the files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beton_tools.read.beton_set import BetonSet
from beton_tools.read.format import Beton
from beton_tools.read.parts import Part
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "convert_ray.py"
PARTS = 3

pytest.importorskip("ray")


def writers(path: Path) -> list[int]:
    """Processes that have the file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                found.append(int(link.parts[2]))
        except OSError:  # the process or the descriptor is gone, or is not ours
            continue
    return found


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_no_byte(imagenet_sample, tmp_path):
    out, journal = tmp_path / "ray/photos.beton", tmp_path / "ray/photos-2-of-3.beton.part.journal"
    data = imagenet_sample.resolve()
    command = [
        sys.executable, str(EXAMPLE), "--data", str(data), "--out", str(out), "--parts", str(PARTS),
        "--cpus-per-part", "1",
    ]  # fmt: skip
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 200
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):  # its first page is written
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    (killed,) = writers(journal.with_suffix(""))
    os.kill(killed, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert f"images in {PARTS} files" in output

    whole = tmp_path / "whole.beton"
    convert_folder(data, whole, WriteOptions(workers=2))
    for number in range(1, PARTS + 1):
        part = Part(number, PARTS)
        undisturbed = tmp_path / "undisturbed/photos.beton"
        convert_folder(data, undisturbed, WriteOptions(workers=2, part=part))
        for suffix in ("", ".manifest.json"):
            made, expected = (Path(f"{part.path(path)}{suffix}") for path in (out, undisturbed))
            assert made.read_bytes() == expected.read_bytes(), made.name
    one, parts = Beton.open(whole), BetonSet.open(str(out.parent / "*.beton"))
    assert parts.labels.tolist() == one.labels.tolist()
    assert parts.class_names == BetonSet.open(whole).class_names
    for sample in range(len(one)):
        assert parts.image_bytes(sample).tobytes() == one.image_bytes(sample).tobytes()
    assert not list(out.parent.glob("*.part*"))
