"""Compare ridge heads (`probe_*`) with heads trained by gradient descent, on frozen features of a real tower.

The published linear heads of DINOv2 and DINOv3 were trained by SGD on augmented images. `fastft train probe_*` fits a
ridge head to each image once, as it is seen in evaluation. Here both kinds of head read the same features, from the
demo's DINOv2-type ViT-S/14 on CIFAR-10. Learning rates and penalties are chosen on a tenth of the training images
(ridge: by cross-validation), never on the test images. A line in results/probe.jsonl is for one number of training
images, pooling and seed, with the top-1 of every head.

Run: python benchmarks/probe.py cifar_train.beton cifar_test.beton --weights vit-s-14.safetensors
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from photo_sets import SETS
from records import FOLDER, Row, append, combined, lines
from torch import Tensor, nn
from torch.nn import functional as F

from beton_tools.base.console import markdown_table
from beton_tools.read.beton_set import BetonSet
from fastft import AugmentPolicy, EvalLoader, TrainLoader, load_recipe
from fastft.evaluate.ridge import LabelledFeatures, fit_ridge_head
from fastft.model import ImageClassifier
from fastft.model.recipe_model import build_model

SIZE, POOLS = 42, ("class", "patches", "class+patches")
IMAGES, SEEDS = (500, 2000), (0, 1)
TESTED = 5000  # out of the 10,000 test images
VIEWS = 4  # augmented views per image: crops with 35 to 100 % of the area, flipped or not
RATES = tuple(10.0**e for e in np.arange(-3, 0.01, 0.5))  # learning rates for SGD, on standardised features
PENALTIES = tuple(10.0**e for e in np.arange(-6, 0.01, 1))  # for logistic regression
EPOCHS, BATCH, HELD_OUT = 50, 128, 10
RIDGE = "ridge"

Head = Callable[[Tensor], Tensor]  # features (B, D) to logits (B, K)


def features(model: ImageClassifier, loader: EvalLoader | TrainLoader) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """Return (class token and mean patch token beside each other, labels, ids) for every batch in one pass."""
    with torch.inference_mode():
        for batch in loader:
            yield model.pooled(batch.images).clone(), batch.labels.clone(), batch.ids.copy()


def gather(batches: Iterator[tuple[Tensor, Tensor, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Return features and labels in the order of the ids."""
    x, y, ids = zip(*batches, strict=True)
    order = torch.from_numpy(np.concatenate(ids)).argsort()
    return torch.cat(x)[order], torch.cat(y)[order]


def train_sgd(views_VND: Tensor, y_N: Tensor, classes: int, rate: float, seed: int) -> Head:
    """Train a linear head by SGD with momentum and a cosine. Epoch e reads view e mod V of each image."""
    mean_D, std_D = views_VND.mean((0, 1)), views_VND.std((0, 1)) + 1e-6
    head = nn.Linear(views_VND.shape[2], classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), rate, momentum=0.9)
    steps = EPOCHS * -(-len(y_N) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        x_ND = (views_VND[epoch % len(views_VND)] - mean_D) / std_D
        for rows in torch.randperm(len(y_N), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(x_ND[rows]), y_N[rows]).backward()
            optimizer.step()
            schedule.step()
    return lambda x: head((x - mean_D) / std_D)


def train_logistic(x_ND: Tensor, y_N: Tensor, classes: int, penalty: float) -> Head:
    """Fit logistic regression by L-BFGS, with a penalty on the squared weights."""
    mean_D, std_D = x_ND.mean(0), x_ND.std(0) + 1e-6
    x_ND = (x_ND - mean_D) / std_D
    weight, bias = torch.zeros(classes, x_ND.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x_ND, weight, bias), y_N) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda x: F.linear((x - mean_D) / std_D, weight, bias)


def top1(head: Head, x_ND: Tensor, y_N: Tensor) -> float:
    with torch.no_grad():
        return 100 * (head(x_ND).argmax(1) == y_N).float().mean().item()


def best(
    values: tuple[float, ...], fit: Callable[[float, Tensor], Head], x_ND: Tensor, y_N: Tensor, held: Tensor
) -> Head:
    """Choose the value whose head, fitted without the held-out images, is best on them.

    Return its head for all images.
    """
    scores = [top1(fit(value, ~held), x_ND[held], y_N[held]) for value in values]
    return fit(values[int(np.argmax(scores))], torch.ones_like(held))


