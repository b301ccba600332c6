"""DIST against a float64 loop over the formula, its invariances, constant predictions, pixels."""

import math
import statistics
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.distill import Distillation
from compress.methods import METHODS, dist_loss
from compress.methods.contract import first, logits_of
from compress.methods.dist import DIST
from tests.methods import building


def _logits(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return 3 * torch.randn(*shape, generator=draw, dtype=torch.float64)


def _softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def _distance(pairs: list[tuple[list[float], list[float]]]) -> float:
    return 1 - statistics.fmean(statistics.correlation(a, b) for a, b in pairs)


def _oracle(student: Tensor, teacher: Tensor, temperature: float, beta: float, gamma: float) -> Any:
    own, known = ([_softmax(r, temperature) for r in z.tolist()] for z in (student, teacher))
    columns = [[[row[k] for row in rows] for k in range(len(rows[0]))] for rows in (own, known)]
    inter = _distance([*zip(own, known, strict=True)])
    intra = _distance([*zip(*columns, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.mark.parametrize(("temperature", "beta", "gamma"), [(4, 1, 1), (1, 2, 0.5), (2, 0, 1)])
def test_equals_the_formula(temperature: float, beta: float, gamma: float) -> None:
    student, teacher = _logits(2, 6, 5)
    got = dist_loss(student, teacher, temperature=temperature, beta=beta, gamma=gamma)
    expected = _oracle(student, teacher, temperature, beta, gamma)
    assert float(got) == pytest.approx(expected, rel=1e-5)  # the formula has no 1e-8


def test_zero_when_predictions_are_equal() -> None:
    logits = _logits(6, 5)
    assert float(dist_loss(logits + 7, logits)) == pytest.approx(0, abs=1e-4)
    assert float(dist_loss(logits.flip(0), logits)) > 1


def test_of_the_classes_only_order_and_ratios_count() -> None:
    predictions = _logits(6, 5).softmax(1)
    flatter = 0.3 * predictions + 0.7 / 5  # a linear function of each row
    logits = flatter.log(), predictions.log()
    assert float(dist_loss(*logits, temperature=1, gamma=0)) == pytest.approx(0, abs=1e-4)
    assert float(dist_loss(*logits, temperature=1, beta=0)) == pytest.approx(0, abs=1e-3)


def test_the_order_of_images_and_classes_does_not_matter() -> None:
    student, teacher = _logits(2, 6, 5)
    value = dist_loss(student, teacher)
    torch.testing.assert_close(dist_loss(student.flip(0), teacher.flip(0)), value)
    torch.testing.assert_close(dist_loss(student.flip(1), teacher.flip(1)), value)


def test_of_pixels_each_is_a_row() -> None:
    student, teacher = _logits(2, 2, 3, 4, 5)
    rows = [maps.permute(0, 2, 3, 1).reshape(-1, 3) for maps in (student, teacher)]
    torch.testing.assert_close(dist_loss(student, teacher), dist_loss(*rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-5, 1e-3, 1e3])
def test_constant_predictions_are_finite_with_a_bounded_gradient(
    size: float, dtype: torch.dtype
) -> None:
    noise = _logits(6, 5).to(dtype)
    like_all = torch.tensor([3.0, 1, 0, 0, -1], dtype=dtype)
    teacher = _logits(2, 6, 5)[1].to(dtype)
    # Every row is constant; every column is; a class is as good as impossible.
    for constant in (torch.zeros(5, dtype=dtype), like_all, like_all - like_all.new_tensor(200)):
        for target in (teacher, constant.expand(6, 5)):
            student = (constant + size * noise).requires_grad_()
            value = dist_loss(student, target)
            (gradient,) = torch.autograd.grad(value, student)
            assert 0 <= float(value.detach()) < 16 * 4
            assert float(gradient.abs().max()) < 2e4  # the code has 2e7


def test_what_is_constant_has_no_correlation() -> None:
    student, teacher = torch.zeros(6, 5), _logits(6, 5).float()
    assert float(dist_loss(student, teacher, temperature=1)) == 2
    one = _logits(2, 1, 5)
    assert float(dist_loss(*one, beta=0)) == 16


def _module(**arguments: Any) -> Distillation:
    return building.distillation(partial(DIST, **arguments))  # type: ignore[arg-type]


def test_relates_images_unless_gamma_is_zero() -> None:
    for arguments, is_coupled in (({}, True), ({"gamma": 0.0}, False)):
        assert DIST.needs(arguments).batch_coupled == is_coupled
        module = _module(**arguments)
        assert module.method.batch_coupled == is_coupled
        batch = building.first_batch(module)
        parts = [building.part(batch, rows) for rows in (slice(0, 3), slice(3, 8))]
        module.eval()
        mean = sum(part.share * module(part)["dist"] for part in parts)
        is_mean = torch.isclose(mean, module(batch)["dist"], rtol=1e-5)
        assert bool(is_mean) != is_coupled


def test_several_teachers_count_the_same() -> None:
    module = building.distillation(METHODS["dist"], teachers=2)
    batch = building.first_batch(module)
    own, known = module._student_views(batch), module._teacher_views(batch)
    logits = [logits_of(first(views)) for views in (own, *known)]
    expected = (dist_loss(logits[0], logits[1]) + dist_loss(logits[0], logits[2])) / 2
    torch.testing.assert_close(module.method(own, known, batch)["dist"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature is above 0, got 0"),
        ({"beta": -1.0}, "at least 0 and not both 0, got -1.0, 1.0"),
        ({"beta": 0.0, "gamma": 0.0}, "not both 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _module(**arguments)
