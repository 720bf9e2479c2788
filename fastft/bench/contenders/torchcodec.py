"""torchcodec's image decoder (meta-pytorch.org/torchcodec). Its wheels on PyPI need PyTorch's CUDA build, also for CPUs."""

from collections.abc import Callable
from typing import Any

from fastft.bench.child import library
from fastft.bench.task import WHOLE, Entry, Work, decoding


def decoder() -> Callable[[bytes], Any]:
    decode: Callable[[bytes], Any] = library("torchcodec.decoders", "torchcodec").decode_jpeg
    return decode


ENTRIES = (Entry("torchcodec", "torchcodec", decoding(decoder), {Work.DECODE: WHOLE}),)
