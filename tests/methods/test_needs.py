"""What a method needs may depend on its arguments, and everything that asks gets one answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from compress.methods import METHODS, LossWeights, Method, MethodContext, Needs, View, Views
from compress.methods.contract import published
from compress.recipe import Recipe
from compress.run.fields import step_fields
from compress.run.part_checks import check_relations
from compress.run.plan import make_plan
from compress.stages.distill import terms_for
from tests.methods import building


class Choosing(Method):
    """Reads a second view and the teacher, relates images and weighs more: only if it is told."""

    student_taps = ("pooled",)

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        if not arguments.get("relate", False):
            return super().needs(arguments)
        return Needs((View(), View(student=False)), True, ("pooled",), published(7))

    def __init__(self, context: MethodContext, *, relate: bool = False) -> None:
        super().__init__(context, self.needs({"relate": relate}))

    def forward(self, student: Views, teachers: Sequence[Views], batch: Any) -> dict[str, Any]:
        return {}


def recipe(**method: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": "digits",
            "teacher": {"model": "resnet14", "train": {"epochs": 1, "lr": 0.1}},
            "student": {"model": "resnet8"},
            "distill": {
                "method": {"name": "choosing", "weights": {"kd": 0}, **method},
                "train": {"epochs": 1, "lr": 0.1, "accumulate": 2},
            },
        }
    )


@pytest.mark.parametrize("relate", [False, True])
def test_weights_checks_and_fingerprint_ask_with_the_arguments(
    relate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "choosing", Choosing)  # type: ignore[arg-type]
    told = recipe(relate=relate)
    terms = terms_for(told.distill.method, told)
    assert terms == LossWeights(ce=1, kd=0, method=7 if relate else 1)
    assert ["relates the images" in p for p in check_relations(told)] == ([True] if relate else [])
    plan = make_plan(told)
    fields = step_fields(plan, plan.steps[1], version=1).result
    assert (fields["targets"] is not None) == relate


def test_an_instance_has_what_its_arguments_need() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    for relate in (False, True):
        method, needs = Choosing(context, relate=relate), Choosing.needs({"relate": relate})
        assert (method.views, method.batch_coupled) == (needs.views, needs.batch_coupled)
        assert method.teacher_taps == needs.teacher_taps
        assert building.distillation(lambda c, r=relate: Choosing(c, relate=r)).teacher_taps(
            None
        ) == (("pooled", "logits") if relate else ("logits",))


@pytest.mark.parametrize("name", METHODS)
def test_needs_stand_wrong_arguments_and_agree_with_the_method(name: str) -> None:
    METHODS[name].needs({"no_such_argument": object()})
    module = building.distillation(METHODS[name])
    method, needs = module.method, METHODS[name].needs({})
    assert method.views == needs.views
    assert method.batch_coupled == needs.batch_coupled
    # Which taps they are may depend on the networks, but not whether there are any.
    assert bool(method.teacher_taps) == bool(needs.teacher_taps)
