"""EGA against a float64 loop, its limits, what each term moves and by which optimiser, refusals."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from compress.engine import OptimizerStep, TrainSettings
from compress.methods import ega_loss
from compress.methods.blocks.heads import label_loss
from compress.methods.ega import EGA
from compress.taps import TapSpecs
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: the student's encoder ends before its global pooling."""
    return student.last_map is None


def _correlation(a: list[float], b: list[float]) -> float:
    means = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - means[0]) * (y - means[1]) for x, y in zip(a, b, strict=True))
    squares = sum((x - means[0]) ** 2 for x in a), sum((y - means[1]) ** 2 for y in b)
    return covariance / math.sqrt(squares[0] * squares[1])


def _oracle(student: Tensor, teacher: Tensor, node_weight: float, edge_weight: float) -> float:
    own, known = student.tolist(), teacher.tolist()
    node = edge = 0.0
    for i in range(len(own)):
        for j in range(len(own)):
            node += (_correlation(known[i], own[j]) - (i == j)) ** 2
            edge += (_correlation(known[i], known[j]) - _correlation(own[i], own[j])) ** 2
    return node_weight * math.sqrt(node) + edge_weight * math.sqrt(edge)


def _embeddings(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_equals_the_formula() -> None:
    student, teacher = _embeddings(2, 5, 7)
    for weights in ((0.8, 0.3), (0.0, 1.0), (2.0, 0.0)):
        got = ega_loss(student, teacher, node_weight=weights[0], edge_weight=weights[1])
        assert got.dtype == torch.float64
        assert float(got) == pytest.approx(_oracle(student, teacher, *weights), rel=1e-12)


def test_shift_and_scale_change_nothing_and_equal_graphs_have_no_edge_term() -> None:
    student, teacher = _embeddings(2, 5, 7)
    moved = student * (torch.rand(5, 1, dtype=torch.float64) + 0.5) + _embeddings(5, 1)
    torch.testing.assert_close(ega_loss(moved, teacher), ega_loss(student, teacher))
    edges = {"node_weight": 0.0, "edge_weight": 1.0}
    assert float(ega_loss(moved, student, **edges)) == pytest.approx(0, abs=1e-14)
    assert float(ega_loss(teacher, student, **edges)) > 0.1


def test_orthogonal_equal_embeddings_are_the_minimum() -> None:
    # Four rows of a Hadamard matrix: each sums to 0, and no two correlate.
    rows = torch.tensor([[1, -1, 1, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, 1, -1, -1]]).double()
    embeddings = rows.clone().requires_grad_()
    loss = ega_loss(embeddings, rows)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-15)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("deviation", [0.0, 1e-30, 1e-6])
def test_constant_and_equal_embeddings_have_bounded_gradients(deviation: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 8)
    student[0] = 0.5 + deviation * student[0]
    teacher[1] = -1 + deviation * teacher[1]
    student[3] = student[4]
    for own, known in ((student, teacher), (torch.full((6, 8), 0.5), teacher), (teacher, teacher)):
        own = own.clone().requires_grad_()
        loss = ega_loss(own, known)
        (gradient,) = torch.autograd.grad(loss, own)
        assert torch.isfinite(loss)
        assert float(gradient.abs().max()) < 1e4


def test_the_teachers_loss_is_the_cross_entropy() -> None:
    logits, labels = _embeddings(4, 3), torch.tensor([0, 2, 1, 1])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        expected += math.log(sum(map(math.exp, row))) - row[label]
    assert float(label_loss(logits, labels)) == pytest.approx(expected / 4, rel=1e-12)


def _module() -> tuple[building.Distillation, EGA]:
    module = building.distillation(EGA)
    module.begin_phase(None, building.first_batch(module))
    assert isinstance(module.method, EGA)
    return module, module.method


def test_each_term_moves_its_own_network() -> None:
    module, method = _module()
    terms = module(building.first_batch(module))
    for term, moves_teacher, moves_student in (
        ("ega", False, True),
        ("teacher", True, False),
        ("ce", False, True),
    ):
        module.zero_grad()
        terms[term].backward(retain_graph=True)
        head = (method.teacher_embedding.weight, method.teacher_classifier.weight)
        assert all((p.grad is not None) == moves_teacher for p in head), term
        assert (method.embedding.weight.grad is not None) == moves_student, term
        assert (method.classifier.weight.grad is not None) == (term == "ce"), term


def test_the_teachers_head_has_the_sgd_of_the_released_code() -> None:
    module, method = _module()
    step = OptimizerStep(module, TrainSettings(1, lr=0.05, weight_decay=1e-3), building.CPU)
    batch, weight = building.first_batch(module), method.teacher_embedding.weight
    expected, moved = weight.detach().clone(), torch.zeros_like(weight)
    for progress in (0.5, 0.95):  # the schedule does not matter
        (gradient,) = torch.autograd.grad(module(batch)["teacher"], weight)
        moved = 0.9 * moved + gradient + 5e-4 * expected
        expected -= 0.01 * moved
        step(batch, progress, {})
        torch.testing.assert_close(weight.detach(), expected)


def test_the_student_ships_with_the_classifier_of_its_embedding() -> None:
    module, method = _module()
    images = building.first_batch(module).images[0]
    network = method.deploy(module.eval().student)
    with torch.no_grad():
        features = module._tapped(images).tensor("pooled")
        weight = method.classifier.weight @ method.embedding.weight
        bias = method.classifier.weight @ method.embedding.bias + method.classifier.bias
        torch.testing.assert_close(network(images), features @ weight.t() + bias)
    assert not module.student.get_submodule("fc").weight.requires_grad  # type: ignore[union-attr]


def test_a_teacher_without_a_classifier_is_enough() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    (teacher,) = context.teachers
    bare = dataclasses.replace(teacher, taps=dataclasses.replace(teacher.taps, classifier=None))
    EGA(dataclasses.replace(context, teachers=(bare,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"node_weight": -1.0}, "node_weight is at least 0, got -1"),
        ({"edge_weight": -1.0}, "edge_weight is at least 0, got -1"),
        ({"feature_width": 1}, "feature_width is at least 2, got 1"),
        ({"teacher_lr": 0.0}, "teacher_lr is above 0, got 0"),
    ],
)
def test_impossible_values_are_refused_in_words(arguments: dict[str, float], message: str) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=message):
        EGA(building.context(student, teachers), **arguments)  # type: ignore[arg-type]


def test_a_student_that_does_not_end_in_global_pooling_is_refused() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    bare = dataclasses.replace(context.student, last_map=None)
    with pytest.raises(ValueError, match="global average pooling, in which this student does not"):
        EGA(dataclasses.replace(context, student=bare))
