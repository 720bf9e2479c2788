"""Use fastft's loader and augmentation in a plain PyTorch loop, with a state that resumes in the middle of an epoch.

python examples/plain_loop.py train.beton val.beton
"""

import argparse
from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy

from fastft import EvalLoader, TrainLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--state", type=Path, default=Path("state.pt"))
    args = parser.parse_args()

    train = TrainLoader(args.train, "rand-m9-mstd0.5-inc1", args.size, batch_size=args.batch_size)
    val = EvalLoader(args.val, "none", args.size, batch_size=args.batch_size)
    with train, val:
        model = timm.create_model(args.model, num_classes=train.num_classes, img_size=args.size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        if args.state.exists():
            state = torch.load(args.state, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            train.load_state_dict(state["loader"])
            print(
                f"{args.state}: {state['loader']['epoch']} of {args.epochs} epochs are trained. Delete it to start anew"
            )
        while (epoch := train.state_dict()["epoch"]) < args.epochs:
            model.train()
            for batch in train:
                loss = cross_entropy(model(batch.images), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            objects = {"model": model, "optimizer": optimizer, "loader": train}
            torch.save({name: value.state_dict() for name, value in objects.items()}, args.state)
            model.eval()
            with torch.inference_mode():
                correct = sum(int((model(b.images).argmax(1) == b.labels).sum()) for b in val)
            print(f"epoch {epoch}: loss {loss.item():.4f}, top-1 {100 * correct / val.num_samples:.1f} %")


if __name__ == "__main__":
    main()
