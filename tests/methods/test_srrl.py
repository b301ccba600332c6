"""SRRL against a float64 loop over the formula, and the teacher's classifier inside it."""

import dataclasses

import pytest
import torch

from compress.methods import srrl_loss
from compress.methods.srrl import SRRL
from tests.methods import building


def _oracle(
    projected: list[list[float]],
    pooled: list[list[float]],
    logits: list[list[float]],
    weight: list[list[float]],
    bias: list[float],
) -> float:
    features, judged = [], []
    for v, f, z in zip(projected, pooled, logits, strict=True):
        features += [(a - b) ** 2 for a, b in zip(v, f, strict=True)]
        for row, offset, target in zip(weight, bias, z, strict=True):
            own = offset + sum(a * b for a, b in zip(row, v, strict=True))
            judged.append((own - target) ** 2)
    return sum(features) / len(features) + sum(judged) / len(judged)


@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_formula(with_bias: bool) -> None:
    projected, pooled = torch.randn(2, 6, 4, dtype=torch.float64)
    logits = torch.randn(6, 3, dtype=torch.float64)
    weight = torch.randn(3, 4, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64) if with_bias else None
    got = srrl_loss(projected, pooled, logits, weight, bias)
    assert got.dtype == torch.float64
    plain = bias.tolist() if bias is not None else [0.0] * 3
    expected = _oracle(projected.tolist(), pooled.tolist(), logits.tolist(), weight.tolist(), plain)
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_gradient_passes_through_the_teachers_classifier() -> None:
    projected = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    pooled, logits = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    weight, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    loss = srrl_loss(projected, pooled, logits, weight, bias)
    (got,) = torch.autograd.grad(loss, projected)
    v = projected.detach()
    expected = 2 * (v - pooled) / 24 + 2 * (v @ weight.T + bias - logits) @ weight / 18
    torch.testing.assert_close(got, expected)


def test_the_teachers_own_features_cost_nothing() -> None:
    module = building.distillation(SRRL).eval()
    method = module.method
    assert isinstance(method, SRRL)
    with torch.no_grad():
        shown = module._teachers[0](torch.randn(4, *building.SHAPE))
        loss = srrl_loss(
            shown.tensor("pooled"),
            shown.tensor("pooled"),
            shown.tensor("logits"),
            method.weight,
            method.bias,
        )
    assert float(loss) == pytest.approx(0, abs=1e-10)


def test_term_is_the_loss_of_the_connected_features() -> None:
    module = building.distillation(SRRL).eval()
    method = module.method
    assert isinstance(method, SRRL)
    batch = next(building.batches(method).epoch(0))
    state = method.connector.state_dict()  # shares memory with the connector
    state["1.running_mean"].normal_()
    state["1.running_var"].uniform_(0.5, 2.0)
    with torch.no_grad():
        student, teacher = module._tapped(batch.images[0]), module._teachers[0](batch.images[0])
        before = student.tensor("pooled") @ state["0.weight"].T - state["1.running_mean"]
        projected = (before / (state["1.running_var"] + 1e-5).sqrt()).relu()
        assert method.bias is not None
        judged = projected @ method.weight.T + method.bias
        expected = (projected - teacher.tensor("pooled")).square().mean()
        expected += (judged - teacher.tensor("logits")).square().mean()
        got = method([student], [[teacher]], batch)["srrl"]
    torch.testing.assert_close(got, expected)


def test_connected_on_the_map_the_nonlinearity_comes_before_the_pooling() -> None:
    student, teachers = building.networks()
    method = SRRL(building.context(student, teachers), connect="map").eval()
    maps = torch.randn(3, 64, 4, 4)
    (weight,) = (p for n, p in method.connector.named_parameters() if "convolution" in n)
    total = torch.zeros(3, 256)
    for row in range(4):
        for column in range(4):  # batch norm is new: it divides by the root of 1 + 1e-5
            pixel = maps[:, :, row, column] @ weight[:, :, 0, 0].T / (1 + 1e-5) ** 0.5
            total += pixel.relu()
    torch.testing.assert_close(method.connector(maps), total / 16, rtol=1e-4, atol=1e-5)
    assert method.student_taps == ("last_map",)


def test_the_classifier_is_a_copy_that_does_not_learn() -> None:
    module = building.distillation(SRRL)
    method = module.method
    assert isinstance(method, SRRL)
    classifier = module._teachers[0].network.get_submodule("fc").state_dict()
    assert torch.equal(method.weight, classifier["weight"])
    assert method.bias is not None
    assert torch.equal(method.bias, classifier["bias"])
    assert {"weight", "bias"} <= set(method.state_dict())
    module.begin_phase(None, next(building.batches(method).epoch(0)))
    learning = {n.split(".")[0] for n, p in method.named_parameters() if p.requires_grad}
    assert learning == {"connector"}
    assert module.student.get_submodule("fc").weight.requires_grad


def test_a_classifier_without_bias_is_taken() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    known = dataclasses.replace(context.teachers[0], bias=None)
    assert SRRL(dataclasses.replace(context, teachers=(known,))).bias is None


def test_a_network_without_a_linear_classifier_is_refused_in_words() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    taps = dataclasses.replace(context.teachers[0].taps, pooled_width=None)
    known = dataclasses.replace(context.teachers[0], taps=taps, weight=None, bias=None)
    with pytest.raises(ValueError, match="the teacher has none"):
        SRRL(dataclasses.replace(context, teachers=(known,)))


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher, got 2"):
        SRRL(building.context(student, teachers))
