"""CWD: the formula, channel by channel."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from compress.methods import METHODS
from compress.methods.cwd import cwd_loss
from compress.taps import TapSpecs
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    return not student.is_dense


def maps(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64)


def distribution(channel: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(v / temperature) for v in channel.flatten().tolist()]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_the_formula(temperature: float) -> None:
    student, teacher = maps(0), maps(1)
    total = 0.0
    for n in range(2):
        for c in range(3):
            q, p = (distribution(m[n, c], temperature) for m in (student, teacher))
            total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    expected = temperature**2 * total / 6
    assert float(cwd_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-12)


def test_what_is_added_to_a_whole_channel_changes_nothing() -> None:
    student, teacher = maps(0), maps(1)
    shifted = student + torch.tensor([5.0, -3.0, 100.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(cwd_loss(shifted, teacher), cwd_loss(student, teacher))
    assert float(cwd_loss(teacher + 7, teacher)) == pytest.approx(0, abs=1e-14)


def test_features_go_through_a_projector_to_the_teachers_channels() -> None:
    build = partial(METHODS["cwd"], logits_weight=0.0, features_weight=50.0)
    module = building.distillation(build)  # type: ignore[arg-type]
    assert [*module(building.first_batch(module))] == ["ce", "features"]
    assert module.method.projector[0].weight.shape == (20, 12, 1, 1)  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logits_weight": 0.0}, "not both 0"),
        ({"features_weight": -1.0}, "at least 0"),
        ({"temperature": 0.0}, "temperature is above 0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        building.distillation(partial(METHODS["cwd"], **arguments))  # type: ignore[arg-type]
