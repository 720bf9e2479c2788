"""Build a card that only answers for the CUDA build of PyTorch in this environment: `build` compiles card.c, `variables` use it.

The wheels' own libraries say which functions there are, and under which version; those that card.c does not have return 0. One
library stands for all four, under four names.
"""

import re
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = ("libcudart", "libcublas", "libcublasLt")
# the little of CUDA's compiler that its headers ask for
HOST_DEFINES = """
#define __device_builtin__
#define __cudart_builtin__
#define __builtin_align__(a) __attribute__((aligned(a)))
#define __align__(n) __attribute__((aligned(n)))
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __host__
#define __device__
#define __forceinline__ inline
#define CUDARTAPI
"""


def build(out: Path) -> Path:
    """The folder of the libraries, made in `out`. Raises FileNotFoundError: PyTorch's CUDA libraries are not installed."""
    nvidia = Path(sysconfig.get_paths()["purelib"], "nvidia")
    real = {name: next(nvidia.glob(f"**/{name}.so.*"), None) for name in LIBRARIES}
    header = next(nvidia.glob("**/cuda.h"), None)
    if header is None or None in real.values():
        raise FileNotFoundError(f"no CUDA libraries in {nvidia}. Install PyTorch's CUDA build")
    (out / "crt").mkdir(parents=True, exist_ok=True)
    (out / "crt" / "host_defines.h").write_text(HOST_DEFINES)
    text = header.read_text(encoding="utf-8", errors="replace")
    (version,) = re.findall(r"#define CUDA_VERSION (\d+)", text)
    exported = {path.name: exported_by(path) for path in real.values() if path}
    driver = set(re.findall(r"\bCUDAAPI (cu\w+)\s*\(", text))
    own = set(re.findall(r"^API [\w \*]*?[ \*](\w+)\(", (HERE / "card.c").read_text(), re.MULTILINE))
    missing = sorted(set().union(driver, *exported.values()) - own)
    (out / "stubs.h").write_text("".join(f"API int {name}() {{ return 0; }}\n" for name in missing))
    nodes = [
        f"{name} {{ global: {' '.join(f'{s};' for s in sorted(symbols))} }};\n" for name, symbols in exported.items()
    ]
    (out / "versions.map").write_text("".join(nodes))
    library = out / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-w", "-std=gnu17", f"-DRUNTIME_VERSION={version}", f"-I{out}", f"-I{header.parent}",
         f"-Wl,--version-script={out / 'versions.map'}", "-Wl,-soname,libcuda.so.1", "-o", library, HERE / "card.c", "-ldl"],
        check=True,
    )  # fmt: skip
    for name in ("libcuda.so", *exported):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(library.name)
    return out


def exported_by(library: Path) -> set[str]:
    """Names of the functions that a shared library exports."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    symbols = (line.split() for line in listed.splitlines())
    return {
        s[2].partition("@")[0]
        for s in symbols
        if len(s) == 3 and s[1] in "TWti" and s[2].partition("@")[0].isidentifier()
    }


def variables(folder: Path) -> dict[str, str]:
    """The environment in which a Python takes these libraries. CUDA's own are found by the folder of the library that asks."""
    preloaded = [str(path) for path in sorted(folder.glob("libcu*.so.*")) if path.name != "libcuda.so.1"]
    return {
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": ":".join(preloaded),
        "TRITON_LIBCUDA_PATH": str(folder),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
    }
