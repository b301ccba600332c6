"""DistPro: its loss and paths, the derivative of the process, the search, replaying, refusals."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from compress.data import Batch
from compress.engine import TrainSettings
from compress.engine.loop import OptimizerStep
from compress.methods import distpro_loss
from compress.methods.blocks.feature_maps import hierarchical_context_loss
from compress.methods.blocks.heads import label_loss
from compress.methods.contract import pre_activations
from compress.methods.distpro import DistPro
from tests.methods import building

PATHS = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


def _module(**arguments: Any) -> tuple[building.Distillation, DistPro]:
    module = building.distillation(partial(DistPro, **arguments))  # type: ignore[arg-type]
    assert isinstance(module.method, DistPro)
    return module, module.method


def _maps(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def test_the_loss_is_the_weighted_sum_of_hierarchical_context_losses() -> None:
    shapes = [(2, 3, 8, 8), (2, 5, 4, 4)]
    own, known = ([_maps(*s, seed=i) for s in shapes] for i in (0, 1))
    parts = [float(hierarchical_context_loss(*pair)) for pair in zip(own, known, strict=True)]
    assert float(distpro_loss(own, known)) == pytest.approx(sum(parts))
    weights = torch.tensor([2.0, 0.5])
    expected = 2 * parts[0] + 0.5 * parts[1]
    assert float(distpro_loss(own, known, weights)) == pytest.approx(expected)
    assert float(distpro_loss(known, known)) == 0


def test_paths_lead_to_stages_as_fine_or_finer() -> None:
    module, method = _module(search_epochs=0)
    assert method.paths.places == PATHS
    batch = building.first_batch(module)
    views = module._student_views(batch), module._teacher_views(batch)[0]
    connected, targets = method.paths(*map(pre_activations, views))
    assert [c.shape for c in connected] == [t.shape for t in targets]
    assert [t.shape[-1] for t in targets] == [16, 16, 16, 8, 8, 4]


def _searching() -> tuple[building.Distillation, DistPro, list[Batch]]:
    module, method = _module(search_epochs=2, held_out=0.4)
    batches = [*building.batches(method).epoch(0)]
    return module, method, batches


def test_the_slope_is_the_derivative_through_a_step_of_sgd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, method, batches = _searching()
    module.double()
    for teacher in module._teachers:
        teacher.network.double()
    images = batches[0].images[0].double()
    batch = replace(batches[0], images=(images,))
    is_judge = method.is_held_out[batch.index]
    own, judges = images[~is_judge], images[is_judge]
    labels, truth = batch.labels[~is_judge], batch.labels[is_judge]
    assert len(own) and len(judges)
    known = [m[~is_judge] for m in pre_activations(module._teacher_views(batch)[0])]
    with torch.no_grad():
        method.alpha += torch.linspace(-1, 1, 6)
    method._unrolled[0].double()
    searched = method.searched.train()
    usual = method._slope(own, labels, known, judges, truth)
    monkeypatch.setattr("compress.methods.distpro._NUDGE", 1e-6)
    got = method._slope(own, labels, known, judges, truth)

    alpha = method.alpha.detach().requires_grad_()
    names = [name for name, _ in searched.named_parameters()]
    begun = dict(searched.named_parameters())

    class Judged(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.searched = searched

        def forward(self, judges: Tensor | None) -> Any:
            return searched.judge(judges) if judges is not None else searched.show(own, known)

    judged = Judged()

    def run(values: dict[str, Tensor], judges: Tensor | None) -> Any:
        named = {f"searched.{name}": value for name, value in values.items()}
        return functional_call(judged, named, (judges,))

    logits, losses = run(begun, None)
    loss = label_loss(logits, labels) + (alpha.softmax(0) * losses).sum()
    step = torch.autograd.grad(loss, [begun[n] for n in names], create_graph=True)
    moved = {n: begun[n] - method.unroll_lr * g for n, g in zip(names, step, strict=True)}
    outer = label_loss(run(moved, judges), truth)
    (expected,) = torch.autograd.grad(outer, alpha)
    size = float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * size)
    torch.testing.assert_close(usual, expected, rtol=0, atol=0.1 * size)


def test_a_search_moves_copy_and_process_and_leaves_the_student_alone() -> None:
    module, method, batches = _searching()
    (phase,) = method.phases()
    assert (phase.epochs, phase.student) == (2, "absent")
    student = {k: v.clone() for k, v in module.student.state_dict().items()}
    copied = [p.clone() for p in method.searched.parameters()]
    module.begin_phase(phase, batches[0])
    learn = OptimizerStep(
        module.train(), TrainSettings(epochs=2, lr=0.01, batch_size=8), building.CPU
    )
    for batch in batches[:2]:
        learn(replace(batch, epoch=1), 0.01, {})
        assert phase.after_step is not None
        phase.after_step()
    now = module.student.state_dict()
    assert all(torch.equal(now[k], v) for k, v in student.items())
    pairs = zip(copied, method.searched.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in pairs)
    assert not torch.equal(method.alpha, torch.ones(6))
    assert torch.equal(method.process[1], method.alpha.detach())
    assert torch.equal(method.process[0], torch.ones(6))


def test_the_term_of_the_process_has_the_slope_for_gradient_and_no_value() -> None:
    module, method, batches = _searching()
    terms = method._search([None], module._teacher_views(batches[0]), batches[0])
    assert float(terms["process"].detach()) == 0
    (gradient,) = torch.autograd.grad(terms["process"], method.alpha)
    assert gradient.shape == (6,) and float(gradient.abs().max()) > 0


@pytest.mark.parametrize("epochs", [1, 3, 5])
def test_a_process_is_read_between_its_epochs(epochs: int) -> None:
    rows = [[0.0] * 6, [2.0] + [0.0] * 5, [4.0] + [1.0] * 5]
    student, teachers = building.networks()
    context = replace(building.context(student, teachers), epochs=epochs)
    method = DistPro(context, process=rows)
    assert method.phases() == [] and method.parameter_groups() == []
    for epoch in range(epochs):
        place = 2 * epoch / max(1, epochs - 1)
        first = min(int(place), 1)
        pairs = zip(rows[first], rows[first + 1], strict=True)
        alpha = torch.tensor([a + (place - first) * (b - a) for a, b in pairs] + [1.0])
        weights = method.weights(epoch)
        assert weights is not None
        torch.testing.assert_close(weights, 6 * alpha.softmax(0)[:6])


def test_without_search_and_process_every_path_counts_the_same() -> None:
    module, method = _module(search_epochs=0)
    assert method.weights(0) is None and method.phases() == []
    batch = building.first_batch(module)
    own, known = module._student_views(batch), module._teacher_views(batch)
    expected = distpro_loss(*method.paths(pre_activations(own), pre_activations(known[0])))
    torch.testing.assert_close(method(own, known, batch)["distpro"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search_epochs": -1}, "search_epochs is at least 0, got -1"),
        ({"held_out": 1.0}, "held_out is a share above 0 and below 1, got 1"),
        ({"process_lr": 0.0}, "process_lr is above 0, got 0"),
        ({"process": [[1.0] * 5]}, "6 numbers in it, one for each path; got 1 rows of 5 numbers"),
        ({"process": []}, "got 0 rows of no numbers"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _module(**arguments)
