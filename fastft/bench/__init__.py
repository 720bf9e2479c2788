"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded.

`fastft bench NAME` runs the measures of `fastft/bench/NAME_bench.py`; each has a key, such as loader.cold, which can be given as
NAME too. A peer is a file in `contenders/`.
"""

BENCHES = ("decode", "augment", "loader", "ffcv", "convert", "step", "e2e")
