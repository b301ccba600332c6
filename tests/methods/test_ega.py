"""EGA against a float64 loop over the formula, its limits, flat rows, whom each term teaches."""

import math
import statistics
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.methods import ega_loss
from compress.methods.ega import EGA
from tests.methods import building


def _vectors(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _oracle(student: Tensor, teacher: Tensor, node_weight: float, edge_weight: float) -> float:
    own, known, nodes, edges = student.tolist(), teacher.tolist(), 0.0, 0.0
    for i in range(len(own)):
        for j in range(len(own)):
            nodes += (statistics.correlation(known[i], own[j]) - (i == j)) ** 2
            of_teacher = 1 if i == j else statistics.correlation(known[i], known[j])
            of_student = 1 if i == j else statistics.correlation(own[i], own[j])
            edges += (of_teacher - of_student) ** 2
    return node_weight * math.sqrt(nodes) + edge_weight * math.sqrt(edges)


@pytest.mark.parametrize("weights", [(0.8, 0.3), (1.0, 0.0), (0.0, 2.0)])
def test_equals_the_formula(weights: tuple[float, float]) -> None:
    student, teacher = _vectors(2, 5, 6)
    got = ega_loss(student, teacher, node_weight=weights[0], edge_weight=weights[1])
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(student, teacher, *weights), rel=1e-10)


def test_edges_agree_where_the_embeddings_do_up_to_a_linear_function_of_each_row() -> None:
    vectors = _vectors(5, 6)
    other = vectors * torch.arange(1, 6)[:, None] + 3
    assert float(ega_loss(other, vectors, node_weight=0)) == pytest.approx(0, abs=1e-7)
    assert float(ega_loss(vectors.flip(0), vectors, node_weight=0)) > 0.1


def test_nodes_agree_where_the_images_of_a_batch_are_uncorrelated() -> None:
    basis = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]]).double()
    assert float(ega_loss(basis, basis)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-5])
def test_flat_rows_are_finite_with_a_bounded_gradient(size: float) -> None:
    for rows in (slice(0, 1), slice(None)):
        student, teacher = _vectors(2, 5, 6).float()
        student[rows] *= size
        student.requires_grad_()
        value = ega_loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert size or float(gradient.abs().max()) < 1e3


def test_the_teachers_layers_learn_from_labels_alone_at_a_rate_of_their_own() -> None:
    module = building.distillation(EGA)
    method = module.method
    assert isinstance(method, EGA)
    terms = module(building.first_batch(module))
    layers = [*method.teacher_embedding.parameters(), *method.teacher_head.parameters()]
    of_align = torch.autograd.grad(terms["align"], layers, retain_graph=True, allow_unused=True)
    assert of_align == (None,) * 4
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(terms["head"], layers))
    (group,) = method.parameter_groups()
    assert [id(p) for p in group.parameters] == [id(p) for p in layers]
    assert group.optimizer is not None and not group.optimizer.scheduled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"node_weight": -1.0}, r"at least 0 and not both 0, got \(-1.0, 0.3\)"),
        ({"node_weight": 0.0, "edge_weight": 0.0}, "not both 0"),
        ({"feature_width": 1}, "feature_width is at least 2, got 1"),
        ({"teacher_lr": 0.0}, "teacher_lr is above 0, got 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        building.distillation(partial(EGA, **arguments))  # type: ignore[arg-type]
