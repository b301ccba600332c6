"""What every method promises, checked for each one in the registry and for throw-away ones."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.engine import TrainSettings, train
from compress.engine.optimization import constant
from compress.method_checks import CHECKS, Check
from compress.methods import METHODS, Method
from tests.methods import building
from tests.methods.throwaway import THROWAWAY, Alternating, Masked, ThreeViews, teachers_needed

# Methods of images and of pixels count twice: `images` False has them built for pixels.
PIXELS = [
    type(f"{one.__name__}OfPixels", (one,), {"images": False})
    for one in METHODS.values()
    if one.dense and one.images
]
ALL = [*METHODS.values(), *PIXELS, *THROWAWAY]


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


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_method_keeps_the_contract(check: Check, method_class: type[Method]) -> None:
    check(partial(_module, method_class))


@pytest.mark.parametrize("uncoupled", [m for m in ALL if not m.batch_coupled])
def test_terms_of_float64_stay_so(uncoupled: type[Method]) -> None:
    """The check of a step in its parts is exact then, and else is not."""
    module = _module(uncoupled).double().eval()
    for teacher in module._teachers:
        teacher.network.double()  # teachers are no submodules
    batch = building.first_batch(module)
    batch = replace(batch, images=tuple(view.double() for view in batch.images))
    assert {value.dtype for value in module(batch).values()} == {torch.float64}


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


@pytest.mark.parametrize("registered", METHODS.values())
def test_two_teachers_teach_or_are_refused_in_words(registered: type[Method]) -> None:
    try:
        module = building.distillation(registered, 2)
    except ValueError as error:
        assert str(error) == "the method reads one teacher, got 2"
        return
    batch = building.first_batch(module.eval())
    before = _sum(module(batch))
    assert torch.isfinite(before)
    with torch.no_grad():
        for parameter in module._teachers[1].network.parameters():
            parameter *= 2
    assert registered is METHODS["none"] or _sum(module(batch)) != before


def test_a_term_of_weight_zero_is_not_computed() -> None:
    weights = METHODS["simkd"].protocols["simkd"]
    module = building.distillation(METHODS["simkd"], weights=weights)
    batch = building.first_batch(module)
    assert [*module(batch)] == ["simkd"]
    module.begin_phase(None, batch)
    # The student's own classifier is reached by no term.
    assert not module.student.get_submodule("fc").weight.requires_grad  # type: ignore[union-attr]


def test_no_teacher_runs_for_the_student_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = building.distillation(METHODS["none"])

    def refuse(*_: object) -> None:
        raise AssertionError("a teacher ran")

    monkeypatch.setattr(module, "_teachers", [refuse])
    assert [*module(building.first_batch(module))] == ["ce"]


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


def test_a_phase_has_its_own_after_step() -> None:
    module = building.distillation(ThreeViews)
    method, batch = module.method, building.first_batch(module)
    assert isinstance(method, ThreeViews)
    module.begin_phase(method.phases()[0], batch)
    module(batch)
    module.after_step()
    assert (int(method.warmed), int(method.steps)) == (1, 0)
    module.begin_phase(replace(method.phases()[0], after_step=None), batch)
    module.after_step()
    assert (int(method.warmed), int(method.steps)) == (1, 0)
    module.begin_phase(None, batch)
    module(batch)
    module.after_step()
    assert (int(method.warmed), int(method.steps)) == (1, 1)


def test_a_term_that_is_not_in_the_first_batch_learns_and_resumes(tmp_path: Path) -> None:
    def learnt(folder: Path, *epochs: int) -> dict[str, Tensor]:
        for count in epochs:
            module = building.distillation(Alternating)
            module.begin_phase(None, building.first_batch(module))
            train(
                module,
                building.batches(module.method),
                TrainSettings(count, lr=0.1, batch_size=8, schedule=constant()),
                directory=folder,
                role="alternating",
                seed=0,
                device=building.CPU,
            )
        return module.state_dict()

    before = building.distillation(Alternating).state_dict()
    once, resumed = learnt(tmp_path / "once", 2), learnt(tmp_path / "resumed", 1, 2)
    for head in ("even", "odd"):
        name = f"method.{head}.weight"
        assert not torch.equal(once[name], before[name]), f"{name} never learned"
    assert all(torch.equal(once[name], resumed[name]) for name in once)


def test_draws_are_a_function_of_seed_epoch_step_and_key() -> None:
    module = building.distillation(Masked)
    method, batch = module.method, building.first_batch(module)
    drawn = method.draw(batch, (2,))
    assert drawn.shape == (8, 2)
    torch.rand(3)
    assert torch.equal(method.draw(batch, (2,)), drawn)
    assert torch.equal(method.draw(building.part(batch, slice(3, 8)), (2,)), drawn[3:])
    for other in (replace(batch, step=5), replace(batch, epoch=5)):
        assert not torch.equal(method.draw(other, (2,)), drawn)
    assert not torch.equal(method.draw(batch, (2,), key="other"), drawn)
    assert float(method.draw(batch, (2,), sample=torch.randn).min()) < 0
    method.seed += 1
    assert not torch.equal(method.draw(batch, (2,)), drawn)


def test_a_submodule_does_not_hide_behind_a_function_of_the_contract() -> None:
    method = building.distillation(METHODS["none"]).method
    with pytest.raises(ValueError, match="`generator` is a function of every method"):
        method.generator = nn.Identity()  # type: ignore[method-assign, assignment]


def test_every_method_has_its_file_test_and_row_in_the_guide() -> None:
    root = Path(__file__).parents[2]
    files = (root / "compress/methods").glob("*.py")
    stems = {p.stem for p in files} - {"__init__", "__main__", "contract"}
    tests = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    guide = (root / "docs/guides/methods.md").read_text(encoding="utf-8")
    assert set(METHODS) == stems
    assert stems <= tests
    for name in METHODS:
        assert f"| `{name}` |" in guide, f"the table of docs/guides/methods.md lacks {name}"
