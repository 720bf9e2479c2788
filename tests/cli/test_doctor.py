"""`fastft doctor`: every check on described machines, and the command on this machine."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numba
import pytest

from beton_tools.base.extras import requirements_of
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft.cli import main
from fastft.cli.doctor import FAIL, OK, WARN, Check, examine
from fastft.machine import facts
from fastft.machine.facts import GIB, Facts
from fastft.machine.usable_gpu import GpuFacts
from tests.written import write_crops

V100, A100, H100 = (
    GpuFacts("Tesla V100-SXM2-16GB", (7, 0), 16 * GIB),
    GpuFacts("NVIDIA A100", (8, 0), 80 * GIB),
    GpuFacts("NVIDIA H100", (9, 0), 80 * GIB),
)
P100 = GpuFacts("Tesla P100-PCIE-16GB", (6, 0), 16 * GIB)
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
GOOD = Facts(
    python=(3, 12, 1),
    executable=".venv/bin/python",
    torch="2.13.0+cu126",
    torch_cuda="12.6",
    arch_list=CU126,
    gpus=(V100,) * 8,
    torch_error=None,
    driver_gpu=None,
    driver=None,
    device_files=True,
    numba_cuda="0.30",
    numba_cuda_toolkit=12,
    kernel="compiled, linked and loaded on 8 GPU(s)",
    kernel_error=None,
    pixels="the loader's images differ from Pillow's by at most 0 of 255 levels",
    pixels_error=None,
    ffcv="1.0.2",
    ffcv_error=None,
    turbojpeg="libturbojpeg.so.0",
    cores=32,
    ram_total=480 * GIB,
    ram_available=450 * GIB,
    data_size=70 * GIB,
    disk_free=500 * GIB,
    shm_size=64 * GIB,
)


def check(name: str, **changes: object) -> Check:
    (found,) = [c for c in examine(replace(GOOD, **changes)).checks if c.name == name]
    return found


def test_every_check_of_a_good_machine_is_ok():
    assert {(c.status, c.fix) for c in examine(GOOD).checks} == {(OK, "")}


def test_v100_with_a_torch_built_without_sm_70_gets_the_cu126_wheels():
    found = check("CUDA code", torch="2.13.0+cu130", torch_cuda="13.0", arch_list=CU130)
    assert found.status == FAIL
    assert "sm_70" in found.found
    assert "cu126" in found.fix and "torch<2.15" in found.fix


def test_code_for_the_same_major_version_and_ptx_run_on_newer_gpus():
    assert check("CUDA code", gpus=(GpuFacts("RTX 3090", (8, 6), 24 * GIB),), arch_list=("sm_80",)).status == OK
    assert check("CUDA code", gpus=(H100,), arch_list=("sm_80", "compute_80")).status == OK
    assert check("CUDA code", gpus=(A100,), arch_list=("sm_86", "compute_86")).status == FAIL


@pytest.mark.parametrize(
    ("name", "status", "changes"),
    [
        ("Python", FAIL, {"python": (3, 9, 0)}),
        ("torch", FAIL, {"torch": None, "gpus": ()}),
        ("CUDA code", FAIL, {"arch_list": CU130}),
        ("GPU", WARN, {"gpus": ()}),
        ("GPU", FAIL, {"gpus": (), "driver_gpu": "Tesla V100", "torch_cuda": None}),
        ("GPU", FAIL, {"gpus": (), "driver_gpu": "Tesla V100"}),
        ("numba-cuda", FAIL, {"numba_cuda": None}),
        ("numba-cuda", FAIL, {"numba_cuda_toolkit": 13}),
        ("numba-cuda", OK, {"numba_cuda_toolkit": 13, "gpus": (A100,), "arch_list": CU130}),
        ("CUDA kernels", FAIL, {"kernel": None, "kernel_error": "AttributeError: row_stack"}),
        ("CUDA kernels", WARN, {"kernel": None, "kernel_error": "NvvmError", "gpus": ()}),
        ("FFCV", WARN, {"ffcv_error": "ImportError: libopencv_core.so.410"}),
        ("FFCV", OK, {"ffcv": None}),
        ("TurboJPEG", FAIL, {"turbojpeg": None}),
        ("CPU loader", FAIL, {"pixels": None, "pixels_error": "differ from Pillow's by 200 of 255 levels"}),
        ("CPU loader", WARN, {"pixels": None, "pixels_error": "pixel_probe did not finish within 300 s"}),
        ("cores", WARN, {"cores": 8}),
        ("memory", WARN, {"data_size": 449 * GIB}),
        ("disk", WARN, {"disk_free": GIB}),
        ("/dev/shm", WARN, {"shm_size": 64 << 20}),
        ("/dev/shm", WARN, {"shm_size": None}),
    ],
)
def test_every_problem_is_found_and_has_a_fix(name, status, changes):
    found = check(name, **changes)
    assert found.status == status
    assert bool(found.fix) == (status != OK)
    # without an active environment, `pip` is the system's, and Debian's refuses to install
    assert found.fix.count("pip ") == found.fix.count(".venv/bin/python -m pip install ")


def test_numba_cuda_that_needs_an_earlier_numpy_gets_one():
    assert "'numpy<2.5'" in check("CUDA kernels", kernel=None, kernel_error="AttributeError: row_stack").fix


def test_ffcv_that_lacks_a_library_needs_that_and_a_broken_one_is_rebuilt_even_if_cached():
    """A plain install would find the requirement satisfied, and a cached wheel has the same broken links."""
    forced = {"--force-reinstall", "--no-deps", "--no-cache-dir"}
    assert check("FFCV", ffcv_error="ImportError: libGL.so.1").fix == "apt-get install libgl1 libglib2.0-0"
    assert forced < set(check("FFCV", ffcv_error="ImportError").fix.split())
    assert "PKG_CONFIG_PATH=$PWD/.ci/ffcv pip install '.[ffcv]'" in check("FFCV", ffcv=None).found


def test_python_that_hangs_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(facts, "PYTHON_SECONDS", 0.5)
    assert facts._run_python("-c", "import hangs") == (None, "-c 'import hangs' did not finish within 0.5 s")


def test_kernels_that_the_driver_cannot_link_ask_for_nvjitlink():
    """CUDA 13.2's NVVM writes PTX 9.2, which a driver of CUDA 13.0 does not read."""
    error = "RuntimeError: CUDA_ERROR_UNSUPPORTED_PTX_VERSION (linker: the driver's linker 13.0)"
    found = check("CUDA kernels", kernel=None, kernel_error=error, numba_cuda_toolkit=13, gpus=(H100,))
    assert found.status == FAIL and found.fix.endswith("pip install nvidia-nvjitlink")
    found = check("CUDA kernels", kernel=None, kernel_error=error, numba_cuda_toolkit=12)
    assert found.fix.endswith("pip install nvidia-nvjitlink-cu12")


