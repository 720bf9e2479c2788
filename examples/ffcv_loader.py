"""Use fastft's decoder in ffcv-imagenet's training pipeline.

One line and its import differ, and only the crop is decoded.

python examples/ffcv_loader.py train.beton            # fastft's decoder
python examples/ffcv_loader.py train.beton --stock    # FFCV's
python examples/ffcv_loader.py train.beton --augment rand-m9-mstd0.5-inc1
"""

import argparse
from time import perf_counter

import numpy as np
import torch
from ffcv.fields import decoders
from ffcv.fields.basics import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToDevice, ToTensor, ToTorchImage

from fastft.ffcv import Augment, RandomResizedCropRGBImageDecoder
from fastft.recipe.constants import CLIP_MEAN, CLIP_STD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--augment", help="RandAugment or 3-Augment, erasing and normalisation by fastft too")
    args = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    if args.stock:
        decoder = decoders.RandomResizedCropRGBImageDecoder((args.size, args.size))
    else:
        decoder = RandomResizedCropRGBImageDecoder((args.size, args.size))
    mean, std = 255 * np.array(CLIP_MEAN), 255 * np.array(CLIP_STD)
    image = [decoder, RandomHorizontalFlip(), ToTensor(), ToDevice(device), ToTorchImage()]
    if args.augment:
        image[-1:] = [Augment(args.augment, erase_prob=0.25, dtype=torch.float16)]
    elif device.type == "cuda":
        image += [NormalizeImage(mean, std, np.float16)]
    else:
        image.insert(2, NormalizeImage(mean, std, np.float32))
    label = [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(device)]
    loader = Loader(
        args.train,
        args.batch_size,
        num_workers=1,
        order=OrderOption.RANDOM,
        seed=0,
        pipelines={"image": image, "label": label},
    )
    if len(loader) == 0:
        parser.error(f"{args.train} has fewer images than a batch, {args.batch_size}. Give a smaller --batch-size")
    for epoch in range(args.epochs):
        began, count = perf_counter(), 0
        for images, _ in loader:
            count += len(images)
        shape = "x".join(map(str, images.shape[1:]))
        print(f"epoch {epoch}: {count} images {shape} {images.dtype}, {count / (perf_counter() - began):.0f} images/s")


if __name__ == "__main__":
    main()