def compare(
    plain_ND: Tensor, views_VND: Tensor, y_N: Tensor, test: tuple[Tensor, Tensor], seed: int
) -> dict[str, float]:
    """Return test top-1 by kind of head."""
    classes = int(test[1].max()) + 1
    held = torch.zeros(len(y_N), dtype=torch.bool)
    held[torch.randperm(len(y_N), generator=torch.Generator().manual_seed(seed))[: len(y_N) // HELD_OUT]] = True
    ridge = fit_ridge_head(LabelledFeatures(plain_ND.numpy(), y_N.numpy(), classes, seed))
    weight, bias = torch.from_numpy(ridge.weight_KD), torch.from_numpy(ridge.bias_K)
    heads: dict[str, Head] = {
        RIDGE: lambda x: F.linear(x, weight, bias),
        "logistic regression": best(
            PENALTIES, lambda p, rows: train_logistic(plain_ND[rows], y_N[rows], classes, p), plain_ND, y_N, held
        ),
        "SGD": best(
            RATES, lambda r, rows: train_sgd(plain_ND[None, rows], y_N[rows], classes, r, seed), plain_ND, y_N, held
        ),
        "SGD, augmented": best(
            RATES, lambda r, rows: train_sgd(views_VND[:, rows], y_N[rows], classes, r, seed), plain_ND, y_N, held
        ),
    }
    return {name: round(top1(head, *test), 2) for name, head in heads.items()}


def table() -> str:
    """Tabulate the top-1 of every head, and how far the ridge head is behind the best other one.

    Means over the seeds.
    """
    runs = lines("probe")
    rows, gaps = [], []
    for images, pool in dict.fromkeys((run["images"], run["pool"]) for run in runs):
        mine = [run["top1"] for run in runs if (run["images"], run["pool"]) == (images, pool)]
        top1 = {head: fmean(each[head] for each in mine) for head in mine[0]}
        behind = top1[RIDGE] - max(value for head, value in top1.items() if head != RIDGE)
        gaps.append(behind)
        rows.append([f"{images:,}", pool, *(f"{value:.1f}" for value in top1.values()), f"{behind:+.1f}"])
    head = ["training images", "`model.pool`", *runs[0]["top1"], "ridge against the best other"]
    seeds = len({run["seed"] for run in runs})
    return (
        f"{markdown_table(head, rows, 2)}\n\nTop-1 on {TESTED:,} test images of CIFAR-10 (standard error 0.5 points; heads share "
        f"the images). The tower is the demo's DINOv2-type ViT-S/14 at {SIZE} px, frozen. Means of {seeds} draws of the training "
        f"images, {runs[-1]['date']}. The ridge head is {-max(gaps):.1f} to {-min(gaps):.1f} points behind."
    )


def attentive() -> str:
    """Tabulate linear probes, linear heads and attentive heads that were trained on a frozen tower, by set.

    The lines are from photo_runs.py.
    """
    runs = lines("attentive")
    gains, rows, last = [], [], runs[-1]
    seeds = {run["seed"] for run in runs}
    for name in dict.fromkeys(run["set"] for run in runs):
        mine = [run for run in runs if run["set"] == name]
        heads = [
            [run for run in mine if ("pool=attention" in run["method"]) == is_attentive]
            for is_attentive in (False, True)
        ]
        ridge = fmean(run["probe"] for run in heads[0])
        linear, attention = (fmean(100 * fmean(run["right"]) for run in of_head) for of_head in heads)
        gains.append(attention - max(ridge, linear))
        images, tested = mine[0]["images"]
        row = [f"{ridge:.1f}", f"{linear:.1f}", f"{attention:.1f}", f"{gains[-1]:+.1f}"]
        rows.append([SETS[name].title, f"{images:,}", f"{tested:,}", *row])
    head = ["dataset", "training images", "test images", "ridge", "trained linear head", "attentive head"]
    error = f"{fmean(gains):+.1f} ± {stdev(gains) / len(gains) ** 0.5:.1f}"
    return (
        f"{markdown_table([*head, 'over the better linear one'], rows, 1)}\n\nTop-1 on the test images, means of "
        f"{len(seeds)} seeds. The tower is the demo's DINOv2-type ViT-S/14 at {last['image_size']} px, frozen. Both trained "
        f"heads start from the ridge head, and see {last['epochs']} epochs of the same crops and flips. Mean gain over the "
        f"datasets: {error} points ({last['processor']}, {last['date']})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="vit-s-14.safetensors, which make demo writes")
    args = parser.parse_args()
    options = [f"weights={args.weights}", f"image_size={SIZE}", "pool=class+patches"]
    recipe = load_recipe("demo", [f"--model.{option}" for option in options])
    model = build_model(recipe).eval()
    mean, std = recipe.augment.mean, recipe.augment.std
    plain = AugmentPolicy("none", mean=mean, std=std)
    random = AugmentPolicy("none", mean=mean, std=std, scale=(0.35, 1.0), erase_prob=0)
    tested = np.random.default_rng(0).permutation(len(BetonSet.open(args.test)))[:TESTED]
    test = gather(features(model, EvalLoader(args.test, plain, SIZE, batch_size=250, indices=np.sort(tested))))
    train = BetonSet.open(args.train)
    most = np.sort(np.random.default_rng(0).permutation(len(train))[: max(IMAGES)])
    x_ND, y_N = gather(features(model, EvalLoader(train, plain, SIZE, batch_size=250, indices=most)))
    loader = TrainLoader(train, random, SIZE, batch_size=250, subset=most)
    views_VND = torch.stack([gather(features(model, loader))[0] for _ in range(VIEWS)])
    width = x_ND.shape[1] // 2
    parts = dict(zip(POOLS, (slice(0, width), slice(width, None), slice(None)), strict=True))

    def measure(images: int, seed: int, pool: str) -> Iterator[Row]:
        rows, part = torch.randperm(len(y_N), generator=torch.Generator().manual_seed(seed))[:images], parts[pool]
        views, beside = views_VND[:, rows][:, :, part], (test[0][:, part], test[1])
        yield {"top1": compare(x_ND[rows][:, part], views, y_N[rows], beside, seed), "size": SIZE}

    append(FOLDER / "probe.jsonl", combined(images=IMAGES, seed=SEEDS, pool=POOLS), measure)


if __name__ == "__main__":
    main()
