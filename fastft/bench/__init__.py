"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded.

`fastft bench NAME` runs the measures in `fastft/bench/NAME_bench.py`. Each has a key, such as loader.cold, which you
can also give as NAME. A peer is a file in `contenders/`.
"""

BENCHES = ("decode", "augment", "loader", "ffcv", "convert", "step", "e2e")