def test_gpu_memory_is_compared_with_what_recipes_take():
    """8 V100 of 16 GB take part of a rank's 256 images at a time; L/14 at 336 px does not fit in 6 GB."""
    found = check("GPU memory")
    assert (
        found.status == OK and "17 GB, modelled: final_b16 takes" in found.found and "per forward pass" in found.found
    )
    small = check("GPU memory", gpus=(GpuFacts("NVIDIA RTX A2000", (8, 6), 6 * GIB),))
    assert small.status == WARN and "final_l14_336 does not fit: it takes" in small.found
    assert "GPU memory" not in {c.name for c in examine(replace(GOOD, gpus=())).checks}


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")
@pytest.mark.slow
def test_a_kernel_is_compiled_rather_than_versions_compared(tmp_path, monkeypatch):
    assert facts._run_python("-m", facts.KERNEL_PROBE)[1] is None
    # as NumPy 2.5 does
    (tmp_path / "sitecustomize.py").write_text("import numpy\nvars(numpy).pop('row_stack', None)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done, error = facts._run_python("-m", facts.KERNEL_PROBE)
    assert done is None and "row_stack" in str(error)


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")
def test_numba_cuda_on_pythonpath_is_not_taken_for_installed():
    """There its .pth file, which replaces numba's own CUDA target, is not read; -S keeps Python from reading it here."""
    assert facts.has_numba_cuda()
    path = os.pathsep.join([str(Path(numba.__file__).parents[1]), str(Path(facts.__file__).parents[2])])
    command = [sys.executable, "-S", "-c", "from fastft.machine.facts import has_numba_cuda; print(has_numba_cuda())"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_disk_is_compared_with_checkpoints_and_imagenets_size_is_shown():
    """L/14: three checkpoints of 304 M parameters with moments and EMA, and the best weights twice, in fp32."""
    need = 4 * 304e6 * (3 * 4 + 2)
    assert check("disk", disk_free=int(need)).status == WARN
    found = check("disk", disk_free=25 * GIB)
    assert found.status == OK and "ImageNet 75 GB (--max-resolution 500) to 150 GB" in found.found


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["stubs", "real"])
def test_command_examines_this_machine(capsys, tmp_path, photographs, monkeypatch, real):
    if not real:  # what is asked in processes of their own
        monkeypatch.setattr(facts, "_run_python", lambda *arguments: (arguments[-1], None))
    write_crops(tmp_path / "in", photographs, {"astronaut": 1, "coffee": 1}, size=300, suffix="jpg")
    data = tmp_path / "train.beton"
    convert_folder(tmp_path / "in", data, WriteOptions(workers=0))
    code = main(["doctor", "--data", str(data), "--json"])
    result = json.loads(capsys.readouterr().out)
    status = {c["name"]: c["status"] for c in result["checks"]}
    assert {status[name] for name in ("Python", "torch", "FFCV", "TurboJPEG", "CPU loader")} == {OK}
    assert code == (0 if result["ready"] else 1)


@pytest.mark.parametrize(("data", "message"), [("nowhere.beton", "No such file"), ("README.md", "README.md: ")])
def test_command_refuses_a_file_that_is_not_a_beton(data, message, refused):
    assert message in refused(["doctor", "--data", data])


@pytest.mark.parametrize(
    ("torch_cuda", "gpus", "extra"),
    [
        ("12.6", (V100,), "cuda12"), ("13.0", (H100,), "cuda13"), ("12.8", (H100,), "cuda12"), ("12.6", (P100,), "p100"),
        ("13.0", (V100, H100), "cuda12"),
    ],
)  # fmt: skip
def test_the_extra_named_fits_the_card_and_torch(torch_cuda, gpus, extra):
    fix = check("numba-cuda", numba_cuda=None, torch_cuda=torch_cuda, gpus=gpus).fix
    assert requirements_of(extra) in fix and (extra == "p100" or f"'numba-cuda[cu{extra[-2:]}]>=" in fix)
