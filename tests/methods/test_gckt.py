"""GCKT against a float64 loop over the formula, its range, spectral norms over steps."""

import math

import pytest
import torch
from torch import Tensor

from compress.methods import gckt_loss
from compress.methods.gckt import GCKT, Critic
from tests.methods import building


def _oracle(scores: Tensor, normaliser: float, rows: int) -> float:
    total, noise = 0.0, (scores.shape[1] - 1) / rows
    for positive, *negatives in (scores.exp() / normaliser).tolist():
        total -= positive / (positive + noise)
        total += sum(p / (p + noise) for p in negatives)
    return total / len(scores)


def test_equals_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(4, 7, generator=draw, dtype=torch.float64)
    normaliser = scores.exp().mean() * 20
    got = gckt_loss(scores, normaliser, 20)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(scores, float(normaliser), 20), rel=1e-10)


def test_is_lowest_where_only_the_positive_agrees() -> None:
    scores = torch.full((3, 6), -40.0)
    normaliser = torch.tensor(10.0)
    scores[:, 0] = 40
    assert float(gckt_loss(scores, normaliser, 10)) == pytest.approx(-1, abs=1e-6)
    assert float(gckt_loss(-scores, normaliser, 10)) == pytest.approx(5, abs=1e-6)


def _critic() -> Critic:
    torch.manual_seed(0)
    return Critic(5, 7, 3, 11)


def test_layers_are_divided_by_their_largest_singular_value() -> None:
    critic = _critic()
    for layer in (critic.student_embedding, critic.teacher_embedding):
        features = torch.randn(4, layer.in_features)
        weight = layer.weight / torch.linalg.matrix_norm(layer.weight, 2)
        expected = features @ weight.t() + layer.bias
        expected = expected / expected.norm(dim=1, keepdim=True)
        torch.testing.assert_close(critic.embed(features, layer), expected)


def test_the_norm_has_a_gradient() -> None:
    critic = _critic()
    layer = critic.student_embedding
    features = torch.randn(4, 5)
    value = critic.embed(features, layer)[0, 0]
    (got,) = torch.autograd.grad(value, layer.weight)
    weight = layer.weight / torch.linalg.matrix_norm(layer.weight, 2)
    rows = features @ weight.t() + layer.bias
    (expected,) = torch.autograd.grad((rows / rows.norm(dim=1, keepdim=True))[0, 0], layer.weight)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_directions_follow_layers_that_move_by_steps_alone() -> None:
    critic = _critic()
    before = critic.directions.clone()
    layer = critic.student_embedding
    with torch.no_grad():
        layer.weight += 0.05 * torch.randn_like(layer.weight)
    critic.embed(torch.randn(4, 5), layer)
    assert torch.equal(critic.directions, before)
    for _ in range(100):
        critic.after_step(0.5)
    (norm, *_) = torch.linalg.svdvals(layer.weight.detach())
    found = float((critic.directions[0] @ layer.weight.detach()).norm())
    assert math.isclose(found, float(norm), rel_tol=1e-4)


def test_two_teachers_have_a_critic_each() -> None:
    module = building.distillation(GCKT, teachers=2)
    assert len([m for m in module.method.modules() if isinstance(m, Critic)]) == 2
    assert [*module.method.protocols["crd"].__dict__.values()] == [1, 0, 0.8]
