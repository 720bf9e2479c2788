"""Claim: with the paper's whole recipe our loader makes more images per second and core than stock FFCV makes with crop and
flip alone, in at most 0.56 of its memory beyond imports (0.66 of its whole peak), and opens a file of ImageNet's length in
at most 0.5 s and 100 MB.

Setting: 700 real ImageNet training images (FASTFT_IMAGENET_SAMPLE), longest side 500, q90, 4:2:0; everybody reads these same
JPEG bytes. Ours gives normalised float32, as timm does; stock FFCV uint8, or float32 where it says normalised. 1, 2, ... all
cores; a cold page cache; a new process per round for first batch, memory and opening.
n: 5 rounds, alternating; medians with slowest and fastest, ratios round by round.

Run: python benchmarks/loader.py --rounds 5 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("loader", __doc__)
