"""The shortest mixture of gradients against another solver, its conditions and its limits."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from compress.methods.blocks.min_norm import min_norm_weights, minimise_on_simplex

# Numbers of gradients, of their elements (fewer: the program has many minima), and the bound.
SIZES = [(2, 9, 1.0), (3, 9, 0.6), (3, 2, 0.6), (5, 40, 0.3), (8, 4, 0.2), (8, 30, 1.0)]


def _gradients(count: int, width: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Gradients whose lengths differ by factors of about 10^spread."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(width, generator=generator, dtype=torch.float64)
    own = torch.randn(count, width, generator=generator, dtype=torch.float64)
    lengths = 10 ** (spread * torch.randn(count, 1, generator=generator, dtype=torch.float64))
    return 1e-4 * lengths * (own + 0.5 * shared)


@pytest.mark.parametrize(("count", "width", "largest"), SIZES)
def test_no_mixture_is_shorter_than_that_of_an_independent_solver(
    count: int, width: int, largest: float
) -> None:
    for seed in range(20):
        gradients = _gradients(count, width, seed, spread=0.3)
        found = min_norm_weights(gradients, largest).numpy()
        assert found.sum() == pytest.approx(1, abs=1e-12)
        assert found.min() >= 0 and found.max() <= largest
        gram = (gradients @ gradients.T).numpy()
        gram /= gram.diagonal().max()
        solved = minimize(
            lambda a, gram=gram: a @ gram @ a,
            np.full(count, 1 / count),
            jac=lambda a, gram=gram: 2 * gram @ a,
            bounds=[(0, largest)] * count,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert solved.success, solved.message
        assert found @ gram @ found <= solved.fun + 1e-9
        if width > count:  # strictly convex: one minimum
            assert found == pytest.approx(solved.x, abs=1e-4)


@pytest.mark.parametrize(("count", "width", "largest"), SIZES)
def test_the_conditions_of_the_minimum_hold(count: int, width: int, largest: float) -> None:
    for seed in range(50):
        gradients = _gradients(count, width, seed, spread=seed / 20)
        gram = (gradients @ gradients.T).numpy()
        gram /= gram.diagonal().max()
        found = minimise_on_simplex(gram, largest)
        pull = gram @ found
        # There is a level that every weight below C is at least at, every one above 0 at most.
        highest, lowest = pull[found > 1e-12].max(), pull[found < largest - 1e-12].min()
        assert highest <= lowest + 1e-9 * (abs(gram) @ found).max()


def test_two_gradients_have_the_closed_form() -> None:
    first, second = torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 2.0])
    share = float((second - first) @ second / (first - second).square().sum())
    weights = min_norm_weights(torch.stack([first, second]), 1.0)
    assert weights.tolist() == pytest.approx([share, 1 - share])
    bounded = min_norm_weights(torch.stack([first, second]), 0.55)
    assert bounded.tolist() == pytest.approx([0.45, 0.55])


def test_the_mixture_lets_no_loss_rise() -> None:
    gradients = _gradients(4, 30, 0)
    mixture = min_norm_weights(gradients, 1.0) @ gradients
    assert bool((gradients @ mixture >= (1 - 1e-6) * mixture.square().sum()).all())


@pytest.mark.parametrize("largest", [0.2, 0.25])
def test_a_bound_of_an_equal_share_or_less_is_the_mean(largest: float) -> None:
    assert min_norm_weights(_gradients(4, 9, 0), largest).tolist() == [0.25] * 4


def test_equal_gradients_share_their_weight_and_none_at_all_are_even() -> None:
    one, two = _gradients(2, 9, 3)
    weights = min_norm_weights(torch.stack([one, two, one]), 1.0)
    assert float(weights[0]) == pytest.approx(float(weights[2]), abs=1e-5)
    pair = min_norm_weights(torch.stack([one, two]), 1.0)
    assert float(weights[1]) == pytest.approx(float(pair[1]), abs=1e-5)
    assert min_norm_weights(torch.zeros(3, 9), 0.6).tolist() == pytest.approx([1 / 3] * 3)


def test_the_scale_of_the_gradients_does_not_matter() -> None:
    gradients = _gradients(4, 9, 1)
    for normalised in (False, True):
        expected = min_norm_weights(gradients, 0.6, normalised=normalised)
        got = min_norm_weights(1e-12 * gradients, 0.6, normalised=normalised)
        torch.testing.assert_close(got, expected)


def test_normalised_weights_mix_unit_vectors() -> None:
    gradients = _gradients(3, 9, 2)
    lengths = gradients.norm(dim=1)
    inner = min_norm_weights(gradients / lengths[:, None], 0.6)
    expected = inner / lengths / (inner / lengths).sum()
    torch.testing.assert_close(min_norm_weights(gradients, 0.6, normalised=True), expected)
    assert torch.isfinite(
        min_norm_weights(torch.cat([gradients, 0 * gradients[:1]]), 0.6, normalised=True)
    ).all()
