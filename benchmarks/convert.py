"""Claim: keeping the coefficients of JPEGs that fit, and adding the crop index to them, converts at least 1.9 times as many
images per second as FFCV's DatasetWriter, which decodes and re-encodes (2.1 times per CPU second); 1.6 times where the longest
side is at most 500, as the few larger images are decoded, shrunk and encoded.

Setting: 700 real ImageNet training images (FASTFT_IMAGENET_SAMPLE) listed twice, in the page cache; both writers with
as many processes as cores; JPEG quality 90 where something is encoded; every size kept, and the longest side at most 500.
n: 5 rounds, alternating; medians with slowest and fastest, ratios round by round.

Run: python benchmarks/convert.py --rounds 5 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("convert", __doc__)
