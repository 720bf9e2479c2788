"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded.

`fastft bench NAME` runs the measures that `fastft/bench/NAME_bench.py` declares in its `PLANS`. Each has a key, such as
loader.cold, which you can also give as NAME. A peer is a file in `contenders/`.
"""

from pathlib import Path

BENCHES = ("decode", "augment", "loader", "ffcv", "convert", "step", "e2e")
PEERS = tuple(sorted(file.stem for file in (Path(__file__).parent / "contenders").glob("[a-z]*.py")))
