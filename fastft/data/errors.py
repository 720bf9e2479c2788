"""Errors of single samples: what the codes of the compiled loops mean, as one line that names file and sample."""

import os
from contextlib import suppress

from beton_tools.errors import UserError
from beton_tools.format import Beton
from beton_tools.jpeg.markers import describe_error
from beton_tools.manifest import Manifest
from fastft.augment.cpu import REASONS
from fastft.data.pread import FILE_ENDED


class SampleError(UserError):
    """A sample that cannot be decoded; names the sample and, if there is a manifest, the original image."""

    def __init__(self, beton: Beton, sample: int, reason: str) -> None:
        self.sample = sample
        source = ""
        with suppress(UserError, IndexError):  # a damaged manifest must not replace this error
            if (manifest := Manifest.of_beton(beton.path)) is not None:
                source = f" ({manifest.names[sample]})"
        super().__init__(
            f"{beton.path}: sample {sample}{source}: {reason}; list all such with `beton verify`"
        )


def changed_error(beton: Beton, detail: str) -> UserError:
    """The error for a file that another program truncated or rewrote after it was opened."""
    return UserError(
        f"{beton.path}: changed while it was read ({detail}); restore the file and run the same command again"
    )


def error_of_code(beton: Beton, sample: int, code: int) -> UserError:
    """The error for a nonzero code of `decode_packed` or `decode_and_augment`."""
    if code == FILE_ENDED:
        return changed_error(beton, f"it ends before sample {sample}")
    if code > FILE_ENDED:
        return UserError(
            f"{beton.path}: sample {sample} cannot be read ({os.strerror(code - FILE_ENDED)}); "
            "check the disk and run the same command again"
        )
    return SampleError(beton, sample, describe_error(code) if code > 0 else REASONS[-code])
