"""fastft's decoders and augmentation as operations for the `Loader` of stock FFCV 1.0.2.

    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToDevice, ToTensor
    from fastft.ffcv import Augment, RandomResizedCropRGBImageDecoder

    image = [RandomResizedCropRGBImageDecoder((224, 224), hflip=0.5), ToTensor(), ToDevice(device), Augment("3aug")]
    loader = Loader("train.beton", 256, 8, order=OrderOption.RANDOM, seed=0, pipelines={"image": image})

The random choices are those of `fastft.data.loader.TrainLoader`: they depend on the seed (default: the loader's), the epoch
and the sample, not on threads or batches. An image that cannot be decoded raises `SampleError` in the loop over the loader,
where FFCV's decoders leave the previous image's pixels.
"""

from fastft.ffcv.operations import Augment, CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

__all__ = ["Augment", "CenterCropRGBImageDecoder", "RandomResizedCropRGBImageDecoder"]
