"""Where lengths vanish, losses of directions are continuous, with a bounded gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize, smooth_l1_loss

from compress.methods import pkt_loss, rkd_loss, sp_loss
from compress.methods.blocks.directions import SMALLEST_SHARE, fading

Loss = Callable[[Tensor, Tensor], Tensor]


def _rkd(student: Tensor, teacher: Tensor) -> Tensor:
    return rkd_loss(student, teacher, distance_weight=25.0, angle_weight=50.0)


def _authors_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    def relations(rows: Tensor) -> tuple[Tensor, Tensor]:
        squares = rows.square().sum(1)
        distances = (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=1e-12).sqrt()
        distances = distances * (1 - torch.eye(len(rows), dtype=rows.dtype))
        unit = normalize(rows[None] - rows[:, None], dim=2)
        return distances / distances[distances > 0].mean(), torch.bmm(unit, unit.mT)

    pairs = zip(relations(student), relations(teacher), strict=True)
    distance, angle = (smooth_l1_loss(*pair) for pair in pairs)
    return 25 * distance + 50 * angle


def _authors_sp(student: Tensor, teacher: Tensor) -> Tensor:
    own, known = (normalize(rows @ rows.T) for rows in (student, teacher))
    return mse_loss(own, known)


def _authors_pkt(student: Tensor, teacher: Tensor) -> Tensor:
    def neighbours(rows: Tensor) -> Tensor:
        unit = rows / (rows.square().sum(1, keepdim=True).sqrt() + 1e-7)
        similar = (unit @ unit.T + 1) / 2
        return similar / similar.sum(1, keepdim=True)

    own, known = neighbours(student), neighbours(teacher)
    return (known * ((known + 1e-7) / (own + 1e-7)).log()).mean()


LOSSES = [(_rkd, _authors_rkd), (sp_loss, _authors_sp), (pkt_loss, _authors_pkt)]
losses = pytest.mark.parametrize(("loss", "authors"), LOSSES, ids=["rkd", "sp", "pkt"])


def _value_and_gradient(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


def _short(loss: Loss, length: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features of which one vector, or for RKD one difference, has this length."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, direction = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 4), (6, 5), (4,))
    )
    origin = student[0] if loss is _rkd else torch.zeros(4, dtype=torch.float64)
    student[1] = origin + length * normalize(direction, dim=0)
    return student.to(dtype), teacher.to(dtype)


@losses
def test_ordinary_features_have_the_values_of_the_authors_code(loss: Loss, authors: Loss) -> None:
    for scale in (1e-2, 1.0, 1e2):
        student, teacher = _short(loss, 1.0)
        own = _value_and_gradient(loss, student * scale, teacher)
        expected = _value_and_gradient(authors, student * scale, teacher)
        # The authors' distances of RKD lose digits by cancellation.
        torch.testing.assert_close(own, expected, rtol=1e-8 if loss is _rkd else 1e-13, atol=1e-13)


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_ones_have_a_bounded_gradient(loss: Loss, authors: Loss, dtype: torch.dtype) -> None:
    for length in (0.0, 1e-30, 1e-12, 1e-9, 9.9e-7, 1.01e-6, 1e-5, 1e-4, 1e-3, 2e-3, 1e-2):
        value, gradient = _value_and_gradient(loss, *_short(loss, length, dtype))
        assert value.isfinite()
        assert float(gradient.abs().max()) < 1000, f"at {length}"


@losses
def test_values_do_not_jump_where_a_length_passes_zero(loss: Loss, authors: Loss) -> None:
    lengths = torch.linspace(-1e-2, 1e-2, 401).tolist()
    values = torch.stack([loss(*_short(loss, length)) for length in lengths])
    assert float(values.diff().abs().max()) < 0.1 * float(values.max() - values.min())


@losses
def test_a_dead_student_has_a_finite_term_and_no_gradient(loss: Loss, authors: Loss) -> None:
    value, gradient = _value_and_gradient(loss, torch.zeros(6, 4), torch.randn(6, 5))
    assert value.isfinite()
    assert not gradient.any()


def test_the_factor_is_one_above_the_smallest_share_and_scales_along() -> None:
    for mean in (torch.tensor(1e-20), torch.tensor(3.0), torch.tensor(1e20)):
        lengths = mean * SMALLEST_SHARE * torch.tensor([0, 0.5, 1.001, 2, 1e6])
        torch.testing.assert_close(fading(lengths, mean), torch.tensor([0, 0.25, 1, 1, 1]))
    assert not fading(torch.zeros(3), torch.tensor(0.0)).any()
