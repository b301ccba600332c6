"""GCKT against a float64 loop over the formula, what it learns, spectral norms over steps."""

import math

import pytest
import torch

from compress.methods import gckt_loss
from compress.methods.gckt import GCKT, Critic
from tests.methods import building


def test_equals_the_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(4, 7, generator=draw, dtype=torch.float64)
    rows = scores.tolist()
    expected = sum(sum(negatives) / 6 - positive for positive, *negatives in rows) / 4
    got = gckt_loss(scores)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(expected, rel=1e-10)


def test_no_offset_of_all_scores_shows() -> None:
    scores = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(gckt_loss(scores + 5), gckt_loss(scores))


@pytest.mark.parametrize("negatives", [8, 300])
def test_training_tells_images_apart(negatives: int) -> None:
    """The student's embedding of an image comes nearest to that image's row of the bank."""
    torch.manual_seed(0)
    images, (own, known) = 32, torch.randn(2, 32, 24)
    critic = Critic(24, 24, 16, images)
    optimiser = torch.optim.SGD(critic.parameters(), lr=0.05, momentum=0.9)
    rows = torch.arange(images)
    for _ in range(150):
        drawn = torch.randint(images - 1, (images, negatives))
        drawn += (drawn >= rows[:, None]).long()
        loss = critic(own, known, rows, torch.cat([rows[:, None], drawn], 1), 0.07)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        critic.after_step(0.5)
    nearest = (critic.embed(own, critic.student_embedding) @ critic.teacher_bank.t()).argmax(1)
    assert float((nearest == rows).float().mean()) > 0.9


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
