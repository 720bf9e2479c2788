"""`fastft doctor`: check if this machine is ready.

Each check gives ok, warn or fail, with the command that fixes it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from beton_tools.base.extras import INSTALL_FFCV, INSTALL_TURBOJPEG, requirements_of
from fastft.cost.gpu_memory import describe_no_fit, memory_need
from fastft.machine.facts import GIB, UNFINISHED, Facts, fits_page_cache
from fastft.machine.precision import AMPERE
from fastft.machine.usable_gpu import VOLTA, find_lacking_code, find_unseen_gpu, install, sm
from fastft.recipe import load_recipe

OK, WARN, FAIL = "ok", "warn", "fail"
MIN_PYTHON = (3, 10)
MEMORY_OF = ("final_b16", "final_l14_336")  # recipes
CORES_PER_GPU = 4  # for decoding and augmentation. A usual machine with eight V100 has more
SHM_NEEDED = 1 << 30  # bytes used by NCCL and torch. Containers often get 64 MB
# L/14 needs space for two checkpoints and a third being written (4.9 GB each), and for the best weights and their
# successor (1.2 GB each)
DISK_NEEDED = 20 << 30
DISK_OF_IMAGENET = "75 GB (--max-resolution 500) to 150 GB"  # converted
FFCV_LOADS = "libgl1 libglib2.0-0"  # from .ci/ffcv/packages: in addition to the libraries that FFCV was built on

DRIVER_LINKS = "the driver's linker"  # in the error from `fastft.augment.kernel_probe`

Result = tuple[str, str, str]  # status, what was found, and a command or an instruction that fixes it ("" if ok)


@dataclass(frozen=True)
class Check:
    """One line of output. `fix` is a command or an instruction, or empty if there is nothing to fix."""

    name: str
    status: str
    found: str
    fix: str


@dataclass(frozen=True)
class Checks:
    """The output of `fastft doctor --json`. ready: no check fails."""

    ready: bool
    checks: list[Check]


def check_python(f: Facts) -> Result:
    version = ".".join(map(str, f.python))
    if f.python[:2] < MIN_PYTHON:
        return FAIL, f"{version}, 3.10 or newer is needed", "make setup PYTHON=python3.11"
    return OK, version, ""


def check_torch(f: Facts) -> Result:
    if f.torch is None:
        return FAIL, "not installed", install(f, "torch torchvision")
    return OK, f"{f.torch}, {f'CUDA {f.torch_cuda}' if f.torch_cuda else 'CPU only'}", ""


def check_gpu(f: Facts) -> Result:
    """Check if there is a GPU, a driver, and a torch built for CUDA."""
    if f.gpus:
        counted = {gpu.name: sum(g.name == gpu.name for g in f.gpus) for gpu in f.gpus}
        return OK, ", ".join(f"{n} x {name}" for name, n in counted.items()), ""
    if (problem := find_unseen_gpu(f)) is not None:
        return FAIL, *problem
    none = "none. A CPU is fast enough for the demo, the tests and small sets of photographs"
    return WARN, none, "train on large sets, such as ImageNet, on a machine with a GPU"


def check_gpu_memory(f: Facts) -> Result | None:
    """Check what B/16 and L/14 at 336 px take of the smallest GPU's memory. None without a GPU."""
    if not f.gpus:
        return None
    smallest = min(f.gpus, key=lambda gpu: gpu.memory)
    path = "autocast" if smallest.capability >= AMPERE else "half"
    needs = {name: memory_need(load_recipe(name), path, smallest.memory, len(f.gpus)) for name in MEMORY_OF}
    found = ", ".join(
        f"{name} {describe_no_fit(need.row())}" if not need.fits
        else f"{name} takes {need.needed / 1e9:.0f} GB with {need.micro_batch} images per forward pass"
        for name, need in needs.items() if need is not None
    )  # fmt: skip
    all_fit = all(need is None or need.fits for need in needs.values())
    fix = "" if all_fit else "train a smaller model, or part of it with --model.trainable_layers"
    return OK if all_fit else WARN, f"{smallest.memory / 1e9:.0f} GB, modelled: {found}", fix


def check_architectures(f: Facts) -> Result | None:
    """Check if torch was built for the GPU's architecture. None without a GPU."""
    if not f.gpus:
        return None
    if (problem := find_lacking_code(f)) is not None:
        return FAIL, *problem
    return OK, f"for {', '.join(sorted({sm(gpu.capability) for gpu in f.gpus}))}", ""


def check_numba_cuda(f: Facts) -> Result | None:
    """Check if numba-cuda is installed, for a CUDA version that has the GPU's architecture. None without a GPU."""
    if not f.gpus:
        return None
    if f.numba_cuda is None:
        return FAIL, "not installed. Augmentation on the GPU needs it", install(f, requirements_of(cuda_extra(f)))
    if f.numba_cuda_toolkit == 13 and any(g.capability < (7, 5) for g in f.gpus):
        version = f"{f.numba_cuda} with CUDA 13, which does not support sm_70"
        return FAIL, version, install(f, requirements_of("cuda12"))
    return OK, f.numba_cuda, ""


