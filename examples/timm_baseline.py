"""The plain loop that `fastft train photos` is measured against: timm and PyTorch.

It has one set of usual values, which is not tuned.

python examples/timm_baseline.py photos/train photos/test --model vit_small_patch14_dinov2 --image-size 56 --epochs 10

Both folders have a folder per class. The script prints the top-1 accuracy on the test images. It needs timm and
torchvision.
"""

import argparse

import timm
import torch
from timm.data import auto_augment, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

LR, WEIGHT_DECAY, LAYER_DECAY, WARMUP, SMOOTHING, CLIP = 3e-4, 0.05, 0.7, 0.1, 0.1, 1.0

posterize = auto_augment.posterize  # timm asks for 0 bits at magnitude 10, which Pillow 13 refuses
auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **options: posterize(image, max(1, bits))


def train(options: argparse.Namespace) -> torch.Tensor:
    """Train, and return whether each test image is classified correctly, bool (N,)."""
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = timm.get_pretrained_cfg(options.model)
    seen = {"input_size": (3, options.image_size, options.image_size), "mean": config.mean, "std": config.std}
    augmented = create_transform(**seen, is_training=True, scale=(0.5, 1), auto_augment="rand-m9-mstd0.5-inc1")
    images = ImageFolder(options.train, augmented)
    test = ImageFolder(options.test, create_transform(**seen, crop_pct=1.0, interpolation="bicubic"))
    model = timm.create_model(
        options.model, pretrained=True, pretrained_cfg_overlay={"file": options.weights} if options.weights else None,
        num_classes=len(images.classes), img_size=options.image_size, global_pool="avg", fc_norm=False,
    ).to(device)  # fmt: skip
    torch.nn.init.trunc_normal_(model.get_classifier().weight, std=0.02)
    loader = DataLoader(images, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers)
    optimizer = create_optimizer_v2(model, "adamw", lr=LR, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    steps = options.epochs * len(loader)
    schedule = CosineLRScheduler(optimizer, steps, warmup_t=round(WARMUP * steps), t_in_epochs=False)
    step = 0
    schedule.step_update(step)
    for epoch in range(options.epochs):
        model.train()
        for batch, labels in loader:
            loss = F.cross_entropy(model(batch.to(device)), labels.to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1
            schedule.step_update(step)
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    model.eval()
    with torch.inference_mode():
        found = [model(b.to(device)).argmax(1).cpu() == labels for b, labels in DataLoader(test, 64)]
    return torch.cat(found)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--model", default="vit_base_patch16_clip_224.openai")
    parser.add_argument("--weights", help="a file, in the place of timm's pretrained weights")
    for name, value in {"image-size": 224, "epochs": 10, "batch-size": 32, "workers": 4, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    right = train(parse())
    print(f"top-1 {100 * right.float().mean():.2f} % of {len(right)} test images")
