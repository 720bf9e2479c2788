"""Import FFCV's `EpochIterator` without the rest of FFCV.

`import ffcv` loads OpenCV, SciPy, setuptools and FFCV's own C++ library, and compiles functions: 110 MB and a second that
the loader has no use for; it also leaves torch with one thread. The three modules that the iterator needs are loaded from
FFCV's folder as submodules of a private package, whose `__init__` is empty. A later `import ffcv` works as usual, and it does
not matter whether FFCV has been imported already.
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

PRIVATE = "fastft_ffcv"  # name of the private package


def import_epoch_iterator() -> ModuleType:
    """FFCV's module `loader.epoch_iterator`; torch keeps its number of threads, which FFCV's import sets to one.

    Raises:
        ImportError: FFCV is not installed.
    """
    spec = find_spec("ffcv")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("FFCV is not installed; pip install ffcv==1.0.2", name="ffcv")
    folder = Path(spec.submodule_search_locations[0])
    _add_package(PRIVATE, folder)
    for name in ("loader", "pipeline", "traversal_order"):
        _add_package(f"{PRIVATE}.{name}", folder / name)
    # named by an error message only, but importing it would import the readers, fields and decoders
    _add_module(f"{PRIVATE}.traversal_order.quasi_random").QuasiRandom = None  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    try:
        return importlib.import_module(f"{PRIVATE}.loader.epoch_iterator")
    finally:
        torch.set_num_threads(threads)


def _add_package(name: str, folder: Path) -> None:
    _add_module(name).__path__ = [str(folder)]


def _add_module(name: str) -> ModuleType:
    """The module in `sys.modules`, empty if it is new."""
    return sys.modules.setdefault(name, ModuleType(name))