def check_kernels(f: Facts) -> Result | None:
    """Check if an augmentation kernel compiles (and loads, with a GPU). None without numba-cuda."""
    if f.numba_cuda is None:
        return None
    if f.kernel_error is None:
        return OK, f.kernel or "", ""
    # numba-cuda 0.30 uses row_stack, which NumPy 2.5 removed
    package = "'numpy<2.5'" if "row_stack" in f.kernel_error else requirements_of(cuda_extra(f))
    if DRIVER_LINKS in f.kernel_error:  # an older driver cannot read a newer compiler's PTX
        package = "nvidia-nvjitlink" if f.numba_cuda_toolkit == 13 else "nvidia-nvjitlink-cu12"
    return FAIL if f.gpus else WARN, f.kernel_error, install(f, package)


def cuda_extra(f: Facts) -> str:
    """Return the extra in pyproject.toml for torch's CUDA version and the oldest GPU here."""
    if any(g.capability < VOLTA for g in f.gpus):
        return "p100"
    old = any(g.capability < (7, 5) for g in f.gpus) or (f.torch_cuda or "13").startswith("12.")
    return "cuda12" if old else "cuda13"


def check_ffcv(f: Facts) -> Result:
    """Check if FFCV loads, which training does not need. A rebuild helps even if a build is installed or cached."""
    if f.ffcv is None:
        return OK, f"not installed. Only fastft.ffcv and its benchmarks need it. To add it: {INSTALL_FFCV}", ""
    if f.ffcv_error is None:
        return OK, f"{f.ffcv}, its libraries can be loaded", ""
    if "libGL" in f.ffcv_error or "libglib" in f.ffcv_error or "libgthread" in f.ffcv_error:
        return WARN, f.ffcv_error, f"apt-get install {FFCV_LOADS}"
    again = install(f, "--force-reinstall --no-deps --no-cache-dir --no-build-isolation ffcv==1.0.2")
    build = f"PKG_CONFIG_PATH=$PWD/.ci/ffcv {again}"
    return WARN, f.ffcv_error, f"sudo apt-get install $(cat .ci/ffcv/packages) && {build}, in a clone of fastft"


def check_turbojpeg(f: Facts) -> Result:
    if f.turbojpeg is None:
        return FAIL, "libturbojpeg was not found", INSTALL_TURBOJPEG
    return OK, f.turbojpeg, ""


def check_pixels(f: Facts) -> Result | None:
    """Check that the CPU loader's images equal Pillow's.

    None if they were not compared because a library is missing.
    """
    if f.pixels_error is not None and UNFINISHED in f.pixels_error:  # a 40 s check
        return WARN, f.pixels_error, "run fastft doctor again when the machine is less busy"
    if f.pixels_error is not None:
        fix = "make setup PYTHON=python3.11, and report this with your Python and Numba versions"
        return FAIL, f.pixels_error, fix
    return None if f.pixels is None else (OK, f.pixels, "")


def check_cores(f: Facts) -> Result:
    need = max(1, len(f.gpus)) * CORES_PER_GPU
    usable = f"{f.cores} usable"
    if f.gpus and f.cores < need:
        fix = "give the job more cores (Slurm: --cpus-per-task, Docker: --cpus), or convert with --max-resolution 400"
        return WARN, f"{usable}. {len(f.gpus)} GPU(s) need about {need}", fix
    return OK, usable, ""


def check_memory(f: Facts) -> Result:
    """Check if the training file fits in the page cache. The rest is read from disk again every epoch."""
    memory = f"{f.ram_available / GIB:.1f} GiB available of {f.ram_total / GIB:.1f}"
    if f.data_size is None:
        return OK, memory, ""
    memory += f", data file {f.data_size / GIB:.1f}"
    if fits_page_cache(f.data_size, f.ram_available):
        return OK, memory, ""
    fix = "set --data.order=blocks, convert with a smaller --max-resolution, or keep the file on NVMe"
    return WARN, f"{memory}. Every epoch will read from disk", fix


def check_disk(f: Facts) -> Result:
    free = (
        f"{f.disk_free / GIB:.0f} GiB free here. A run's checkpoints take up to {DISK_NEEDED / GIB:.0f} GiB, "
        f"a converted ImageNet {DISK_OF_IMAGENET}"
    )
    if f.disk_free < DISK_NEEDED:
        return WARN, free, "free some, or set --train.run_dir and convert's --out to another disk"
    return OK, free, ""


def check_shared_memory(f: Facts) -> Result:
    if f.shm_size is None:
        return WARN, "missing", "mount -t tmpfs -o size=8g tmpfs /dev/shm"
    size = f"{f.shm_size / GIB:.2f} GiB"
    if f.shm_size < SHM_NEEDED:
        return WARN, size, "docker run --shm-size=8g, or --ipc=host"
    return OK, size, ""


CHECKS: dict[str, Callable[[Facts], Result | None]] = {
    "Python": check_python,
    "torch": check_torch,
    "GPU": check_gpu,
    "GPU memory": check_gpu_memory,
    "CUDA code": check_architectures,
    "numba-cuda": check_numba_cuda,
    "CUDA kernels": check_kernels,
    "FFCV": check_ffcv,
    "TurboJPEG": check_turbojpeg,
    "CPU loader": check_pixels,
    "cores": check_cores,
    "memory": check_memory,
    "disk": check_disk,
    "/dev/shm": check_shared_memory,
}


def examine(facts: Facts) -> Checks:
    """Run every check that applies to this machine."""
    checks = [Check(name, *result) for name, run in CHECKS.items() if (result := run(facts)) is not None]
    return Checks(all(check.status != FAIL for check in checks), checks)
