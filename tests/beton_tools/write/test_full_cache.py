"""A full disk under the cache of compiled code costs time, never an image."""

import os
import subprocess
import sys

import pytest

from beton_tools.read.manifest import Manifest, manifest_path

CONVERT = (
    "import sys; from pathlib import Path; from beton_tools.write.convert import convert_folder; "
    "from beton_tools.write.writer import WriteOptions; "
    "convert_folder(Path(sys.argv[1]), Path(sys.argv[2]), WriteOptions(workers=1, on_error='skip'))"
)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small file system")
def test_a_full_cache_loses_no_image(tmp_path, photo_folder):
    (tmp_path / "cache").mkdir()
    script = f'mount -t tmpfs -o size=64k tmpfs "{tmp_path}/cache" && exec "$@"'
    command = [sys.executable, "-c", CONVERT, str(photo_folder), str(tmp_path / "a.beton")]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled code cannot be kept in") == 1
    manifest = Manifest.load(manifest_path(tmp_path / "a.beton"))
    assert (manifest.num_samples, manifest.skipped) == (24, [])
