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


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-6, 1e-3, 1.0])
def test_nearly_equal_logits_have_a_small_gradient(size: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (size * torch.randn(2, 4, generator=draw)).requires_grad_()
    got = standardized(logits)
    assert size or torch.equal(got, torch.zeros(2, 4))
    (gradient,) = torch.autograd.grad(got[:, 0].sum(), logits)
    assert float(gradient.abs().max()) < 3e3
