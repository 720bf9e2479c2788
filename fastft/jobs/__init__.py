"""Whole jobs, from data to result: `fastft.fit` and `fastft.load`, `fastft train` with photographs and refit, `fastft sweep`.

Nothing is imported here: `fastft train` needs no sweep.
"""
