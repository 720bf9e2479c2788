"""Claim: decoding just the crop takes at least 2.7 times as many images per core as stock FFCV's random-resized-crop decoder
alone on the same file (longest side 500, q90, 4:2:0), whose time includes its resize to 224, and 3.6 times as many as its
Loader; on lossless originals 2.2 and 2.8 times, and 1.2 times as many as DALI's fused decoder.

Setting: one core; 700 real ImageNet training images (FASTFT_IMAGENET_SAMPLE) in memory or the page cache; random resized
crops with scale 0.08-1 and ratio 3/4-4/3 (0.42 of the pixels on average); images per second of CPU time.
n: 5 rounds, alternating, each over all images; medians with slowest and fastest, ratios round by round.

Run: python benchmarks/decode.py --rounds 5 [--out benchmarks/results]
"""

from fastft.cli.cmd_bench import script

if __name__ == "__main__":
    script("decode", __doc__)
