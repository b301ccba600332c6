"""Paired differences: Student's interval, what it does not depend on, when there is none."""

import math
import random
from statistics import mean, stdev

import pytest

from eval.transfer.statistics import against, means, paired_difference, spreads

# Quantiles at 97.5 % by degrees of freedom, from printed tables.
PRINTED = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("freedom", PRINTED)
def test_interval_is_students(freedom: int) -> None:
    drawn = random.Random(freedom)
    values = [drawn.gauss(60, 2) for _ in range(freedom + 1)]
    reference = [drawn.gauss(58, 2) for _ in range(freedom + 1)]
    difference = paired_difference(values, reference)
    pairs = [a - b for a, b in zip(values, reference, strict=True)]
    half = PRINTED[freedom] * stdev(pairs) / math.sqrt(freedom + 1)
    assert difference.interval == pytest.approx(
        (mean(pairs) - half, mean(pairs) + half), abs=1e-3 * half
    )
    turned = paired_difference(reference, values)
    assert turned.interval is not None and difference.interval is not None
    assert turned.mean == -difference.mean
    assert turned.interval == pytest.approx((-difference.interval[1], -difference.interval[0]))


def test_what_is_common_to_a_pair_cancels() -> None:
    """The seeds' own ups and downs are no part of the interval: that is what pairing is for."""
    shift = [0.0, 31.0, -17.0]
    plain = paired_difference([1.0, 2.0, 3.0], [0.5, 1.0, 2.0])
    shifted = paired_difference(
        [v + s for v, s in zip([1.0, 2.0, 3.0], shift, strict=True)],
        [v + s for v, s in zip([0.5, 1.0, 2.0], shift, strict=True)],
    )
    assert plain.interval is not None
    assert shifted.interval == pytest.approx(plain.interval)


def test_no_interval_without_spread() -> None:
    assert paired_difference([60.0], [58.0]).interval is None
    assert paired_difference([60.0, 61.0], [58.0, 59.0]).interval is None
    assert spreads([{"a": 1.0}]) is None
    with pytest.raises(ValueError):
        paired_difference([1.0, 2.0], [1.0])


def test_every_metric_is_compared() -> None:
    own = [{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 4.5}]
    other = [{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}]
    assert means(own) == {"a": 2.0, "b": 4.25}
    assert spreads(own) == pytest.approx({"a": math.sqrt(2), "b": math.sqrt(0.125)})
    difference = against(own, "alone", other)
    assert difference["reference"] == "alone"
    assert {k: d["mean"] for k, d in difference["differences"].items()} == {"a": 1.5, "b": 3.25}
