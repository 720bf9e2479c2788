"""Use fastft's loader with timm's optimizer factory, scheduler, mixup, EMA and meters, as in timm's train.py.

python examples/timm_loop.py train.beton val.beton
"""

import argparse

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, ModelEmaV3, accuracy

from fastft import AsTuples, EvalLoader, TrainLoader


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
        optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05, layer_decay=0.6)
        scheduler = CosineLRScheduler(optimizer, t_initial=args.epochs * len(train), t_in_epochs=False)
        mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=train.num_classes)
        ema = ModelEmaV3(model, decay=0.99, use_warmup=True)
        updates = 0
        for epoch in range(args.epochs):
            model.train()
            losses = AverageMeter()
            for images, labels in AsTuples(train):
                images, targets = mixup(images, labels)
                loss = SoftTargetCrossEntropy()(model(images), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                updates += 1
                ema.update(model, step=updates)
                scheduler.step_update(updates)
                losses.update(loss.item(), len(images))
            top1 = AverageMeter()
            ema.module.eval()
            with torch.inference_mode():
                for images, labels in AsTuples(val):
                    top1.update(accuracy(ema.module(images), labels)[0].item(), len(images))
            print(f"epoch {epoch}: loss {losses.avg:.4f}, EMA top-1 {top1.avg:.1f} %")


if __name__ == "__main__":
    main()
