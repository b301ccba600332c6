"""VID against a float64 loop over the formula, its best variance, its maps of unequal size."""

import math

import pytest
import torch
from torch import nn

from compress.methods import vid_loss
from compress.methods.vid import VID, Prediction
from compress.models import build
from tests.methods import building


def _oracle(
    mean: torch.Tensor, target: torch.Tensor, log_scale: torch.Tensor, minimum: float
) -> float:
    samples, channels, height, width = mean.shape
    total = 0.0
    for n in range(samples):
        for c in range(channels):
            variance = math.log(1 + math.exp(float(log_scale[c]))) + minimum
            for h in range(height):
                for w in range(width):
                    difference = float(mean[n, c, h, w]) - float(target[n, c, h, w])
                    total += 0.5 * (difference**2 / variance + math.log(variance))
    return total / mean.numel()


def test_equals_the_formula() -> None:
    mean, target = torch.randn(2, 3, 4, 2, 5, dtype=torch.float64)
    log_scale = torch.tensor([-4.0, -0.5, 0.7, 5.0], dtype=torch.float64)
    got = vid_loss(mean, target, log_scale, 1e-2)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(_oracle(mean, target, log_scale, 1e-2), rel=1e-11)


def test_the_best_variance_is_the_mean_squared_error_of_the_channel() -> None:
    mean, target = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    squared = (mean - target).square().mean((0, 2, 3))
    log_scale = (squared - 1e-5).expm1().log().requires_grad_(True)
    loss = vid_loss(mean, target, log_scale, 1e-5)
    (gradient,) = torch.autograd.grad(loss, log_scale)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.detach(), (1 + squared.log()).mean() / 2)


def test_an_exact_mean_leaves_half_the_log_of_the_variance() -> None:
    maps = torch.randn(2, 3, 4, 4)
    # Large numbers pass through softplus unchanged; exp(200) is infinite in float32.
    assert float(vid_loss(maps, maps, torch.full((3,), 200.0), 1e-5)) == pytest.approx(
        math.log(200) / 2
    )


@pytest.mark.parametrize("variance", [0.1, 5.0, 1000.0])
def test_variances_start_where_they_are_asked_to(variance: float) -> None:
    prediction = Prediction(2, 3, variance, 1e-5)
    maps = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    assert float(prediction(*maps).detach()) == pytest.approx(math.log(variance) / 2, rel=1e-4)


def test_the_larger_map_is_pooled_before_the_prediction() -> None:
    prediction = Prediction(2, 3, 5.0, 1e-5)
    large, small = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 4, 4)
    average = nn.AvgPool2d(2)
    for own, target in ((large, torch.randn(2, 3, 4, 4)), (small, torch.randn(2, 3, 8, 8))):
        reduced = [average(m) if m.shape[-1] == 8 else m for m in (own, target)]
        torch.testing.assert_close(prediction(own, target), prediction(*reduced))


def test_every_pair_counts_once_and_its_variances_learn() -> None:
    module = building.distillation(VID)
    method = module.method
    assert isinstance(method, VID)
    batch = next(building.batches(method).epoch(0))
    module.begin_phase(None, batch)
    names = {n for n, p in method.named_parameters() if p.requires_grad}
    assert names >= {f"predictions.{i}.log_scale" for i in range(3)}
    with torch.no_grad():
        student, teacher = module._tapped(batch.images[0]), module._teachers[0](batch.images[0])
        got = method([student], [[teacher]], batch)["vid"]
        pairs = zip(student.tensors("stages"), teacher.tensors("stages"), strict=True)
        terms = [p(*pair) for p, pair in zip(method.predictions, pairs, strict=True)]
    assert len(terms) == 3
    torch.testing.assert_close(got, terms[0] + terms[1] + terms[2])


def test_stages_without_partner_are_named() -> None:
    student, teacher = build("resnet8", num_classes=5), build("vgg8", num_classes=5)
    method = VID(building.context(student, [teacher]))
    assert len(method.predictions) == 3
    assert method.notes() == [
        "compares the first 3 stages; the teacher has 4, its deepest are left out"
    ]


@pytest.mark.parametrize(
    ("initial", "minimum"), [(5.0, 0.0), (1e-5, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5)]
)
def test_impossible_variances_are_refused_in_words(initial: float, minimum: float) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="minimum_variance is above 0 and initial_variance above"):
        VID(
            building.context(student, teachers),
            initial_variance=initial,
            minimum_variance=minimum,
        )


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher, got 2"):
        VID(building.context(student, teachers))
