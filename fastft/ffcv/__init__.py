"""fastft's decoders and augmentation as operations for the `Loader` of stock FFCV 1.0.2.

    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToDevice, ToTensor
    from fastft.ffcv import Augment, RandomResizedCropRGBImageDecoder

    image = [RandomResizedCropRGBImageDecoder((224, 224), hflip=0.5), ToTensor(), ToDevice(device), Augment("3aug")]
    loader = Loader("train.beton", 256, 8, order=OrderOption.RANDOM, seed=0, pipelines={"image": image})

You get the same random choices as with `fastft.data.loader.TrainLoader`: they depend on the seed (default: the
loader's), the epoch and the sample, not on threads or batches. If an image cannot be decoded, `SampleError` is raised
in your loop over the loader. FFCV's decoders leave the previous image's pixels in this case.
"""

from importlib.util import find_spec

from beton_tools.base.extras import INSTALL_FFCV

if find_spec("ffcv") is None:
    raise ImportError(f"fastft.ffcv needs FFCV, which is not installed. Run: {INSTALL_FFCV}")

from fastft.ffcv.operations import Augment, CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

__all__ = ["Augment", "CenterCropRGBImageDecoder", "RandomResizedCropRGBImageDecoder"]
