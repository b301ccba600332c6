"""Mean, spread and paired differences of an initialisation's seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t

Metrics = Mapping[str, float]
LEVEL = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean of paired differences, its 95 % interval by Student's t, and the number of pairs.

    There is no interval where there is one pair, or where all pairs differ by the same: then the
    seeds show no spread from which one could be told.
    """

    mean: float
    interval: tuple[float, float] | None
    pairs: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ends = None if self.interval is None else list(self.interval)
        return {"mean": self.mean, "interval": ends, "pairs": self.pairs}


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> PairedDifference:
    """`values` minus `reference`, pair by pair; both in the same order of seeds."""
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    pairs, middle = len(differences), mean(differences)
    spread = stdev(differences) if pairs > 1 else 0.0
    if spread <= 1e-12:
        return PairedDifference(middle, None, pairs)
    quantile = float(student_t.ppf(0.5 + LEVEL / 2, pairs - 1))
    half = quantile * spread / sqrt(pairs)
    return PairedDifference(middle, (middle - half, middle + half), pairs)


def means(per_seed: Sequence[Metrics]) -> dict[str, float]:
    """Each metric's mean over the seeds."""
    return {key: mean(metrics[key] for metrics in per_seed) for key in per_seed[0]}


def spreads(per_seed: Sequence[Metrics]) -> dict[str, float] | None:
    """Each metric's standard deviation over the seeds (divisor n - 1); None of a single seed."""
    if len(per_seed) < 2:
        return None
    return {key: stdev(metrics[key] for metrics in per_seed) for key in per_seed[0]}


def against(
    per_seed: Sequence[Metrics], reference: str, of_reference: Sequence[Metrics]
) -> dict[str, Any]:
    """Every metric's paired difference to the init named `reference`."""
    differences = {
        key: paired_difference([m[key] for m in per_seed], [m[key] for m in of_reference]).as_dict()
        for key in per_seed[0]
    }
    return {"reference": reference, "differences": differences}


def compare_with_reference(
    init: str, outcomes: Mapping[str, Sequence[Mapping[str, Any]]], reference: str | None
) -> dict[str, Any]:
    """A row of a comparison: means, spreads, each seed's metrics, differences to the reference.

    Args:
        outcomes: init -> per seed {seed, metrics, matched_percent}, all in the same order of seeds.
        reference: the init that the others are compared with, if there is one.
    """
    own = outcomes[init]
    metrics = [outcome["metrics"] for outcome in own]
    difference = None
    if reference is not None and init != reference:
        difference = against(metrics, reference, [o["metrics"] for o in outcomes[reference]])
    return {
        "metrics": means(metrics),
        "spread": spreads(metrics),
        "per_seed": [{"seed": o["seed"], "metrics": o["metrics"]} for o in own],
        "matched_percent": own[0]["matched_percent"],
        "against": difference,
    }
