"""SEED against float64 loops, its limits, its queue, resume."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from compress.engine import TrainSettings, train
from compress.methods import LossWeights, seed_loss
from compress.methods.seed import SEED
from tests.methods import building

ALONE = LossWeights(ce=0, kd=0, method=1)


def _unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _shares(row: list[float], among: list[list[float]], tau: float) -> list[float]:
    scores = [_dot(row, other) / tau for other in among]
    highest = max(scores)
    total = sum(math.exp(s - highest) for s in scores)
    return [math.exp(s - highest) / total for s in scores]


def _loss(student: Tensor, teacher: Tensor, queue: Tensor, tau_s: float, tau_t: float) -> float:
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = _unit(s), _unit(t)
        among = [t, *queue.tolist()]
        targets, shares = _shares(t, among, tau_t), _shares(s, among, tau_s)
        total -= sum(p * math.log(q) for p, q in zip(targets, shares, strict=True))
    return total / len(student)


def _rows(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(shape[0])
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.2, 1e-4), (0.2, 0.01), (0.5, 1.0)])
def test_equals_the_formula(tau_s: float, tau_t: float) -> None:
    student, teacher, queue = _rows(4, 5), _rows(3, 5)[[0, 1, 2, 0]], normalize(_rows(7, 5))
    got = seed_loss(student, teacher, queue, temperature=tau_s, teacher_temperature=tau_t)
    assert float(got) == pytest.approx(_loss(student, teacher, queue, tau_s, tau_t), rel=1e-10)


def test_a_cold_teacher_sees_only_the_image_itself() -> None:
    student, teacher, queue = _rows(4, 5), _rows(6, 5)[:4], normalize(_rows(7, 5))
    cold = seed_loss(student, teacher, queue, teacher_temperature=1e-6)
    own, known = normalize(student), normalize(teacher)
    scores = torch.cat([(own * known).sum(1, keepdim=True), own @ queue.t()], 1) / 0.2
    torch.testing.assert_close(cold, -scores.log_softmax(1)[:, 0].mean())


def test_the_order_of_the_queue_and_the_length_of_embeddings_do_not_matter() -> None:
    student, teacher, queue = _rows(4, 5), _rows(6, 5)[:4], normalize(_rows(7, 5))
    usual = seed_loss(student, teacher, queue, teacher_temperature=0.1)
    turned = seed_loss(3 * student, teacher / 2, queue.flip(0), teacher_temperature=0.1)
    torch.testing.assert_close(usual, turned)


def test_it_is_least_where_the_student_is_the_teacher() -> None:
    teacher, queue = _rows(6, 5), normalize(_rows(7, 5))
    same = seed_loss(teacher, teacher, queue, temperature=0.1, teacher_temperature=0.1)
    for seed in range(5):
        other = teacher + 0.3 * _rows(10 + seed, 5)[:6]
        assert seed_loss(other, teacher, queue, temperature=0.1, teacher_temperature=0.1) > same


def _module(**arguments: Any) -> building.Distillation:
    build = partial(SEED, **{"queue_size": 11, **arguments})
    module = building.distillation(build, weights=ALONE)  # type: ignore[arg-type]
    module.begin_phase(None, building.first_batch(module))
    return module.train()


def test_the_queue_takes_the_teachers_embeddings_after_the_step() -> None:
    module = _module()
    before = module.method.queue.keys.clone()
    batch = building.first_batch(module)
    assert [*module(batch)] == ["seed"]
    assert torch.equal(module.method.queue.keys, before)
    (teacher,) = module._teachers
    with torch.no_grad():
        expected = normalize(teacher(batch.images[0]).tensor("pooled"))
    module.after_step()
    torch.testing.assert_close(module.method.queue.keys[:8], expected)
    assert torch.equal(module.method.queue.keys[8:], before[8:])


def test_the_trial_pass_leaves_no_keys() -> None:
    module = _module()
    before = module.method.queue.keys.clone()
    module.begin_phase(None, building.first_batch(module))
    module.after_step()
    assert torch.equal(module.method.queue.keys, before)


def test_parts_of_a_batch_fill_the_queue_as_the_whole_does() -> None:
    whole, parts = _module().eval(), _module().eval()
    batch, totals = building.first_batch(whole), []
    for module, pieces in ((whole, [batch]), (parts, batch.split(3))):
        module.method.train()  # it has no batch norm
        totals.append(sum(piece.share * module(piece)["seed"] for piece in pieces))
        module.after_step()
    torch.testing.assert_close(totals[0], totals[1])
    order = torch.cat([part.index for part in batch.split(3)])  # part by part, whatever processes
    place = [batch.index.tolist().index(i) for i in order.tolist()]
    keys = whole.method.queue.keys[:8][place]
    torch.testing.assert_close(keys, parts.method.queue.keys[:8])


def test_queue_and_head_resume_bit_by_bit(tmp_path: Path) -> None:
    def learnt(folder: Path, *epochs: int) -> dict[str, Tensor]:
        for count in epochs:
            module = _module()
            settings = TrainSettings(count, lr=0.05, batch_size=8, schedule=lambda _: 1.0)
            options: dict[str, Any] = {"role": "seed", "seed": 0, "device": building.CPU}
            train(module, building.batches(module.method), settings, directory=folder, **options)
        return module.state_dict()

    once, resumed = learnt(tmp_path / "once", 2), learnt(tmp_path / "resumed", 1, 2)
    assert all(torch.equal(once[name], resumed[name]) for name in once)
    assert int(once["method.queue.position"]) == 2 * 24 % 11


def test_it_reads_no_labels() -> None:
    module = _module().eval()
    batch = building.first_batch(module)
    other = replace(batch, labels=(batch.labels + 1) % building.CLASSES)
    assert torch.equal(module(batch)["seed"], module(other)["seed"])
    assert not SEED.needs({}).reads_labels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is above 0"),
        ({"queue_size": 0}, "queue_size is at least 1"),
    ],
)
def test_impossible_arguments_are_refused_in_words(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _module(**arguments)
