"""Claim: our training step makes at least as many images per second as timm's in fp32, 1.1 times as many in bf16, and 1.4
times as many with the lower half of our blocks frozen, beside timm's that trains all.

Setting: B/16 at 224 px: forward, label-smoothed loss, backward, AdamW over layer-wise groups, EMA of all trained weights, on
random images in memory; all cores. timm is what its train.py does with the same shape; open_clip is its own image tower under
the same head. Everybody trains everything, the patch embedding included. On a GPU the same command.
n: 7 rounds, alternating, of one step (GPU: 20); medians with slowest and fastest, ratios round by round.

Run: python benchmarks/step.py --rounds 7 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("step", __doc__)
