"""Files of tensors have the permissions of other files, and the same bytes in every call."""

import os

import pytest
import torch
from safetensors.torch import load_file

from fastft.model.weight_files import save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_new_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode


def test_a_header_always_has_the_same_order(tmp_path):
    """safetensors orders texts at random in each call."""
    texts = {f"k{i}": "K\u00e4se \n\x7f" * i for i in range(12)}
    for name in ("one", "two", "three"):
        save_tensors(tmp_path / name, {"b": torch.ones(3), "a": torch.zeros(2)}, texts)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert load_file(tmp_path / "one")["b"].tolist() == [1, 1, 1]
