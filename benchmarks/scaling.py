"""Claim: a queueing model predicts the training loader's images/s on more threads from the figures of one thread, within 5 % for
the whole recipe (for crop and flip alone, up to 17 % too high on two threads); on a host with eight H100, decoding for the GPUs'
own augmentation outruns what they train of B/16.

Setting: 700 real ImageNet training images (FASTFT_IMAGENET_SAMPLE), longest side 500, q90, 4:2:0, and as they are; the whole
recipe, and crop and flip; float32, 224 px. The model's assumptions are in docs/benchmarks.md.
n: 5 rounds; medians with slowest and fastest. Everything beyond this machine's threads is modelled.

Run: python benchmarks/scaling.py --rounds 5 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("scaling", __doc__)
