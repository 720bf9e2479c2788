"""Benchmarks against what a user would take instead: one harness, alternating rounds, every round kept."""
