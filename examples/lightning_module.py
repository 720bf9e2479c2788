"""Use fastft's loaders in a LightningModule and a Trainer.

pip install lightning
python examples/lightning_module.py train.beton val.beton
"""

import argparse

import lightning
import timm
import torch
from torch.nn.functional import cross_entropy

from fastft import AsTuples, EvalLoader, TrainLoader


class FineTuning(lightning.LightningModule):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        images, labels = batch
        correct = (self.model(images).argmax(1) == labels).float()
        self.log("top1", 100 * correct.mean(), prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    train = TrainLoader(args.train, "rand-m9-mstd0.5-inc1", args.size, batch_size=args.batch_size)
    val = EvalLoader(args.val, "none", args.size, batch_size=args.batch_size)
    with train, val:
        model = timm.create_model(args.model, num_classes=train.num_classes, img_size=args.size)
        trainer = lightning.Trainer(
            max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0
        )
        # Lightning requests a batch before it is done with the previous one, so the batches are copied
        trainer.fit(FineTuning(model), AsTuples(train, copy=True), AsTuples(val, copy=True))
        print({name: float(value) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
