"""NORM against float64 loops; what ships is the student's architecture with one merged layer."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch
from compress.methods import norm_loss
from compress.methods.norm import NORM, LinearModule, normalised_logits
from compress.taps import TapSpecs
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: maps of any two sizes are compared."""
    return None in (teacher.last_map, student.last_map)


def _oracle(expanded: Tensor, target: Tensor) -> float:
    total, (count, channels, height, width) = 0.0, target.shape
    for n in range(count):
        for k in range(expanded.shape[1]):
            for y in range(height):
                for x in range(width):
                    total += float(expanded[n, k, y, x] - target[n, k % channels, y, x]) ** 2
    return total / (count * channels * height * width)


def _pooled_by_hand(maps: Tensor, stride: int) -> Tensor:
    count, channels, height, width = (maps.shape[i] // (stride if i > 1 else 1) for i in range(4))
    pooled = maps.new_zeros(count, channels, height, width)
    for y in range(height):
        for x in range(width):
            rows, columns = (slice(i * stride, (i + 1) * stride) for i in (y, x))
            pooled[:, :, y, x] = maps[:, :, rows, columns].amax((2, 3))
    return pooled


@pytest.mark.parametrize("copies", [1, 3])
def test_equals_the_formula(copies: int) -> None:
    expanded = torch.randn(2, copies * 4, 3, 2, dtype=torch.float64)
    target = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    assert float(norm_loss(expanded, target)) == pytest.approx(_oracle(expanded, target), rel=1e-12)
    assert float(norm_loss(target.repeat(1, copies, 1, 1), target)) == 0


def test_the_larger_map_is_max_pooled() -> None:
    small = torch.randn(2, 6, 2, 3, dtype=torch.float64)
    large = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = _oracle(small, _pooled_by_hand(large, 2))
    assert float(norm_loss(small, large)) == pytest.approx(expected, rel=1e-12)
    small, large = small[:, :3], large.repeat(1, 2, 1, 1)
    expected = _oracle(_pooled_by_hand(large, 2), small)
    assert float(norm_loss(large, small)) == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(norm_loss(torch.randn(2, 6, 7, 7), torch.randn(2, 3, 4, 4)))


def _normalised(row: list[float], scale: float) -> list[float]:
    mean = sum(row) / len(row)
    variance = sum((z - mean) ** 2 for z in row) / len(row)
    return [scale * (z - mean) / math.sqrt(variance + 1e-7) for z in row]


def test_normalised_logits_equal_the_formula_and_keep_the_order() -> None:
    logits = 3 * torch.randn(4, 7, dtype=torch.float64) + 5
    expected = [_normalised(row, 2.5) for row in logits.tolist()]
    result = normalised_logits(logits)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(result.argsort(1), logits.argsort(1))
    torch.testing.assert_close(normalised_logits(10 * logits - 3), result, rtol=1e-6, atol=1e-6)


def test_equal_logits_have_a_bounded_gradient() -> None:
    logits = torch.full((2, 5), 3.0, dtype=torch.float64, requires_grad=True)
    result = normalised_logits(logits)
    assert torch.equal(result, torch.zeros_like(result))
    result[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert 0 < float(logits.grad.abs().max()) <= 2.5 / math.sqrt(1e-7)


def _softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def _double(module: building.Distillation) -> Batch:
    module.double()
    for teacher in module._teachers:
        teacher.network.double()
    batch = building.first_batch(module)
    return replace(batch, images=tuple(i.double() for i in batch.images))


def _built(**arguments: Any) -> tuple[nn.Module, NORM]:
    student, teachers = building.networks()
    return student, NORM(building.context(student, teachers), **arguments)


def test_every_term_is_of_the_map_behind_the_module() -> None:
    module = building.distillation(NORM)
    method = module.method
    assert isinstance(method, NORM)
    batch = _double(module)
    module.eval()
    terms = {name: float(value.detach()) for name, value in module(batch).items()}
    transform = method.transform
    with torch.no_grad():
        own = module._tapped(batch.images[0]).tensor("last_map")
        known = module._teachers[0](batch.images[0])
        expanded = transform.expand(own)
        pooled = (own + transform.contract(expanded)).mean((2, 3))
        z_s = module.student.get_submodule("fc")(pooled).tolist()
    ce, soft = 0.0, 0.0
    for own_row, known_row, label in zip(
        z_s, known.tensor("logits").tolist(), batch.labels.tolist(), strict=True
    ):
        z, target = _normalised(own_row, 2.5), _normalised(known_row, 2.5)
        ce -= math.log(_softmax(z)[label]) / len(z_s)
        pairs = zip(_softmax(target, 4), _softmax(z, 4), strict=True)
        soft += 16 * sum(p * math.log(p / q) for p, q in pairs) / len(z_s)
    target = known.tensor("last_map")
    differences = expanded - target.repeat(1, 8, 1, 1)
    maps = sum(d * d for d in differences.flatten().tolist()) / target.numel()
    assert terms == pytest.approx({"ce": 0.1 * ce, "soft": soft, "norm": 0.1 * maps}, rel=1e-10)


def test_all_of_student_and_module_learns_and_its_batch_norms_move_once() -> None:
    module = building.distillation(NORM)
    batch = building.first_batch(module)
    module.begin_phase(None, batch)
    assert all(p.requires_grad for p in module.parameters())
    module.train()(batch)
    counts = [v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(int(count) == 1 for count in counts)


@pytest.mark.parametrize("residual", [True, False])
def test_the_merged_layer_says_what_the_module_does(residual: bool) -> None:
    student, method = _built(copies=2, residual=residual)
    student, method = student.double(), method.double()
    images = torch.randn(4, *building.SHAPE, dtype=torch.float64)
    deployed = method.deploy(student)
    with torch.no_grad():
        for layer in method.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        for _ in range(3):
            deployed.train()(images)  # the statistics of all batch norms move
        shipped = method.ship(student)
        torch.testing.assert_close(
            shipped.eval()(images), deployed.eval()(images), rtol=1e-10, atol=1e-10
        )
    counts = [sum(p.numel() for p in network.parameters()) for network in (shipped, student)]
    assert counts[0] == counts[1]
    assert sum(p.numel() for p in deployed.parameters()) > counts[1]
    assert shipped.get_submodule("classifier") is not student.get_submodule("fc")


def test_merging_changes_no_state_and_no_mode() -> None:
    student, method = _built(copies=2)
    method.train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    method.ship(student)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(layer.training for layer in method.modules())


def test_a_pixel_of_the_merged_module_by_loops() -> None:
    module = LinearModule(2, 3, residual=True).double().eval()
    merged = module.merged().requires_grad_(False)
    maps = torch.randn(1, 2, 1, 1, dtype=torch.float64)
    weights = [layer[0].weight.detach().flatten(1) for layer in (module.expand, module.contract)]
    for c in range(2):
        total = float(maps[0, c])
        for k in range(3):
            inner = sum(float(weights[0][k, d] * maps[0, d]) for d in range(2))
            total += float(weights[1][c, k]) * inner / (1 + 1e-5)  # two norms of variance 1
        assert float(merged(maps.flatten(1))[0, c]) == pytest.approx(total, rel=1e-12)


def _factors(epochs: int, **arguments: Any) -> list[float]:
    student, teachers = building.networks()
    context = replace(building.context(student, teachers), epochs=epochs)
    method = NORM(context, copies=1, **arguments)
    index = torch.arange(1)
    return [method.factor(Batch((), (), index, index, epoch=e, step=0)) for e in range(epochs)]


def test_the_schedule_by_the_epoch() -> None:
    expected = [0.1] * 10 + [0.5] * 10 + [1.0] * 160 + [0.5] * 30 + [0.1] * 30
    assert _factors(240) == expected
    expected = [0.1] * 5 + [0.5] * 10 + [0.9] * 45 + [0.5] * 20 + [0.1] * 20
    assert _factors(100, schedule="imagenet") == expected
    assert _factors(4) == [0.1, 1.0, 1.0, 0.5]
    assert _factors(1) == [0.1]
    assert _factors(7, schedule="constant") == [1.0] * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"copies": 0}, "copies is at least 1, got 0"),
        ({"logit_scale": 0.0}, "logit_scale is above 0, got 0"),
        ({"schedule": "linear"}, "schedule is cifar, imagenet, constant, got linear"),
    ],
)
def test_impossible_values_are_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _built(**arguments)


def test_a_student_without_a_classifier_is_refused_in_words() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    with pytest.raises(ValueError, match="ships the student's linear classifier; it has none"):
        NORM(replace(context, student=replace(context.student, classifier=None)))
