"""The method of "CLIP Itself is a Strong Fine-tuner" (arXiv 2212.06138) as one plain loop with fastft's parts.

    python examples/paper.py in1k/train.beton in1k/val.beton           # CLIP ViT-B/16 on ImageNet: 85.7 % top-1 after 50 epochs

On the photographs and weights from `make demo`, it takes a few minutes of CPU time:

    python examples/paper.py runs/demo/fine_tuned/data/{train,val}.beton --arch=rcp/demo_vit_s14.json --size=42 --epochs=8 \\
        --weights=.cache/demo/vit-s-14.safetensors --normalise=imagenet --batch-size=32 --lr=5e-4 \\
        --layer-decay=0.7 --scale-min=0.35 --ema-decay=0.28

The loop runs on one device. With the same options, `fastft train final_b16` ends with the same weights, bit for bit on
a CPU in fp32 (see tests/examples). Beyond this file, it has several GPUs and hosts, checkpoints, the fastest step that
fits in memory, and a log, and it chooses the weights to use.
"""

import argparse
import time

import torch
from torch.nn import functional as F

from fastft import AugmentPolicy, EvalLoader, TrainLoader
from fastft.augment.policies import CLIP_MEAN, CLIP_STD
from fastft.data.stage import Output
from fastft.evaluate.scores import evaluate
from fastft.machine.distributed import find_world
from fastft.machine.precision import choose_precision
from fastft.model import Arch, build_classifier, load_arch, load_tower_weights
from fastft.optim import Ema, WarmupCosine, build_adamw, decay_for_batch, layer_groups, optimizer_groups, set_lr

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REFERENCE_BATCH = 2048  # batch size for which the EMA's decay is given


def parse_arguments() -> argparse.Namespace:
    """Parse options.

    Defaults are the paper's ViT-B/16 run (its Table 8, and its reference code where that says more).
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("train")
    add("val")
    add("--arch", default="ViT-B-16-quickgelu")
    add("--weights", default="openai")  # an open_clip tag, or a file
    add("--size", type=int, default=224)
    add("--normalise", choices=("clip", "imagenet"), default="clip")
    add(
        "--policy", default="rand-m9-mstd0.5-inc1"
    )  # timm's string for RandAugment; random erasing of a quarter comes on top
    add("--scale-min", type=float, default=0.08)  # smallest fraction of an image that a crop shows
    add("--epochs", type=int, default=50)
    add("--warmup", type=float, default=0.2)  # fraction of the epochs
    add("--batch-size", type=int, default=REFERENCE_BATCH)
    add("--micro-batch", type=int, default=32)  # images per forward pass: choose the most that fit in memory
    add("--lr", type=float, default=6e-4)  # the head's; it falls by a factor of 0.6 from each block to the one below
    add("--layer-decay", type=float, default=0.6)
    add("--weight-decay", type=float, default=0.05)
    add("--smoothing", type=float, default=0.1)
    add("--ema-decay", type=float, default=0.9998)  # per 2,048 images: over a sixth of the 31,250 steps
    add("--device", default="auto")
    add("--amp", default="auto")  # fp16 on V100, bf16 where the device is faster with it, else fp32
    add("--seed", type=int, default=0)
    add("--save")  # saves the EMA weights as a .pt file
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    world = find_world(args.device)
    device, precision = world.device, choose_precision(args.amp, world.device)

    # Data: only the crop of each image is decoded, and its augmentation is drawn from (seed, epoch, sample id).
    mean, std = (CLIP_MEAN, CLIP_STD) if args.normalise == "clip" else (IMAGENET_MEAN, IMAGENET_STD)
    policy = AugmentPolicy(args.policy, scale=(args.scale_min, 1), mean=mean, std=std)
    output = Output(args.size, device, precision.dtype)
    micro_batch = min(args.micro_batch, args.batch_size)
    accumulation = args.batch_size // micro_batch
    sizes = {"batch_size": args.batch_size, "micro_batch": micro_batch}
    train = TrainLoader(args.train, policy, output, seed=args.seed, **sizes)
    val = EvalLoader(args.val, policy, output, batch_size=micro_batch)

    # Model: CLIP's image tower, a LayerNorm on its patch tokens, their mean, and a linear head that starts close to zero.
    torch.manual_seed(args.seed)
    arch = load_arch(args.arch).at(args.size)
    assert isinstance(arch, Arch), "timm's models: examples/timm_loop.py"
    model = build_classifier(arch, train.num_classes)
    load_tower_weights(model.visual, args.weights, args.arch)
    model.to(device, memory_format=torch.channels_last)

    # Optimiser: AdamW over groups of layers, a learning rate for each step, and the moving average of the weights.
    groups = optimizer_groups(model, layer_groups(model, arch.layers, args.layer_decay, args.weight_decay))
    optimizer = build_adamw(groups, betas=(0.9, 0.999), eps=1e-8)
    warmup, total = (int(epochs * train.steps_per_epoch) for epochs in (args.warmup * args.epochs, args.epochs))
    schedule = WarmupCosine(args.lr, min_lr=1e-6, warmup_steps=warmup, total_steps=total)
    ema = Ema(model, decay_for_batch(args.ema_decay, args.batch_size, REFERENCE_BATCH))
    scaler = precision.scaler()  # does nothing except in fp16

    step, began = 0, time.monotonic()
    with train, val:
        for epoch in range(args.epochs):
            model.train()
            loss_sum = torch.zeros((), device=device)  # stays on the device: reading it would wait
            for k, batch in enumerate(train):
                with precision.autocast():
                    logits = model(batch.images)
                loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=args.smoothing)
                scaler.scale(loss / accumulation).backward()
                loss_sum += loss.detach() / accumulation
                if (k + 1) % accumulation == 0:
                    set_lr(optimizer, schedule(step))  # multiplied by each group's `lr_scale`
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    ema.update()
                    step += 1
            # every image counts exactly once
            raw, averaged = (found.scores for found in evaluate([model, ema.module], val, world, precision))
            print(
                f"epoch {epoch}: loss {loss_sum.item() / train.steps_per_epoch:.4f}, top-1 {raw.top1:.2f} %, EMA "
                f"{averaged.top1:.2f} ± {averaged.top1_error:.2f} %, {time.monotonic() - began:.0f} s"
            )
    if args.save:
        torch.save(ema.module.state_dict(), args.save)


if __name__ == "__main__":
    main()
