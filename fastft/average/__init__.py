"""Averages of weights: between the start and the end of a run (WiSE-FT), and over several runs (soups)."""
