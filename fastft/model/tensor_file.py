"""Write safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device to a file with the permissions of other new files; safetensors' own are the owner's only.

    header: text by key.

    Raises:
        OSError: it cannot be written; also for a full disk, for which safetensors has an error of its own.
    """
    path.touch()
    permissions = path.stat().st_mode & 0o777
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            path,
            dict(header or {}),
        )
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(permissions)
