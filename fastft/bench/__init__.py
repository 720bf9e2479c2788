"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded."""

BENCHES = ("augment", "loader", "step", "e2e")
