"""nvImageCodec on the CPU (docs.nvidia.com/cuda/nvimagecodec): libjpeg-turbo decodes the region of a random crop."""

from collections.abc import Callable
from typing import Any

from fastft.bench.child import library
from fastft.bench.task import Entry, Work, decoding, random_box

PACKAGE = "nvidia-nvimgcodec-cu12"


def decoder() -> Callable[[bytes], Any]:
    codec = library("nvidia.nvimgcodec", PACKAGE)
    made = codec.Decoder(
        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=[codec.Backend(codec.CPU_ONLY)]
    )

    def decode(file: bytes) -> Any:
        stream = codec.CodeStream(file)
        y, x, h, w = random_box(stream.height, stream.width)
        return made.decode(stream.get_sub_code_stream(region=codec.Region(y, x, y + h, x + w)))

    return decode


ENTRIES = (Entry("nvImageCodec CPU", PACKAGE, decoding(decoder), {Work.DECODE: ()}),)
