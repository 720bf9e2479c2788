"""Whether a benchmark's second result differs from its first: a test over the rounds for each figure.

Round k of one file is paired with round k of the other, which came after the same work, so caches and clocks were as
warm. The logarithms of the paired ratios get a t-test. A rank test cannot decide here: with five pairs its smallest
two-sided p-value is 0.06, and with three it is 0.25. As a page has dozens of figures, p-values are adjusted to a false
discovery rate (Benjamini and Hochberg 1995).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fastft.machine.bench_result import Contender

LEVEL = 0.05  # of the tests, and 1 - the interval's confidence
POWER_Z = 1.96 + 0.84  # normal quantiles: a two-sided test at 5 % that finds a difference in 80 % of all cases
LARGEST_LOG = 600.0  # exp of more overflows
MOST_ROUNDS = 1000  # more are not recommended
Outcome = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Paired:
    """Logarithms of the paired ratios: how many times better the second result is, round by round."""

    logs: Sequence[float]

    @classmethod
    def of(cls, first: Contender, last: Contender, better: str) -> "Paired":
        """Pair as many rounds as both have. A result with a round of zero or less has no ratios."""
        pairs = list(zip((r.value for r in first.rounds), (r.value for r in last.rounds), strict=False))
        if any(a <= 0 or b <= 0 for a, b in pairs):
            return cls([])
        sign = 1 if better == "higher" else -1
        return cls([sign * (math.log(b) - math.log(a)) for a, b in pairs])

    @property
    def mean(self) -> float:
        return math.fsum(self.logs) / len(self.logs)

    @property
    def deviation(self) -> float:
        """Standard deviation of one round."""
        return math.sqrt(math.fsum((x - self.mean) ** 2 for x in self.logs) / (len(self.logs) - 1))

    def p_value(self, log_ratio: float = 0.0, below: bool = False) -> float:
        """Return the p-value of the hypothesis that the ratio is exp(log_ratio), or with `below` that or more."""
        from scipy.stats import t  # type: ignore[import-untyped]  # takes half a second to import

        if len(self.logs) < 2:
            return 1.0
        distance, error = self.mean - log_ratio, self.deviation / math.sqrt(len(self.logs))
        if not error:
            return 1.0 if distance == 0 or (below and distance > 0) else 0.0
        score, freedom = distance / error, len(self.logs) - 1
        return float(t.cdf(score, freedom) if below else 2 * t.sf(abs(score), freedom))

    def verdict(self, p_value: float, below: bool | None) -> "Verdict":
        """p_value: adjusted. The interval of the ratio is not adjusted for the number of figures."""
        from scipy.stats import t

        n, low, high, needed = len(self.logs), None, None, None
        if not n:
            return Verdict("cannot tell", 0, below=below)
        outcome: Outcome = "cannot tell" if p_value > LEVEL else "better" if self.mean > 0 else "worse"
        if n > 1:
            half = float(t.ppf(1 - LEVEL / 2, n - 1)) * self.deviation / math.sqrt(n)
            low, high = _ratio(self.mean - half), _ratio(self.mean + half)
            if outcome == "cannot tell" and self.mean:
                enough = (POWER_Z * self.deviation / abs(self.mean)) ** 2
                needed = max(n + 1, math.ceil(min(enough, MOST_ROUNDS + 1)))
        return Verdict(outcome, n, _ratio(self.mean), low, high, p_value, needed, below)


@dataclass(frozen=True)
class Verdict:
    """How many times better the second result is: the geometric mean over the paired rounds, with its 95 % interval.

    rounds_needed: about how many would tell a difference as large as the one seen; None if none was seen.
    below: whether the ratio is significantly below the one that was given; None if none was.
    """

    outcome: Outcome
    rounds: int  # that were paired
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None  # adjusted
    rounds_needed: int | None = None
    below: bool | None = None

    def __str__(self) -> str:
        if self.outcome != "cannot tell":
            return self.outcome
        if self.ratio is None or self.rounds < 2:
            return "cannot tell (one round or none, measure 5)" if self.ratio is not None else "cannot tell"
        if self.rounds_needed is None:
            return "cannot tell (the rounds are equal)"
        many = self.rounds_needed > MOST_ROUNDS
        return f"cannot tell (would need {f'more than {MOST_ROUNDS:,}' if many else f'about {self.rounds_needed:,}'} rounds)"


def verdicts(pairs: Sequence[Paired], threshold: float | None = None) -> list[Verdict]:
    """Decide for each figure whether it is better or worse, or too uncertain to tell.

    threshold: also decide whether a figure is significantly below this ratio.
    """
    from scipy.stats import false_discovery_control

    def adjusted(p_values: Iterator[float]) -> list[float]:
        """Adjust p-values so that among those of at most LEVEL, at most this share is expected to be false."""
        return false_discovery_control(list(p_values)).tolist() if pairs else []

    changed = adjusted(p.p_value() for p in pairs)
    below: Sequence[bool | None] = [None] * len(pairs)
    if threshold is not None:
        below = [p <= LEVEL for p in adjusted(p.p_value(math.log(threshold), below=True) for p in pairs)]
    return [p.verdict(value, is_below) for p, value, is_below in zip(pairs, changed, below, strict=True)]


def _ratio(log_ratio: float) -> float:
    return math.exp(min(max(log_ratio, -LARGEST_LOG), LARGEST_LOG))
