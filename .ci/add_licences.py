"""usage: add_licences.py WHEEL FOLDER: write the wheel to FOLDER with the licences of the libraries that auditwheel added.

Its metadata then ask for opencv-python-headless: opencv-python, the same module with a GUI, needs libGL and GLib of the system.

A licence is the file /usr/share/doc/PACKAGE/copyright of the Debian package of a library, or what rpm lists for it.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def packages_of(library: str) -> dict[str, list[Path]]:
    """Licence files by name of the package that installed the library of this file name."""
    places = [p for folder in ("/usr/lib", "/usr/lib64", "/lib") for p in Path(folder).glob(f"**/{library}*")]
    found: dict[str, list[Path]] = {}
    for place in {p.resolve() for p in places} | set(places):
        if shutil.which("dpkg-query"):
            shown = subprocess.run(["dpkg-query", "-S", str(place)], capture_output=True, text=True).stdout
            for package in {line.partition(":")[0] for line in shown.splitlines()}:
                found[package] = [Path("/usr/share/doc", package, "copyright")]
        else:
            command = ["rpm", "-q", "--licensefiles", "--file", str(place)]
            shown = subprocess.run(command, capture_output=True, text=True).stdout
            found[place.name] = [Path(line) for line in shown.splitlines() if line.startswith("/")]
    return found


def main(wheel: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(
            [sys.executable, "-m", "wheel", "unpack", "-d", name, wheel], check=True, stdout=subprocess.DEVNULL
        )
        content = next(Path(name).iterdir())
        information = next(content.glob("*.dist-info"))
        metadata = (information / "METADATA").read_text("utf-8")
        headless = metadata.replace("Requires-Dist: opencv-python\n", "Requires-Dist: opencv-python-headless\n")
        if headless == metadata:
            sys.exit("FFCV does not ask for opencv-python")
        (information / "METADATA").write_text(headless, "utf-8")
        licences = information / "licenses"
        licences.mkdir(exist_ok=True)
        for library in sorted(next(content.glob("*.libs")).iterdir()):
            original = re.sub(r"-[0-9a-f]{8}(?=\.so|-|\.)", "", library.name)  # without auditwheel's hash
            copied = [
                (package, file) for package, files in packages_of(original).items() for file in files if file.exists()
            ]
            if not copied:
                sys.exit(f"no licence was found for {library.name} ({original})")
            for package, file in copied:
                shutil.copy(file, licences / f"{package}-{file.name}")
        subprocess.run(
            [sys.executable, "-m", "wheel", "pack", "-d", out, content], check=True, stdout=subprocess.DEVNULL
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
