"""Shown: where the time of training goes from file to updated weights, what limits here, and (modelled) what 1, 4 and 8
V100, A100 and H100 would ask of the loader.

Setting: on a CPU the smallest ViT (Ti/16, 224 px, batch 32, at most 192 images), on a GPU B/16, or any --recipe; an epoch over
the images by the trainer itself, beside the loader alone and timm's loader with timm's step.
n: 5 rounds, alternating, of one epoch; medians with slowest and fastest, ratios round by round.

Run: python benchmarks/e2e.py --rounds 5 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("e2e", __doc__)
