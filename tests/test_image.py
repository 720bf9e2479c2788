"""The Dockerfile's instructions, executed as a script where no container engine is."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(dockerfile: str, root: Path) -> str:
    """Bash that does what the instructions say, with /opt inside `root`, for the checkout that holds this file."""
    lines = [f"set -euo pipefail; cd {shlex.quote(str(root))}"]
    joined = re.sub(r"\\\n\s*", " ", dockerfile.replace("/opt/", f"{root}/opt/"))
    for line in joined.splitlines():
        instruction, _, rest = line.partition(" ")
        match instruction:
            case "ARG" | "ENV":
                lines.append(f"export {rest}")
            case "COPY":
                target = shlex.quote(rest.split()[-1])
                lines.append(
                    f"mkdir -p {target}; git -C {ROOT} ls-files -z | tar -C {ROOT} --null -T - -c | tar -C {target} -x"
                )
            case "WORKDIR":
                lines.append(f"mkdir -p {rest}; cd {rest}" if str(root) in rest else "")
            case "RUN":
                lines.append(rest)
            case "FROM" | "ENTRYPOINT" | "CMD" | "" | "#":
                pass
            case _:
                raise AssertionError(f"no translation of {line!r}")
    return "\n".join(lines)


def compiled(root: Path) -> set[str]:
    return {file.name for file in (root / "opt/numba-cache").rglob("*.nbc")}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(
    shutil.which("git") is None or os.getuid() != 0, reason="needs git, and root as in an image"
)
def test_the_image_trains_without_compiling(tmp_path: Path) -> None:
    """A second training in the image that the instructions make compiles nothing."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "PYTHON", "VIRTUAL_ENV"))
    }
    base = Path(sys.executable).resolve().parent  # a python3 with its headers
    environment["PATH"] = f"{base}:{environment['PATH']}"
    commands = script((ROOT / "Dockerfile").read_text("utf-8"), tmp_path)
    subprocess.run(["bash", "-c", commands], check=True, env=environment)
    before = compiled(tmp_path)
    assert len(before) > 50
    settings = "\n".join(line for line in commands.splitlines() if line.startswith("export "))
    again = f"{settings}\ncd {tmp_path}/opt/fastft\npython .ci/fill_cache.py"
    subprocess.run(["bash", "-c", again], check=True, env=environment)
    assert compiled(tmp_path) == before
