"""Files of tensors have the permissions of other files."""

import os

import pytest
import torch

from fastft.model.weight_files import save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_new_files(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == mode
