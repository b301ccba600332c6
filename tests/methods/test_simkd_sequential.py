"""SimKD sequential: what learns in which training, what stays to the bit, what ships."""

import dataclasses
import math

import pytest
import torch

from compress.data import Batch
from compress.methods.simkd_sequential import SimKDSequential
from tests.methods import building
from tests.methods.test_simkd import may_refuse

__all__ = ["may_refuse"]


def _in_its_phase() -> tuple[building.Distillation, Batch]:
    module = building.distillation(SimKDSequential)
    batch = building.first_batch(module)
    (phase,) = module.method.phases_after()
    module.begin_phase(None, batch)
    module.begin_phase(phase, batch)
    return module, batch


def test_the_students_own_classifier_learns_after_the_main_training_alone() -> None:
    module = building.distillation(SimKDSequential)
    module.begin_phase(None, building.first_batch(module))
    learning = [n for n, p in module.named_parameters() if p.requires_grad]
    assert not any(".fc." in n or ".classifier." in n for n in learning)
    module, _ = _in_its_phase()
    learning = [n for n, p in module.named_parameters() if p.requires_grad]
    assert learning == ["student.fc.weight", "student.fc.bias"]


def test_the_term_is_cross_entropy_of_what_the_classifier_reads() -> None:
    module, batch = _in_its_phase()
    module.train()
    (term,) = module(batch).values()
    student = module.student.eval()
    with torch.no_grad():
        logits = student(batch.images[0]).double().tolist()
    total = 0.0
    for row, label in zip(logits, batch.labels.tolist(), strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(z) for z in row))
    assert float(term.detach()) == pytest.approx(total / len(logits), rel=1e-5)


def test_no_buffer_moves_and_nothing_else_is_run() -> None:
    module, batch = _in_its_phase()
    teacher = module._teachers[0].network
    runs: list[int] = []
    for network in (teacher, module.method.projector):
        network.register_forward_hook(lambda *_: runs.append(1))  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    assert not module.student.training
    for value in module(batch).values():
        value.backward()
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert module.student.get_parameter("conv1.weight").grad is None
    assert runs == []


def test_the_student_ships_with_no_parameter_more() -> None:
    module = building.distillation(SimKDSequential)
    assert module.method.ship(module.student) is module.student
    assert module.method.deploy(module.student) is not module.student  # judged until then


def test_epochs_and_learning_rate_are_the_main_trainings_unless_given() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)

    def phase(**arguments: object) -> object:
        module = building.distillation(SimKDSequential)
        method = SimKDSequential(context, **arguments)  # type: ignore[arg-type]
        method.bind(module._tapped)
        return method.phases_after()[0]

    found = phase()
    assert (found.epochs, found.lr, found.schedule) == (2, None, "recipe")  # type: ignore[attr-defined]
    found = phase(classifier_epochs=7, classifier_lr=0.1)
    assert (found.epochs, found.lr) == (7, 0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [{"classifier_epochs": 0}, {"classifier_lr": 0.0}])
def test_impossible_arguments_are_refused_in_words(wrong: dict[str, float]) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, or null for"):
        SimKDSequential(building.context(student, teachers), **wrong)  # type: ignore[arg-type]


def test_a_student_without_a_linear_classifier_is_refused_in_words() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    bare = dataclasses.replace(context.student, classifier=None)
    with pytest.raises(ValueError, match="the student's linear classifier; it has none"):
        SimKDSequential(dataclasses.replace(context, student=bare))
