"""Set-up takes the PyTorch that the machine needs; the Dockerfile works (its instructions executed as a script)."""

import email
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from beton_tools.base.extras import INSTALL_FFCV, INSTALL_TURBOJPEG, requirements_of
from fastft.cli import doctor

ROOT = Path(__file__).parents[1]


CARDS = {  # what nvidia-smi says, TORCH: what is asked of PyPI when PyTorch's index cannot be reached, extras
    "no GPU": (None, "", "torch torchvision", "demo"),
    "P100": ("6.0, 535.104.05", "", "torch<2.8 torchvision", "demo,p100"),
    "V100": ("7.0, 535.104.05", "", "torch<2.11 torchvision", "demo,cuda12"),
    "A100, old driver": ("8.0, 550.54.15", "", "torch<2.11 torchvision", "demo,cuda12"),
    "H100 and V100": ("9.0, 580.65.06\n7.0, 580.65.06", "", "torch<2.11 torchvision", "demo,cuda12"),
    "H100": ("9.0, 580.65.06", "", "torch>=2.11 torchvision", "demo,cuda13"),
    "an image for H100, built without one": (None, "cuda13", "torch>=2.11 torchvision", "demo,cuda13"),
    "H100, CPU asked for": ("9.0, 580.65.06", "cpu", "torch torchvision", "demo"),
}


def set_up(folder: Path, shown: str | None, torch: str) -> subprocess.CompletedProcess[str]:
    """Run .ci/setup with a virtual environment whose python only writes its arguments to `folder`/calls."""
    programs = {
        "venv/bin/python": f'echo "$@" >> {folder}/calls',
        "nvidia-smi": f"echo '{shown}'" if shown else "exit 9",
    }
    for name, body in programs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "TORCH": torch,
        "https_proxy": "http://127.0.0.1:9",
    }
    base = Path(sys.base_prefix, "bin", "python3")
    command = ["bash", str(ROOT / ".ci/setup"), str(base), str(folder / "venv"), "demo"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="set-up would install packages")
@pytest.mark.parametrize("card", CARDS)
def test_the_torch_and_the_extra_fit_the_card(card, tmp_path):
    shown, torch, asked, extras = CARDS[card]
    done = set_up(tmp_path, shown, torch)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text("utf-8").splitlines()
    assert any(call.endswith(f"install --no-compile {asked}") for call in calls)
    assert any(call.endswith(f"[{extras}]") for call in calls)
    assert "from PyPI" in done.stdout
    assert calls[-1] == "-m fastft.data.pixel_probe", "compiles what the first run needs"


def test_an_unknown_kind_of_torch_is_refused_in_one_line(tmp_path):
    done = set_up(tmp_path, None, "rocm")
    assert (done.returncode, done.stderr) == (2, "setup: TORCH is cpu, cuda12 or cuda13, not rocm\n")


def test_all_instructions_name_the_packages_that_set_up_installs():
    packages = set((ROOT / ".ci/packages").read_text("utf-8").split())
    assert packages == set(INSTALL_TURBOJPEG.partition("(")[0].split()[3:])
    assert set(doctor.FFCV_LOADS.split()) < set((ROOT / ".ci/ffcv/packages").read_text("utf-8").split())
    for page in ("README.md", "docs/install.md"):
        lines = (ROOT / page).read_text("utf-8").splitlines()
        assert packages <= set(next(line for line in lines if line.startswith("sudo apt-get")).split()), page
        assert any(line.startswith(INSTALL_FFCV.partition(", in a clone")[0]) for line in lines), page


def test_a_message_names_the_packages_of_an_extra():
    """fastft itself is on no index, so pip cannot take its extras from there."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extra in ("cloud", "cuda12", "cuda13", "ffcv"):
        assert set(shlex.split(requirements_of(extra))) == {str(Requirement(package)) for package in extras[extra]}
    assert requirements_of("no such extra") == "'.[no such extra]'"
    for folder in ("fastft", "beton_tools", "docs", "examples"):
        for path in (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".ipynb")):
            assert not re.search(r"(?<!un)install (-q )?'?fastft(\[[\w,.]*\])?(?! @)['\s`]", path.read_text("utf-8")), (
                path
            )


def test_a_user_without_ffcv_is_told_the_line_that_adds_it():
    code = "import sys; sys.modules['ffcv'] = None; import fastft.ffcv"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == (
        f"ImportError: fastft.ffcv needs FFCV, which is not installed. Run: {INSTALL_FFCV}"
    )


def test_the_published_metadata_have_the_author_and_absolute_links_to_files_that_exist(tmp_path):
    address = "https://host.example/owner/fastft"
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"FASTFT_REPOSITORY": address}, check=True, capture_output=True)
    found = email.message_from_string((tmp_path / "fastft.egg-info/PKG-INFO").read_text("utf-8"))
    authors = re.findall("^authors:\n  - name: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert [found["Author"]] == authors
    assert f"Homepage, {address}" in found.get_all("Project-URL")
    text = found.get_payload()
    links = re.findall(r'\]\(([^)#]+)|(?:src|srcset)="([^"]+)', text)
    own = [link for pair in links for link in pair if link.startswith(address)]
    assert all(link.startswith("https://") for pair in links for link in pair if link)
    assert len(own) > 20 and f"{address}/raw/HEAD/docs/images/speed-light.svg" in own
    for link in own:
        assert (ROOT / re.sub(rf"{address}/(blob|raw)/HEAD/", "", link)).exists(), link


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
@pytest.mark.skipif(shutil.which("git") is None or os.getuid() != 0, reason="needs git, and root as in an image")
def test_the_image_trains_without_compiling(tmp_path):
    """A second training in the image that the instructions make compiles nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "PYTHON", "VIRTUAL_ENV"))}
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
