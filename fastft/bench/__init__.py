"""Benchmarks against what a user would take instead: one harness, alternating rounds, every round kept."""

BENCHES = ("decode", "augment", "loader", "convert", "step", "e2e")
