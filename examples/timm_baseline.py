"""The loop that `fastft train photos` is measured against: what one writes today with timm, scikit-learn and PyTorch.

Its head starts as logistic regression on the frozen model's features. It trains once with and once without augmentation on
four fifths of the training images. What is better on the remaining fifth is trained again, on all of them. Its values are common
ones.

python examples/timm_baseline.py photos/train photos/test --model vit_small_patch14_dinov2 --image-size 56 --epochs 10

--trial-epochs 3 --epochs 21 spends less on the trials, --image-sizes 42 84 also tries a second size (with fewer epochs, for the
same time), --flips mirrors images without augmentation too, and --precision fp32 does not use bf16.

Both folders have a folder per class. The script prints the top-1 accuracy on the test images. It needs timm, torchvision
and scikit-learn.
"""

import argparse

import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from timm.data import auto_augment, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

LR, WEIGHT_DECAY, LAYER_DECAY, WARMUP, SMOOTHING, CLIP = 3e-4, 0.05, 0.7, 0.1, 0.1, 1.0
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1)  # inverse, as scikit-learn counts them
AUGMENTATION = {"scale": (0.5, 1), "auto_augment": "rand-m9-mstd0.5-inc1"}

posterize = auto_augment.posterize  # timm asks for 0 bits at magnitude 10, which Pillow 13 refuses
auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **options: posterize(image, max(1, bits))

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def train(options: argparse.Namespace) -> torch.Tensor:
    """Choose the augmentation, train, and return whether each test image is classified correctly, bool (N,)."""
    labels = ImageFolder(options.train).targets
    fitted, held_out = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=options.seed)
    sizes = options.image_sizes or [options.image_size]
    trials, ways = {}, {}
    for size in sizes:
        sized = argparse.Namespace(**vars(options) | {"image_size": size})
        unchanged, test, by_name = datasets(sized)
        for way, images in by_name.items():
            name = way if len(sizes) == 1 else f"{way}, {size} px"
            print(f"augmentation: {name}")
            trial = epochs_at(size, sizes, options.trial_epochs or options.epochs)
            model = fit(sized, trial, Subset(images, fitted), Subset(unchanged, fitted), len(unchanged.classes))
            trials[name] = recognised(model, Subset(unchanged, held_out), options).float().mean().item()
            print(f"{100 * trials[name]:.1f} % of {len(held_out)} training images that were held out")
            ways[name] = sized, images, unchanged, test
    best = max(trials, key=lambda name: trials[name])
    print(f"all training images, augmentation: {best}")
    sized, images, unchanged, test = ways[best]
    epochs = epochs_at(sized.image_size, sizes, options.epochs)
    return recognised(fit(sized, epochs, images, unchanged, len(unchanged.classes)), test, options)


def datasets(options: argparse.Namespace) -> tuple[ImageFolder, ImageFolder, dict[str, ImageFolder]]:
    """Return (training images as they are, test images, training images by the name of their augmentation)."""
    config = timm.get_pretrained_cfg(options.model)
    seen = {"input_size": (3, options.image_size, options.image_size), "mean": config.mean, "std": config.std}
    plain = create_transform(**seen, crop_pct=1.0, interpolation="bicubic")
    augmented = create_transform(**seen, is_training=True, interpolation="bicubic", **AUGMENTATION)
    flipped = transforms.Compose([transforms.RandomHorizontalFlip(), plain])
    unchanged = ImageFolder(options.train, plain)
    none = ImageFolder(options.train, flipped) if options.flips else unchanged
    ways = {"RandAugment and crops": ImageFolder(options.train, augmented), "none": none}
    return unchanged, ImageFolder(options.test, plain), ways


def epochs_at(size: int, sizes: list[int], epochs: int) -> int:
    """Return the epochs at a size that take about the time of `epochs` at the smallest one."""
    return max(1, round(epochs * (min(sizes) / size) ** 2))


def fit(options: argparse.Namespace, epochs: int, images: Dataset, unchanged: Dataset, classes: int) -> nn.Module:
    """Fit the head on the unchanged images, then train everything on the augmented ones."""
    torch.manual_seed(options.seed)
    model = timm.create_model(
        options.model, pretrained=True, pretrained_cfg_overlay={"file": options.weights} if options.weights else None,
        num_classes=classes, img_size=options.image_size, global_pool="avg", fc_norm=False,
    ).to(DEVICE)  # fmt: skip
    fit_head(model, unchanged)
    batch = min(options.batch_size, len(images))
    loader = DataLoader(images, batch, shuffle=True, drop_last=True, num_workers=options.workers)
    optimizer = create_optimizer_v2(model, "adamw", lr=LR, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY)
    steps = epochs * len(loader)
    schedule = CosineLRScheduler(optimizer, steps, warmup_t=round(WARMUP * steps), t_in_epochs=False)
    step = 0
    schedule.step_update(step)
    for epoch in range(epochs):
        model.train()
        for batch, labels in loader:
            with autocast(options.precision):
                loss = F.cross_entropy(model(batch.to(DEVICE)), labels.to(DEVICE), label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1
            schedule.step_update(step)
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model


@torch.inference_mode()
def fit_head(model: nn.Module, images: Dataset) -> None:
    """Start the head as logistic regression on the model's features, whose penalty is chosen by cross-validation."""
    model.eval()
    batches = [
        (model.forward_head(model.forward_features(b.to(DEVICE)), pre_logits=True), y)
        for b, y in DataLoader(images, 64)
    ]
    features, labels = (torch.cat(column).cpu().double() for column in zip(*batches, strict=True))
    deviation, mean = torch.std_mean(features, dim=0)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": PENALTIES}, scoring="neg_log_loss", cv=5)
    fitted = search.fit((features - mean) / (deviation + 1e-6), labels.int()).best_estimator_
    weight = torch.from_numpy(fitted.coef_) / (deviation + 1e-6)
    bias = torch.from_numpy(fitted.intercept_) - weight @ mean
    if len(bias) == 1:  # scikit-learn has one output for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    model.get_classifier().weight.copy_(weight)
    model.get_classifier().bias.copy_(bias)


@torch.inference_mode()
def recognised(model: nn.Module, images: Dataset, options: argparse.Namespace | None = None) -> torch.Tensor:
    """Return whether each image is classified correctly."""
    model.eval()
    with autocast("auto" if options is None else options.precision):
        return torch.cat([model(b.to(DEVICE)).argmax(1).cpu() == labels for b, labels in DataLoader(images, 64)])


def autocast(precision: str = "auto") -> torch.autocast:
    """Compute in bf16 where the hardware does, unless precision is "fp32"."""
    fast = (
        torch.cuda.is_bf16_supported() if DEVICE == "cuda" else torch.cpu.get_capabilities().get("avx512_bf16", False)
    )
    return torch.autocast(DEVICE, torch.bfloat16, enabled=fast and precision == "auto")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--model", default="vit_base_patch16_clip_224.openai")
    parser.add_argument("--weights", help="weights file to use instead of timm's pretrained weights")
    parser.add_argument("--trial-epochs", type=int, help="epochs of a trial, if not --epochs")
    parser.add_argument("--image-sizes", type=int, nargs="+", help="sizes to try, instead of --image-size")
    parser.add_argument("--flips", action="store_true", help="mirror images without augmentation too")
    parser.add_argument("--precision", choices=("auto", "fp32"), default="auto")
    for name, value in {"image-size": 224, "epochs": 10, "batch-size": 32, "workers": 4, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    right = train(parse())
    print(f"top-1 {100 * right.float().mean():.2f} % of {len(right)} test images")
