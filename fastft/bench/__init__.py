"""Benchmarks against alternatives: one harness, alternating rounds, every round recorded."""

BENCHES = ("decode", "augment", "loader", "step", "e2e")
