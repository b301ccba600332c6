"""What every method promises, checked for each one in the registry and for throw-away ones."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.engine import TrainSettings, train
from compress.engine.optimization import constant
from compress.methods import METHODS, Method
from compress.taps import Tapped
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


def _shape(module: building.Distillation) -> tuple[int, int, int]:
    return building.DENSE_SHAPE if module.task.is_dense else building.SHAPE


def _sum(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


def test_terms_are_finite_named_scalars(method_class: type[Method]) -> None:
    module = _module(method_class)
    terms = module(building.first_batch(module))
    assert terms
    for name, value in terms.items():
        assert value.shape == (), name
        assert torch.isfinite(value), name


def test_gradient_reaches_what_learns_and_no_teacher(method_class: type[Method]) -> None:
    module = _module(method_class)
    batch = building.first_batch(module)
    module.begin_phase(None, batch)
    before = [copy.deepcopy(t.network.state_dict()) for t in module._teachers]
    module.train()
    _sum(module(batch)).backward()
    learning = [p for p in module.parameters() if p.requires_grad]
    assert learning
    late = {id(p) for p in module.method.late_parameters()}
    assert all(p.grad is not None or id(p) in late for p in learning)
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
        assert torch.equal(value, other(batch)[name]), (
            f"{name} differs between two passes of one batch: what the method remembers is no "
            "buffer, or it draws from the global generators (see Method.draw)"
        )


# The parts of a coupled method have other relations; processes exchange their rows.
@pytest.mark.parametrize("uncoupled", [m for m in ALL if not m.batch_coupled])
def test_a_step_is_its_contiguous_parts_weighted_by_their_share(uncoupled: type[Method]) -> None:
    module = _module(uncoupled).double()
    for teacher in module._teachers:
        teacher.network.double()  # teachers are no submodules
    steps = (
        replace(batch, images=tuple(view.double() for view in batch.images))
        for batch in building.batches(module.method).epoch(0)
    )
    module.train()(next(steps))
    module.after_step()  # what is set in the first step is set
    batch = next(steps)
    module.eval()  # batch norm is not what is looked at
    parts = [building.part(batch, rows) for rows in (slice(0, 3), slice(3, 8))]
    terms_of_parts = [(part.share, module(part)) for part in parts]
    for name, value in module(batch).items():
        mean = sum(share * terms[name] for share, terms in terms_of_parts)
        torch.testing.assert_close(
            mean,
            value,
            rtol=1e-10,
            atol=1e-12,
            msg=f"{name} of a step differs from that of two processes: a mean that is not over "
            "the images, or numbers drawn for a part instead of the whole step (see Method.draw)",
        )


def test_bf16_autocast_keeps_terms_finite_and_in_float32(method_class: type[Method]) -> None:
    module = _module(method_class)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module(building.first_batch(module))
    for name, value in terms.items():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value), name


def test_deploy_gives_logits_equal_to_the_training_path(method_class: type[Method]) -> None:
    module = _module(method_class).eval()
    network = module.method.deploy(module.student).eval()
    images = torch.randn(3, *_shape(module))
    with torch.no_grad():
        tapped = Tapped(module.student, module.method.context.student, module.student_taps)
        expected = module.method.logits(module.method.extend(tapped(images)))
        got = network(images)
    assert got.shape[:2] == (3, building.CLASSES)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_what_ships_predicts_what_was_trained(method_class: type[Method]) -> None:
    module = _module(method_class).eval()
    shipped = module.method.ship(module.student).eval()
    if module.method.phases_after():  # which change it
        assert shipped is module.student
        return
    images = torch.randn(3, *_shape(module))
    with torch.no_grad():
        expected = module.method.deploy(module.student).eval()(images)
        torch.testing.assert_close(shipped(images), expected, rtol=1e-5, atol=1e-5)


def test_batch_of_one(method_class: type[Method]) -> None:
    module = _module(method_class).eval()
    batch = next(building.batches(module.method, batch_size=1, count=4).epoch(0))
    terms = module(batch)
    assert all(torch.isfinite(v) for v in terms.values())


def test_entering_leaves_every_state_as_it_was(method_class: type[Method]) -> None:
    module = _module(method_class)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.begin_phase(None, building.first_batch(module))
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


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


def test_each_phase_trains_what_it_names_and_its_terms_fall(method_class: type[Method]) -> None:
    module = _module(method_class)
    batch = building.first_batch(module)
    for phase in (*module.method.phases(), *module.method.phases_after()):
        module.begin_phase(phase, batch)
        learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
        named = {id(p) for p in phase.parameters}
        assert learning
        assert {id(p) for p in learning.values()} <= named
        reads_student = phase.student != "absent"
        assert reads_student or not any(n.startswith("student.") for n in learning)
        fixed = {n: p.clone() for n, p in module.named_parameters() if n not in learning}
        if phase.student != "train":
            fixed |= {n: b.clone() for n, b in module.named_buffers() if n.startswith("student.")}
        optimizer = torch.optim.SGD([*learning.values()], lr=0.01)
        values = []
        for _ in range(20):
            total = _sum(module.train()(batch))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            values.append(float(total.detach()))
        assert values[-1] < values[0]
        state = module.state_dict()
        assert all(torch.equal(state[n], value) for n, value in fixed.items())


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
