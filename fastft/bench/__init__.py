"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded."""

BENCHES = ("loader", "step", "e2e")
