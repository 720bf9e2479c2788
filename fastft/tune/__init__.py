"""`fastft tune`: search the learning rates of head and tower by successive halving, within a time budget."""

from fastft.tune.search import tune

__all__ = ["tune"]
