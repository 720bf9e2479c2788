"""Version bounds of pyproject.toml: each warns when the reason for it is gone."""

import warnings
from importlib.metadata import files
from pathlib import Path

import pytest


def test_the_numpy_bound_is_needed_while_numba_cuda_uses_row_stack() -> None:
    sources = [f for f in files("numba-cuda") or [] if f.name == "arrayobj.py"]
    if not sources:
        pytest.skip("numba-cuda has no arrayobj.py")
    if not any("np.row_stack" in Path(str(f.locate())).read_text("utf-8") for f in sources):
        warnings.warn(
            "numba-cuda no longer uses np.row_stack: remove numpy<2.5 from pyproject.toml and .ci/setup",
            stacklevel=1,
        )
