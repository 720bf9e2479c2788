"""usage: bundle_turbojpeg.py WHEEL FOLDER [LIBRARY]: write fastft's wheel to FOLDER with libturbojpeg and its licence inside.

The library is this system's, or the file LIBRARY. fastft opens it by path and is not linked with it, so that auditwheel
would not copy it. auditwheel then finds out which C library the wheel needs, and names the file accordingly.
"""

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from add_licences import packages_of

NAME = "libturbojpeg.so.0"  # as in beton_tools/jpeg/turbo.py
MACHINES = {62: "x86_64", 183: "aarch64"}  # e_machine in an ELF header
LICENCES = "IJG AND BSD-3-Clause AND Zlib"  # libjpeg-turbo's LICENSE.md


def system_library() -> Path:
    ctypes.CDLL(NAME)
    mapped = (line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text("utf-8").splitlines())
    return next(Path(path) for path in mapped if "libturbojpeg" in path)


def main(wheel: Path, out: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run("wheel", "unpack", "-d", work / "content", wheel)
        content = next((work / "content").iterdir())
        shutil.copy(library.resolve(), content / "beton_tools" / "jpeg" / NAME)
        information = next(content.glob("*.dist-info"))
        files = {p for found in packages_of(library.resolve().name).values() for p in found if p.exists()}
        if not files:
            sys.exit(f"no licence was found for {library}")
        licences = [
            shutil.copy(file, information / "licenses" / f"libjpeg-turbo-{file.name}") for file in sorted(files)
        ]
        metadata = (information / "METADATA").read_text("utf-8")
        added = "".join(f"License-File: {Path(licence).name}\n" for licence in licences)
        changed = metadata.replace(
            "License-Expression: Apache-2.0\n", f"License-Expression: Apache-2.0 AND {LICENCES}\n"
        )
        changed = changed.replace("License-File: LICENSE\n", f"License-File: LICENSE\n{added}")
        if changed.count("License-") != metadata.count("License-") + len(licences):
            sys.exit("the wheel's metadata have no licence where it was expected")
        (information / "METADATA").write_text(changed, "utf-8")
        tags = (information / "WHEEL").read_text("utf-8").replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
        machine = MACHINES[int.from_bytes(library.read_bytes()[18:20], "little")]
        tags = re.sub(r"Tag: .*", f"Tag: py3-none-linux_{machine}", tags)
        (information / "WHEEL").write_text(tags, "utf-8")
        run("wheel", "pack", "-d", work, content)
        run("auditwheel", "repair", "--wheel-dir", out, next(work.glob("*.whl")))


def run(module: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3:] else system_library())
