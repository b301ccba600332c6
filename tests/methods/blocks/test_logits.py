"""Standardised logits against the formula, and where it has no value."""

import statistics

import pytest
import torch

from compress.methods.blocks.logits import standardized


def test_equals_the_formula() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    for row, got in zip(logits.tolist(), standardized(logits).tolist(), strict=True):
        mean, deviation = statistics.fmean(row), statistics.stdev(row)
        assert got == pytest.approx([(z - mean) / (1e-7 + deviation) for z in row], rel=1e-12)


def test_no_offset_and_no_length_shows() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(
        standardized(3 * logits + 2), standardized(logits), rtol=1e-6, atol=0
    )


def test_equal_logits_are_zero_with_a_finite_gradient() -> None:
    logits = torch.ones(2, 4, requires_grad=True)
    got = standardized(logits)
    assert torch.equal(got, torch.zeros(2, 4))
    (gradient,) = torch.autograd.grad(got[:, 0].sum(), logits)
    assert torch.isfinite(gradient).all()
