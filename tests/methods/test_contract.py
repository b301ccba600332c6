"""What every method promises, checked for each one in the registry and for two throw-away ones."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.methods import METHODS
from compress.methods.contract import Method
from compress.taps import Tapped
from tests.methods import building
from tests.methods.throwaway import ThreeViews, TwoTeachers, teachers_needed

ALL = [*METHODS.values(), ThreeViews, TwoTeachers]


@pytest.fixture(params=ALL, ids=lambda m: m.__name__)
def method_class(request: pytest.FixtureRequest) -> type[Method]:
    chosen: type[Method] = request.param
    return chosen


def _module(method_class: type[Method]) -> building.Distillation:
    """With the method's own term computed, also where its published weight is 0."""
    terms = method_class.protocols["simkd"]
    return building.distillation(
        method_class,
        teachers_needed(method_class),
        replace(terms, method=terms.method or 1),
    )


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


def test_terms_are_finite_named_scalars(method_class: type[Method]) -> None:
    module = _module(method_class)
    terms = module(next(building.batches(module.method).epoch(0)))
    assert terms
    for name, value in terms.items():
        assert value.shape == (), name
        assert torch.isfinite(value), name


def test_gradient_reaches_what_learns_and_no_teacher(method_class: type[Method]) -> None:
    module = _module(method_class)
    batch = next(building.batches(module.method).epoch(0))
    module.begin_phase(None, batch)
    before = [copy.deepcopy(t.network.state_dict()) for t in module._teachers]
    module.train()
    _sum(module(batch)).backward()
    learning = [p for p in module.parameters() if p.requires_grad]
    assert learning
    assert all(p.grad is not None for p in learning)
    for tapped, state in zip(module._teachers, before, strict=True):
        assert not tapped.network.training
        assert all(p.grad is None for p in tapped.network.parameters())
        after = tapped.network.state_dict()
        assert all(torch.equal(after[k], state[k]) for k in state), "a teacher's state moved"


def test_no_teacher_is_in_the_state(method_class: type[Method]) -> None:
    module = _module(method_class)
    parts = {key.split(".")[0] for key in module.state_dict()}
    assert parts <= {"student", "method"}
    teachers = {id(p) for t in module._teachers for p in t.network.parameters()}
    assert not teachers & {id(p) for p in module.parameters()}


def test_checkpoint_round_trip_gives_the_same_terms(method_class: type[Method]) -> None:
    module, other = _module(method_class), _module(method_class)
    batches = building.batches(module.method)
    module.train()
    for batch in batches.epoch(0):
        _sum(module(batch)).backward()
        with torch.no_grad():
            for p in module.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad
        module.after_step()
    other.load_state_dict(module.state_dict())
    module.eval(), other.eval()
    batch = next(batches.epoch(1))
    for name, value in module(batch).items():
        assert torch.equal(value, other(batch)[name]), name


def test_bf16_autocast_keeps_terms_finite_and_in_float32(method_class: type[Method]) -> None:
    module = _module(method_class)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module(next(building.batches(module.method).epoch(0)))
    for name, value in terms.items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value), name


def test_deploy_gives_logits_equal_to_the_training_path(method_class: type[Method]) -> None:
    module = _module(method_class).eval()
    network = module.method.deploy(module.student).eval()
    images = torch.randn(3, *building.SHAPE)
    with torch.no_grad():
        tapped = Tapped(module.student, module.method.context.student, module.student_taps)
        expected = module.method.logits(tapped(images))
        got = network(images)
    assert got.shape == (3, building.CLASSES)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_batch_of_one(method_class: type[Method]) -> None:
    module = _module(method_class).eval()
    batch = next(building.batches(module.method, batch_size=1, count=4).epoch(0))
    terms = module(batch)
    assert all(torch.isfinite(v) for v in terms.values())


def test_entering_leaves_every_state_as_it_was(method_class: type[Method]) -> None:
    module = _module(method_class)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.begin_phase(None, next(building.batches(module.method).epoch(0)))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_term_of_weight_zero_is_not_computed() -> None:
    weights = METHODS["simkd"].protocols["simkd"]
    module = building.distillation(METHODS["simkd"], weights=weights)
    batch = next(building.batches(module.method).epoch(0))
    assert [*module(batch)] == ["simkd"]
    module.begin_phase(None, batch)
    # The student's own classifier is reached by no term.
    assert not module.student.get_submodule("fc").weight.requires_grad  # type: ignore[union-attr]


def test_no_teacher_runs_for_the_student_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = building.distillation(METHODS["none"])

    def refuse(*_: object) -> None:
        raise AssertionError("a teacher ran")

    monkeypatch.setattr(module, "_teachers", [refuse])
    assert [*module(next(building.batches(module.method).epoch(0)))] == ["ce"]


def test_a_phase_trains_its_parameters_alone() -> None:
    module = building.distillation(ThreeViews)
    batches = building.batches(module.method)
    batch = next(batches.epoch(0))
    (phase,) = module.method.phases()
    module.begin_phase(phase, batch)
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert learning == {"method.teacher_head.weight", "method.teacher_head.bias"}
    assert [*module(batch)] == ["warm"]
    module.begin_phase(None, batch)
    assert any(p.requires_grad for p in module.student.parameters())
    assert not any(p.requires_grad for p in module.method.slow.parameters())


def test_each_phase_trains_what_it_names_and_its_terms_fall(method_class: type[Method]) -> None:
    module = _module(method_class)
    batch = next(building.batches(module.method).epoch(0))
    for phase in module.method.phases():
        module.begin_phase(phase, batch)
        learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
        named = {id(p) for p in phase.parameters}
        assert learning
        assert {id(p) for p in learning.values()} <= named
        assert phase.reads_student or not any(n.startswith("student.") for n in learning)
        fixed = {n: p.clone() for n, p in module.named_parameters() if n not in learning}
        optimizer = torch.optim.SGD([*learning.values()], lr=0.01)
        values = []
        for _ in range(20):
            total = _sum(module.train()(batch))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            values.append(float(total.detach()))
        assert values[-1] < values[0]
        assert all(torch.equal(module.get_parameter(n), value) for n, value in fixed.items())


def test_every_method_has_its_file_test_and_readme_row() -> None:
    root = Path(__file__).parents[2]
    stems = {p.stem for p in (root / "compress/methods").glob("*.py")} - {
        "__init__",
        "__main__",
        "base",
        "maps",
        "memory_bank",
    }
    tests = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert set(METHODS) == stems
    assert stems <= tests
    for name in METHODS:
        assert f"| `{name}` |" in readme, f"README's table lacks {name}"
