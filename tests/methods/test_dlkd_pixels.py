"""DLKD of pixels: both terms, pixel by pixel, and the bound of the correlations."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from compress.methods import METHODS
from compress.methods.dlkd_pixels import dlkd_pixels_align_loss, dlkd_pixels_correlation_loss
from compress.taps import TapSpecs
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    return not student.is_dense


def maps(channels: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 3, 4, generator=draw, dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.hypot(*a) / math.hypot(*b)


def pixels(image: Tensor) -> list[list[float]]:
    return image.flatten(1).T.tolist()


def test_alignment_is_one_minus_the_cosine_of_each_pixel() -> None:
    student, teacher = maps(5, 0), maps(5, 1)
    terms = [
        2 - 2 * cosine(s, t)
        for n in range(2)
        for s, t in zip(pixels(student[n]), pixels(teacher[n]), strict=True)
    ]
    loss = float(dlkd_pixels_align_loss(student, teacher))
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def relations(rows: list[list[float]], i: int) -> list[float]:
    powers = [math.exp(cosine(rows[i], rows[j]) / 0.5) for j in range(len(rows)) if j != i]
    return [p / sum(powers) for p in powers]


def test_correlation_compares_each_pixels_relations_to_the_others() -> None:
    student, teacher = maps(3, 0), maps(5, 1)
    terms = []
    for n in range(2):
        own, known = pixels(student[n]), pixels(teacher[n])
        for i in range(12):
            q, p = relations(own, i), relations(known, i)
            terms.append(sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)))
    loss = float(dlkd_pixels_correlation_loss(student, teacher))
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_relations_do_not_depend_on_a_turn_of_the_features() -> None:
    teacher = maps(4, 0)
    turn = torch.linalg.qr(maps(4, 1)[0, :, :, :].reshape(4, 12)[:, :4])[0]
    turned = torch.einsum("dc,nchw->ndhw", turn, teacher)
    assert float(dlkd_pixels_correlation_loss(turned, teacher)) == pytest.approx(0, abs=1e-12)


def test_large_maps_are_averaged_to_the_grid() -> None:
    build = partial(METHODS["dlkd_pixels"], grid=2, align_weight=0.0, hidden_ratio=1.0)
    module = building.distillation(build)  # type: ignore[arg-type]
    seen: list[torch.Size] = []
    cells = module.method._cells  # type: ignore[operator]

    def looked_at(features: Tensor) -> Tensor:
        seen.append(cells(features).shape)
        return cells(features)

    object.__setattr__(module.method, "_cells", looked_at)
    module(building.first_batch(module))
    assert [shape[-2:] for shape in seen] == [(2, 2), (2, 2)]


def test_impossible_arguments_are_refused() -> None:
    for arguments in ({"grid": 1}, {"correlation_temperature": 0.0}, {"align_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            building.distillation(partial(METHODS["dlkd_pixels"], **arguments))  # type: ignore[arg-type]
