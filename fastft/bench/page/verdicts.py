"""Whether a benchmark's second result differs from its first: a test over the rounds for each figure.

Round k of one file is paired with round k of the other, which came after the same work, so caches and clocks were as
warm. The logarithms of the paired ratios get a t-test. A rank test cannot decide here: with five pairs its smallest
two-sided p-value is 0.06, and with three it is 0.25. As a page has dozens of figures, p-values are adjusted to a false
discovery rate (Benjamini and Hochberg 1995).
"""

import math
from collections.abc import Sequence
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

    @property
    def is_testable(self) -> bool:
        return len(self.logs) > 1

    def p_value(self, log_ratio: float = 0.0, below: bool = False) -> float:
        """Return the p-value of the hypothesis that the ratio is exp(log_ratio), or with `below` that or more."""
        from scipy.stats import t  # type: ignore[import-untyped]  # takes half a second to import

        if not self.is_testable:
            return 1.0
        distance, error = self.mean - log_ratio, self.deviation / math.sqrt(len(self.logs))
        if not error:
            return 1.0 if distance == 0 or (below and distance > 0) else 0.0
        score, freedom = distance / error, len(self.logs) - 1
        return float(t.cdf(score, freedom) if below else 2 * t.sf(abs(score), freedom))

    def interval(self) -> tuple[float, float] | None:
        """Return the confidence interval of the ratio, not adjusted for the number of figures."""
        from scipy.stats import t

        if not self.is_testable:
            return None
        n = len(self.logs)
        half = float(t.ppf(1 - LEVEL / 2, n - 1)) * self.deviation / math.sqrt(n)
        return _ratio(self.mean - half), _ratio(self.mean + half)

    def rounds_needed(self) -> int | None:
        """Return about how many rounds would tell a difference as large as the one seen; None if none was seen."""
        if not self.is_testable or not self.mean:
            return None
        needed = (POWER_Z * self.deviation / abs(self.mean)) ** 2
        return max(len(self.logs) + 1, math.ceil(min(needed, MOST_ROUNDS + 1)))


@dataclass(frozen=True)
class Verdict:
    """How many times better the second result is: the geometric mean over the paired rounds, with its 95 % interval.

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
    changed = adjusted([p.p_value() for p in pairs])
    below = [None] * len(pairs) if threshold is None else [
        p <= LEVEL for p in adjusted([p.p_value(math.log(threshold), below=True) for p in pairs])
    ]  # fmt: skip
    return [_verdict(p, value, is_below) for p, value, is_below in zip(pairs, changed, below, strict=True)]


def _verdict(paired: Paired, p_value: float, below: bool | None) -> Verdict:
    if not paired.logs:
        return Verdict("cannot tell", 0, below=below)
    outcome: Outcome = "cannot tell" if p_value > LEVEL else "better" if paired.mean > 0 else "worse"
    low, high = paired.interval() or (None, None)
    needed = paired.rounds_needed() if outcome == "cannot tell" else None
    return Verdict(outcome, len(paired.logs), _ratio(paired.mean), low, high, p_value, needed, below)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that among those of at most LEVEL, at most this share is expected to be false."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)] if p_values else []


def _ratio(log_ratio: float) -> float:
    return math.exp(min(max(log_ratio, -LARGEST_LOG), LARGEST_LOG))
