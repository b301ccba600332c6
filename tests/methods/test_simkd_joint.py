"""SimKD joint against equation 4 by loops, and which of the two classifiers ships."""

import math
from dataclasses import replace

import pytest
import torch

from compress.methods.simkd_joint import JointClassifier, SimKDJoint
from tests.methods import building
from tests.methods.test_simkd import may_refuse

__all__ = ["may_refuse"]


def _softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def test_the_terms_are_those_of_equation_4() -> None:
    module = building.distillation(SimKDJoint).double().eval()
    module._teachers[0].network.double()
    batch = building.first_batch(module)
    batch = replace(batch, images=tuple(i.double() for i in batch.images))
    method = module.method
    assert isinstance(method, SimKDJoint)
    method.alpha = 0.7
    terms = {name: float(value.detach()) for name, value in module(batch).items()}
    with torch.no_grad():
        own = module._tapped(batch.images[0])
        known = module._teachers[0](batch.images[0])
        projected = method.projector(own.tensor("last_map")).flatten().tolist()
    target = known.tensor("last_map").flatten().tolist()
    z_s, z_t = own.tensor("logits").tolist(), known.tensor("logits").tolist()
    ce, soft = 0.0, 0.0
    for own_row, known_row, label in zip(z_s, z_t, batch.labels.tolist(), strict=True):
        ce -= math.log(_softmax(own_row, 1)[label]) / len(z_s)
        pairs = zip(_softmax(known_row, 4), _softmax(own_row, 4), strict=True)
        soft += 16 * sum(p * math.log(p / q) for p, q in pairs) / len(z_s)
    maps = sum((p - t) ** 2 for p, t in zip(projected, target, strict=True)) / len(target)
    expected = {"ce": 0.3 * ce, "soft": 0.3 * soft, "simkd": 0.7 * maps}
    assert terms == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("ships", ["own_classifier", "teacher_classifier"])
def test_both_classifiers_are_judged_and_the_chosen_one_ships(ships: JointClassifier) -> None:
    student, (teacher,) = building.networks()
    method = SimKDJoint(building.context(student, [teacher]), ships=ships)
    networks = {ships: method.deploy(student), **method.judged_beside(student)}
    assert set(networks) == {"own_classifier", "teacher_classifier"}
    assert networks["own_classifier"] is student
    reused = networks["teacher_classifier"].get_submodule("classifier")
    assert torch.equal(reused.weight, teacher.get_submodule("fc").weight)  # type: ignore[arg-type]
    assert (method.ship(student) is student) == (ships == "own_classifier")


def test_both_classifiers_learn() -> None:
    module = building.distillation(SimKDJoint)
    module.begin_phase(None, building.first_batch(module))
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    fixed = {n for n, _ in module.named_parameters()} - learning
    assert fixed == {"method.classifier.weight", "method.classifier.bias"}


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_an_alpha_that_leaves_out_a_classifier_is_refused_in_words(alpha: float) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=r"above 0 \(method kd\) and below 1 \(method simkd\)"):
        SimKDJoint(building.context(student, teachers), alpha=alpha)
