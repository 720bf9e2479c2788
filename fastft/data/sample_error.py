"""Errors of single samples: what the codes of the compiled loops mean, as one line that names file and sample."""

from contextlib import suppress

from beton_tools.base.errors import UserError
from beton_tools.jpeg.markers import describe_error
from beton_tools.read.beton_set import BetonSet
from beton_tools.read.manifest import Manifest
from fastft.augment.cpu import REASONS

# beside the codes of `beton_tools.jpeg.markers`, and those of `REASONS`, which are negative here
READ_FAILED = 1000


class SampleError(UserError):
    """A sample that cannot be decoded; names the sample and, if there is a manifest, the original image.

    The message has the sample's id in its file, `sample` the one among all files.
    """

    def __init__(self, betons: BetonSet, sample: int, reason: str) -> None:
        self.sample = sample
        beton, own_id = betons.locate(sample)
        source = ""
        with suppress(UserError, IndexError):  # a damaged manifest must not replace this error
            if (manifest := Manifest.of_beton(beton.path)) is not None:
                source = f" ({manifest.names[own_id]})"
        super().__init__(
            f"{beton.path}: sample {own_id}{source}: {reason}; list all such with `beton verify`"
        )


def raise_for_code(betons: BetonSet, sample: int, code: int) -> None:
    """Raise the error for a nonzero code of `decode_packed` or `decode_and_augment`.

    Raises:
        SampleError: the sample cannot be decoded.
        UserError: the file cannot be read, or changed after it was opened.
    """
    if code == READ_FAILED:
        betons.image_bytes(sample)  # raises the reason, unless reading succeeds now
        raise SampleError(betons, sample, "could not be read at first")
    beton, _ = betons.locate(sample)
    beton.check_unchanged()
    raise SampleError(betons, sample, describe_error(code) if code > 0 else REASONS[-code])
