"""SemCKD against float64 loops over the formula, its short batches, all pairs of stages."""

import dataclasses
import math
from itertools import product

import pytest
import torch
from torch import nn

from compress.methods import semckd_loss
from compress.methods.semckd import SemCKD, calibration, embed, similarity_rows, squared_distances
from compress.models import build
from tests.methods import building


def _calibration_oracle(
    queries: torch.Tensor, keys: torch.Tensor, temperature: float
) -> list[list[list[float]]]:
    samples = []
    for own, target in zip(queries.tolist(), keys.tolist(), strict=True):
        rows = []
        for q in own:
            powers = [
                math.exp(sum(a * b for a, b in zip(q, k, strict=True)) / temperature)
                for k in target
            ]
            rows.append([p / sum(powers) for p in powers])
        samples.append(rows)
    return samples


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_weights_equal_the_formula_and_sum_to_one_over_the_teacher(temperature: float) -> None:
    queries = torch.randn(5, 2, 3, dtype=torch.float64)
    keys = torch.randn(5, 4, 3, dtype=torch.float64)
    got = calibration(queries, keys, temperature)
    expected = torch.tensor(_calibration_oracle(queries, keys, temperature), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.sum(2), torch.ones(5, 2, dtype=torch.float64))


def test_loss_equals_the_formula() -> None:
    weights, distances = torch.rand(2, 5, 2, 4, dtype=torch.float64)
    total = sum(
        float(weights[n, i, j] * distances[n, i, j])
        for n, i, j in product(range(5), range(2), range(4))
    )
    assert float(semckd_loss(weights, distances)) == pytest.approx(total / (5 * 2), rel=1e-12)


def test_distances_are_means_over_a_samples_elements() -> None:
    own, target = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64)
    expected = [
        sum((a - b) ** 2 for a, b in zip(s.tolist(), t.tolist(), strict=True)) / 40
        for s, t in zip(own.flatten(1), target.flatten(1), strict=True)
    ]
    assert squared_distances(own, target).tolist() == pytest.approx(expected, rel=1e-12)


def test_similarities_are_inner_products_with_zero_columns_up_to_the_batch_size() -> None:
    maps = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    got = similarity_rows(maps, 5)
    flat = maps.flatten(1).tolist()
    expected = [
        [sum(a * b for a, b in zip(x, y, strict=True)) for y in flat] + [0.0, 0.0] for x in flat
    ]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(similarity_rows(maps, 3), got[:, :3])


def test_gradient_flows_through_the_similarities() -> None:
    maps = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(similarity_rows(maps, 5).sum(), maps)
    # The entries of A sum to the squared norm of the summed samples.
    torch.testing.assert_close(gradient, 2 * maps.detach().sum(0).expand(3, 2, 2, 2))


def test_embeddings_have_unit_length() -> None:
    embedded = embed(torch.randn(4, 8), nn.Linear(8, 2))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))


def test_equal_keys_weigh_every_teacher_stage_alike() -> None:
    keys = torch.randn(3, 1, 2).expand(3, 4, 2)
    torch.testing.assert_close(
        calibration(torch.randn(3, 2, 2), keys, 1.0), torch.full((3, 2, 4), 0.25)
    )


def _method(student: str = "resnet8", teacher: str = "vgg8") -> SemCKD:
    networks = build(student, num_classes=5), build(teacher, num_classes=5)
    return SemCKD(building.context(networks[0], [networks[1]]))  # batches of 8, 16 pixels


def test_every_student_stage_meets_every_teacher_stage() -> None:
    method = _method()  # 3 and 4 stages
    widths = [(p[0].in_channels, p[-1].out_channels) for p in method.projections]  # type: ignore[index]
    assert widths == [*product((16, 32, 64), (128, 256, 512, 512))]
    assert (len(method.queries), len(method.keys)) == (3, 4)
    assert method.notes() == []
    assert len(_method("vgg8", "resnet8").projections) == 12


def test_term_equals_a_loop_over_pairs() -> None:
    module = building.distillation(SemCKD).eval()
    batch = building.first_batch(module)
    method = module.method
    assert isinstance(method, SemCKD)
    with torch.no_grad():
        student, teacher = module._tapped(batch.images[0]), module._teachers[0](batch.images[0])
        own, target = student.tensors("stages"), teacher.tensors("stages")
        queries, keys = (
            [embed(similarity_rows(m, 8), mlp) for m, mlp in zip(maps, mlps, strict=True)]
            for maps, mlps in ((own, method.queries), (target, method.keys))
        )
        weights = _calibration_oracle(torch.stack(queries, 1), torch.stack(keys, 1), 1.0)
        total = 0.0
        for i, j in product(range(3), range(3)):
            size = min(own[i].shape[-1], target[j].shape[-1])
            pool = nn.AdaptiveAvgPool2d(size)
            projected = method.projections[3 * i + j](pool(own[i]))
            distances = (projected - pool(target[j])).square().mean((1, 2, 3))
            total += sum(w[i][j] * float(d) for w, d in zip(weights, distances, strict=True))
        got = method([student], [[teacher]], batch)["semckd"]
    assert float(got) == pytest.approx(total / (8 * 3), rel=1e-5)


def test_everything_learns_in_a_full_and_in_a_short_batch() -> None:
    module = building.distillation(SemCKD)
    for size in (8, 3):
        batch = next(building.batches(module.method, batch_size=size).epoch(0))
        module.begin_phase(None, batch)
        assert all(p.requires_grad for p in module.method.parameters()), size


def test_the_published_weight_and_the_coupling_of_a_batch() -> None:
    assert {name: terms.method for name, terms in SemCKD.protocols.items()} == {
        "crd": 400,
        "simkd": 400,
        "segmentation": 400,
    }
    assert SemCKD.batch_coupled


def test_a_batch_larger_than_the_recipes_is_refused_in_words() -> None:
    module = building.distillation(SemCKD)
    batch = next(building.batches(module.method, batch_size=9).epoch(0))
    with pytest.raises(ValueError, match="batches of up to 8 images, got 9"):
        module(batch)


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_size_without_a_quarter_is_refused_in_words(size: int) -> None:
    student, teachers = building.networks()
    context = dataclasses.replace(building.context(student, teachers), batch_size=size)
    with pytest.raises(ValueError, match=f"4 or more, got {size}"):
        SemCKD(context)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="temperature is above 0"):
        SemCKD(building.context(student, teachers), temperature=temperature)


def test_several_teachers_are_refused_in_words() -> None:
    student, teachers = building.networks(teachers=2)
    with pytest.raises(ValueError, match="the method reads one teacher, got 2"):
        SemCKD(building.context(student, teachers))
