"""A trial of InfoBatch (arXiv 2303.04947) on rows of study.yaml: python benchmarks/pruning.py SHARE ROW [OPTION ...].

From the second epoch on, a random SHARE of the images whose last loss is below the mean is left out, and the loss of the other
images below the mean counts 1 / (1 - SHARE) times; the last eighth of the epochs has all images. The learning rate follows the
epoch. One process, no resume.
"""

import sys

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

from fastft.optim import set_lr
from fastft.recipe import load_recipe
from fastft.train import loop
from fastft.train.trainer import Trainer

PRUNED = 0.875  # share of the epochs, the paper's delta
KEPT = {0.5: 0.64, 0.3: 0.78}  # share of the images that is trained on; the EMA averages over the same part of the run


class PruningTrainer(Trainer):
    share, images = 0.0, 0

    def _train_epoch(self) -> None:
        s, epoch, whole = self.setup, self.progress.epoch, self.setup.steps_per_epoch
        order, weights_N = s.loader.order.of_epoch(epoch), np.ones(len(s.loader.betons), np.float32)
        if epoch == 0:
            self.last_N = np.full(len(weights_N), np.inf, np.float32)
        elif epoch < PRUNED * s.recipe.schedule.epochs:
            known = np.isfinite(self.last_N)  # the last partial batch of an epoch is dropped
            last_N = np.where(known, self.last_N, self.last_N[known].max())
            is_low_N = last_N < last_N.mean()
            is_drawn_N = np.random.default_rng([s.recipe.train.seed, epoch]).random(len(last_N)) < self.share
            weights_N[is_low_N & ~is_drawn_N] = 1 / (1 - self.share)
            order = order[~(is_low_N & is_drawn_N)[order]]
        batch_size = s.recipe.optim.batch_size
        steps = len(order) // batch_size
        self.step.model.train()
        for step, batch in enumerate(
            s.loader._read_epoch(epoch, order[: steps * batch_size], lambda index: (index, 0))
        ):
            self._lr = s.schedule(int(whole * (epoch + step / steps)))
            set_lr(self.step.optimizer, self._lr)
            with self.step.precision.training_context():
                logits = self.step.forward(batch.images, None).float()
            loss_B = F.cross_entropy(
                logits, batch.labels, label_smoothing=s.recipe.optim.label_smoothing, reduction="none"
            )
            self.last_N[batch.ids] = loss_B.detach().numpy()
            (loss_B * torch.from_numpy(weights_N[batch.ids])).mean().backward()
            self.step.update()
            PruningTrainer.images += batch_size
        self.progress.epoch, self.progress.step = epoch + 1, 0


if __name__ == "__main__":
    share, row, *options = sys.argv[1:]
    PruningTrainer.share = float(share)
    horizon = f"--ema.horizon={0.16 * KEPT[PruningTrainer.share]}"  # 0.16: that of all rows
    recipe = load_recipe(f"benchmarks/study.yaml[{row}]", [*options, horizon])
    loop.Trainer = PruningTrainer  # type: ignore[misc]
    result = loop.train(recipe, Console())
    print(f"{result['last']['ema']['top1']:.2f} % after {PruningTrainer.images:,} images")
