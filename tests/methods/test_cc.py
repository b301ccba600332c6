"""CC against a float64 loop over the formula, its dependence on order, its embeddings, refusals."""

import pytest
import torch
from torch import Tensor

from compress.methods import cc_loss
from compress.methods.cc import CC
from tests.methods import building


def _oracle(student: Tensor, teacher: Tensor) -> float:
    rows = [
        [abs(a - b) for a, b in zip(s, t, strict=True)]
        for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    total = 0.0
    for n in range(len(rows) - 1):
        for here, there in zip(rows[n], rows[n + 1], strict=True):
            total += here * there
    return total / (len(rows) - 1)


@pytest.mark.parametrize("count", [2, 6])
def test_equals_the_formula(count: int) -> None:
    student, teacher = torch.randn(2, count, 4, dtype=torch.float64)
    got = cc_loss(student, teacher)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher), rel=1e-12)


def test_zero_for_equal_embeddings_and_where_every_second_sample_is_equal() -> None:
    student, teacher = torch.randn(2, 6, 4)
    assert float(cc_loss(student, student)) == 0
    student[::2] = teacher[::2]
    assert float(cc_loss(student, teacher)) == 0
    # Neighbours are multiplied: another order, another value.
    assert float(cc_loss(student.roll(1, 0)[1:4], teacher.roll(1, 0)[1:4])) == 0
    order = [0, 2, 4, 1, 3, 5]
    assert float(cc_loss(student[order], teacher[order])) > 0


def test_grows_with_the_square_of_the_difference() -> None:
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(cc_loss(3 * student, 3 * teacher), 9 * cc_loss(student, teacher))


def test_a_batch_of_one_has_the_term_zero() -> None:
    student = torch.randn(1, 3, requires_grad=True)
    loss = cc_loss(student, torch.randn(1, 3))
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0
    assert not gradient.any()


def test_both_embeddings_are_trained() -> None:
    module = building.distillation(CC)
    batch = building.first_batch(module)
    module.begin_phase(None, batch)
    learning = {name for name, p in module.named_parameters() if p.requires_grad}
    assert {
        f"method.{who}_embedding.{part}"
        for who in ("student", "teacher")
        for part in ("weight", "bias")
    } <= learning


def test_the_term_is_that_of_the_embedded_pooled_vectors() -> None:
    module = building.distillation(CC).eval()
    batch = building.first_batch(module)
    shown = [tapped(batch.images[0]) for tapped in (module._tapped, module._teachers[0])]
    assert [t.tensor("pooled").shape[1] for t in shown] == [64, 256]
    embeddings = (module.method.student_embedding, module.method.teacher_embedding)
    embedded = [e(t.tensor("pooled")).double() for e, t in zip(embeddings, shown, strict=True)]  # type: ignore[operator]
    assert embedded[0].shape == (8, 128)
    got = module.method([shown[0]], [[shown[1]]], batch)["cc"]
    assert float(got.detach()) == pytest.approx(_oracle(*embedded), rel=1e-5)


def test_an_impossible_width_is_refused_in_words() -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="feature_width is at least 1, got 0"):
        CC(building.context(student, teachers), feature_width=0)


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher"):
        CC(building.context(student, teachers))
