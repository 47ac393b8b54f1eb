"""Two policies on the same episodes: is there a difference, how large may it be, and is it within a margin?

Pairs in which both succeed or both fail say nothing about which policy is better; McNemar's test looks at the others
(*discordant* pairs) only. The interval is Tango's score interval: it contains a difference exactly when the score test
of that difference does not reject it, so the verdict about a margin is that test too.

What surprises: "non-inferior" and "significantly worse" can be true at once. Then the loss is real and smaller than the
margin that was declared acceptable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.optimize import brentq
from scipy.stats import beta, binomtest, norm

from rsd.errors import SettingError
from rsd.evaluation.statistics import CONFIDENCE, wilson_interval

Verdict = Literal["non-inferior", "inferior", "undecided"]


@dataclass(frozen=True)
class PairedCounts:
    """Pairs of episodes by outcome; `first` is the reference."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def num_pairs(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float | None:
        """Success rate of the second minus that of the first; None without pairs."""
        return (self.only_second - self.only_first) / self.num_pairs if self.num_pairs else None


def mcnemar(counts: PairedCounts) -> float:
    """Two-sided exact p-value of "both are equally good"; 1 without discordant pairs.

    McNemar's test with the binomial distribution of the discordant pairs: Fagerland, Lydersen & Laake, BMC Med. Res.
    Methodol. 13 (2013) 91.
    """
    discordant = counts.only_first + counts.only_second
    return float(binomtest(counts.only_second, discordant, 0.5).pvalue) if discordant else 1.0


def upper_bound(num_failures: int, num_trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided upper bound of a failure probability (Clopper & Pearson, Biometrika 26 (1934) 404); 1 without trials.

    The largest probability at which so few failures still happen in 1 - confidence of all cases.
    """
    if num_failures >= num_trials:
        return 1.0
    return float(beta.ppf(confidence, num_failures + 1, num_trials - num_failures))


def difference_interval(counts: PairedCounts, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired success rates, second - first.

    Source: Statist. Med. 17 (1998) 891.

    Returns:
        (low, high) within -1..1; (-1, 1) without pairs.
    """
    if counts.num_pairs == 0:
        return -1.0, 1.0
    z = float(norm.ppf((1 + confidence) / 2))
    estimate, edge = counts.difference, 1 - 1e-12
    low = brentq(lambda delta: _score(counts, delta) - z, -edge, estimate) if _score(counts, -edge) > z else -1.0
    high = brentq(lambda delta: _score(counts, delta) + z, estimate, edge) if _score(counts, edge) < -z else 1.0
    return low, high


def _score(counts: PairedCounts, delta: float) -> float:
    """Standard score of the observed difference when the true one is `delta`; falls as delta grows."""
    n, gained, lost = counts.num_pairs, counts.only_second, counts.only_first
    distance = gained - lost - n * delta
    if distance == 0:
        return 0.0
    # probability of "only first" that is likeliest given delta: the larger root of a p^2 + b p + c = 0
    a, b, c = 2 * n, (2 * n - gained + lost) * delta - gained - lost, -lost * delta * (1 - delta)
    only_first = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return distance / math.sqrt(n * (2 * only_first + delta * (1 - delta)))


def noninferiority(low: float, high: float, margin: float) -> Verdict:
    """Verdict on "the second policy loses at most `margin`" from the interval of the difference.

    "non-inferior" when the whole interval lies above -margin, "inferior" when it lies below, otherwise "undecided".
    With a 95 % interval either verdict is a one-sided test at 2.5 %.

    Args:
        low, high: `difference_interval`, shares.
        margin: Largest acceptable loss of success rate, a share; declare it before looking.

    Raises:
        SettingError: the margin is not a share between 0 and 1.
    """
    if not 0 < margin < 1:
        raise SettingError(f"the margin is {margin}, expected a share between 0 and 1: 0.02 is two points")
    if low > -margin:
        return "non-inferior"
    return "inferior" if high < -margin else "undecided"


def independent_difference_interval(
    num_success: int, num_trials: int, reference_success: int, reference_trials: int
) -> tuple[float, float]:
    """95 % interval of the difference of two success rates of unrelated episodes, from the Wilson interval of each.

    For a reference of which only the counts are known. Source: Newcombe, Statist. Med. 17 (1998) 873, method 10.
    """
    rate, reference = num_success / num_trials, reference_success / reference_trials
    low, high = wilson_interval(num_success, num_trials)
    reference_low, reference_high = wilson_interval(reference_success, reference_trials)
    difference = rate - reference
    return (
        difference - math.hypot(rate - low, reference_high - reference),
        difference + math.hypot(high - rate, reference - reference_low),
    )
