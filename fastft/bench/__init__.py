"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded."""

BENCHES = ("decode", "augment", "loader", "convert", "step", "e2e")
