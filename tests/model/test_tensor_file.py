"""Files of tensors have the permissions of other files, and are read as they were written."""

import os

import pytest
import torch
from safetensors import safe_open
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


def test_tensors_and_header_are_read_as_written(tmp_path):
    path, turned = tmp_path / "x.safetensors", torch.arange(6.0).reshape(2, 3).T
    save_tensors(path, {"a": turned}, {"format": "pt"})
    assert torch.equal(load_file(path)["a"], turned)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
