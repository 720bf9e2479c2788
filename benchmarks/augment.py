"""Claim: the paper's whole recipe, from bytes in memory to a normalised tensor, makes at least 5 times as many images per
core as timm's transform and DALI CPU (3.4 times from lossless originals); bicubic resize to 224 is at least 7.5 times as fast
as Pillow's; every geometric RandAugment op is at least 4 times as fast as Pillow's, every other op at least 2.5 times.

Setting: one core; 700 real ImageNet training images (FASTFT_IMAGENET_SAMPLE); random resized crop, flip, RandAugment m9 n2
mstd0.5, normalise, erase 25 %. Ours from crop-indexed files, timm, torchvision and DALI from the originals. Single ops at
magnitude 9 on 32 images of 224 x 224. CPU time.  With a GPU also: 256 images in at most twice the time of a copy of their
bytes (not yet measured).
n: 5 rounds, alternating, each over all images; medians with slowest and fastest, ratios round by round.

Run: python benchmarks/augment.py --rounds 5 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("augment", __doc__)
