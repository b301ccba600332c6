"""CRCD against float64 loops, its relations, gradients in closed form, memory, limits, refusals."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from compress.data import Batch
from compress.distill import Distillation
from compress.methods import crcd_gradient_loss, crcd_loss
from compress.methods.crcd import CRCD, Relations, ce_gradients, relation_scores
from compress.tasks import Classification
from tests.methods import building

ROWS, WIDTHS, FEATURES, TAU = 11, (5, 7), 3, 0.2


def _difference(one: list[float], other: list[float]) -> list[float]:
    return [x - y for x, y in zip(one, other, strict=True)]


def _cosine(one: list[float], other: list[float]) -> float:
    product = sum(x * y for x, y in zip(one, other, strict=True))
    return product / math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))


def _embedded(layer: torch.nn.Linear, features: Tensor) -> list[list[float]]:
    found = []
    for f in features.tolist():
        pairs = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        v = [sum(a * x for a, x in zip(w, f, strict=True)) + b for w, b in pairs]
        found.append([x / math.sqrt(sum(y * y for y in v)) for x in v])
    return found


def _oracle(
    relations: Relations, features: tuple[Tensor, Tensor], images: list[int], drawn: Tensor
) -> tuple[float, ...]:
    """L, Z_s and Z_t of a first batch."""
    total, normalisers = 0.0, []
    sides = (
        (relations.student_embedding, features[0], relations.teacher_bank.tolist()),
        (relations.teacher_embedding, features[1], relations.student_bank.tolist()),
    )
    for layer, inputs, bank in sides:
        embedded, scores = _embedded(layer, inputs), []
        for n, rows in enumerate(drawn.tolist()):
            for anchor in (bank[images[j]] for j in range(len(images)) if j != n):
                own = _difference(embedded[n], anchor)
                known = [_difference(bank[k], anchor) for k in rows]
                scores.append([math.exp(_cosine(own, one) / TAU) for one in known])
        flat = [s for row in scores for s in row]
        z = sum(flat) / len(flat) * ROWS
        noise = (len(scores[0]) - 1) / ROWS
        for positive, *negatives in ([s / z for s in row] for row in scores):
            total -= math.log(positive / (positive + noise + 1e-7)) / len(scores)
            total -= sum(math.log(noise / (p + noise + 1e-7)) for p in negatives) / len(scores)
        normalisers.append(z)
    return total, *normalisers


def _case() -> tuple[Relations, tuple[Tensor, Tensor], Tensor, Tensor]:
    torch.manual_seed(3)
    relations = Relations(*WIDTHS, FEATURES, ROWS).double()
    features = tuple(torch.randn(4, w, dtype=torch.float64) for w in WIDTHS)
    images = torch.tensor([3, 0, 10, 6])
    rest = torch.tensor([i for i in range(ROWS) if i not in images.tolist()])
    drawn = torch.cat([images[:, None], rest[torch.randint(len(rest), (4, 6))]], 1)
    return relations, features, images, drawn  # type: ignore[return-value]


def _module(**arguments: Any) -> Distillation:
    """Of networks of one width, which the form `cosine` needs."""
    student, teachers = building.networks(teacher="resnet14")
    torch.manual_seed(0)
    method = CRCD(building.context(student, teachers), **arguments)
    weights = method.protocols["simkd"]
    task = Classification()
    module = Distillation(student, teachers, method, weights, task, kd_temperature=4.0)
    module.begin_phase(None, building.first_batch(module))
    return module


def test_equals_the_formula_and_sets_its_normalisers_after_the_step() -> None:
    relations, features, images, drawn = _case()
    expected, *normalisers = _oracle(relations, features, images.tolist(), drawn)
    loss = relations(*features, images, drawn, TAU)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-10)
    relations.after_step(0.5)
    assert relations.normalisers.tolist() == pytest.approx(normalisers, rel=1e-10)
    lengths = [bank.norm(dim=1) for bank in (relations.student_bank, relations.teacher_bank)]
    torch.testing.assert_close(torch.stack(lengths), torch.ones(2, ROWS, dtype=torch.float64))


def test_scores_are_highest_at_equality_and_do_not_see_shift_and_rotation() -> None:
    torch.manual_seed(0)
    anchors, rows = torch.randn(4, 3, 5).double(), torch.randn(4, 6, 5).double()
    vectors = rows[:, 0]
    scores = relation_scores(vectors, anchors, rows)
    torch.testing.assert_close(scores[:, :, 0], torch.ones(4, 3).double())
    assert float(scores[:, :, 1:].max()) < 1
    rotation, _ = torch.linalg.qr(torch.randn(5, 5).double())
    moved = [t @ rotation + 3 for t in (vectors, anchors, rows)]
    torch.testing.assert_close(relation_scores(*moved), scores)


def test_rows_that_are_close_to_each_other_keep_their_relations_in_float32() -> None:
    torch.manual_seed(0)
    shared, shapes = torch.randn(16), ((4,), (4, 3), (4, 6))
    vectors, anchors, rows = (shared + 1e-3 * torch.randn(*shape, 16) for shape in shapes)
    narrow = relation_scores(vectors, anchors, rows)
    wide = relation_scores(vectors.double(), anchors.double(), rows.double())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-7, 1e-3])
def test_vectors_and_rows_at_an_anchor_have_bounded_gradients(distance: float) -> None:
    torch.manual_seed(0)
    anchors, rows = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    vectors = torch.randn(3, 5)
    vectors[0] = anchors[0, 1] + distance
    rows[1, 2] = anchors[1, 3] + distance
    vectors.requires_grad_()
    scores = relation_scores(vectors, anchors, rows)
    (gradient,) = torch.autograd.grad(scores.square().sum(), vectors)
    scores = scores.detach()
    assert torch.isfinite(scores).all()
    assert float(scores.abs().max()) < 1.001
    assert float(gradient.abs().max()) < 1e4
    if distance == 0:
        assert float(scores[0, 1].abs().max()) == 0
        assert float(scores[1, 3, 2].abs()) < 1e-3


def test_an_image_is_no_anchor_of_itself_unless_it_is_alone() -> None:
    relations, _, images, drawn = _case()
    vectors = torch.randn(4, FEATURES, dtype=torch.float64)
    scores = relations.scores(vectors, relations.teacher_bank, images, drawn)
    assert scores.shape == (4, 3, 7)
    with torch.no_grad():
        relations.teacher_bank[images[1]] += 1
    moved = relations.scores(vectors, relations.teacher_bank, images, drawn)
    apart = (moved - scores).abs() > 1e-9
    assert apart[1].any(0).tolist() == [True] + 6 * [False]  # of image 1 only the positive moves
    assert apart[0].any(0).all()
    alone = relations.scores(vectors[:1], relations.teacher_bank, images[:1], drawn[:1])
    assert alone.shape == (1, 1, 7)
    assert torch.isfinite(alone).all()


def test_equal_scores_have_a_closed_form() -> None:
    negatives, rows = 50, 200
    scores = torch.full((3, 2, 1 + negatives), 2.5, dtype=torch.float64)
    expected = math.log1p(negatives) + negatives * math.log1p(1 / negatives)
    got = crcd_loss(scores, scores.exp().mean() * rows, rows)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_gradients_and_what_they_teach_are_those_of_a_second_backward_pass() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    classifier = torch.nn.Linear(6, 3).double()
    labels, target = torch.tensor([0, 2, 1, 1]), torch.randn(4, 6).double()
    logits = classifier(features)
    (expected,) = torch.autograd.grad(
        cross_entropy(logits, labels, reduction="sum"), features, create_graph=True
    )
    got = ce_gradients(logits, labels, classifier.weight)
    torch.testing.assert_close(got, expected)
    learning = [features, *classifier.parameters()]
    pairs = zip(
        torch.autograd.grad((got * target).sum(), learning, retain_graph=True),
        torch.autograd.grad((expected * target).sum(), learning),
        strict=True,
    )
    for own, known in pairs:
        torch.testing.assert_close(own, known)


def test_the_cosine_form_is_zero_at_equal_directions_and_bounded_at_zero() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    expected = sum(_cosine(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True))
    got = float(crcd_gradient_loss(student, teacher))
    assert got == pytest.approx(10 * (1 - expected / 5), rel=1e-12)
    assert float(crcd_gradient_loss(3 * teacher, teacher)) == pytest.approx(0, abs=1e-14)
    for length in (0.0, 1e-30, 1e-6):
        own = torch.cat([student[:4], student[4:] * length]).float().requires_grad_()
        (gradient,) = torch.autograd.grad(crcd_gradient_loss(own, teacher.float()), own)
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().max()) < 1e4


@pytest.mark.parametrize("gradient", ["relations", "cosine"])
def test_the_term_of_gradients_teaches_the_student_and_its_classifier(gradient: str) -> None:
    module = _module(gradient=gradient, gradient_weight=0.5)
    terms = module(building.first_batch(module))
    terms["gradients"].backward()
    for name in ("fc.weight", "fc.bias", "conv1.weight"):
        own = module.student.get_parameter(name)
        assert own.grad is not None and float(own.grad.abs().max()) > 0, name
    whole = _module(gradient=gradient)
    doubled = whole(building.first_batch(whole))["gradients"]
    torch.testing.assert_close(doubled, 2 * terms["gradients"])


def test_the_student_learns_from_gradients_what_a_second_backward_pass_teaches() -> None:
    module = _module(gradient="cosine")
    batch = building.first_batch(module.eval())
    weight = module.student.get_parameter("fc.weight")
    (got,) = torch.autograd.grad(module(batch)["gradients"], weight)
    gradients = []
    for tapped in (module._tapped, module._teachers[0]):
        shown = tapped(batch.images[0])
        features = shown.tensor("pooled").detach().requires_grad_()
        logits = tapped.network.get_submodule("fc")(features)
        loss = cross_entropy(logits, batch.labels)
        gradients += torch.autograd.grad(loss, features, create_graph=True)
    (expected,) = torch.autograd.grad(crcd_gradient_loss(*gradients), weight)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gradient", ["relations", "cosine"])
def test_the_lengths_of_gradients_do_not_matter(gradient: str) -> None:
    module = _module(gradient=gradient)
    batch, method = building.first_batch(module.eval()), module.method
    assert isinstance(method, CRCD)
    before = module(batch)["gradients"]
    method.teacher_weight *= 1e-4
    torch.testing.assert_close(module(batch)["gradients"], before, rtol=1e-4, atol=1e-4)


def test_without_gradients_no_classifier_is_needed_and_half_the_banks() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    (teacher,) = context.teachers
    bare = replace(context, teachers=(replace(teacher, weight=None, bias=None),))
    method = CRCD(bare, gradient="none")
    assert [*method.relations] == ["features"]
    assert method.notes()[0] == "features: two memory banks of 24 x 128 float32: 0.02 MB"
    assert len(CRCD(context).notes()) == 3
    module = _module(gradient="none")
    assert [*module(building.first_batch(module))] == ["ce", "soft", "features"]
    with pytest.raises(ValueError, match="a network has none; take gradient: none"):
        CRCD(bare)


def test_the_last_epochs_are_without_its_terms() -> None:
    module = _module(until=0.5)  # of 2 epochs
    batch = building.first_batch(module)
    assert {"features", "gradients"} <= {*module(batch)}
    assert [*module(replace(batch, epoch=1))] == ["ce", "soft"]
    first, last = replace(batch, epoch=239), replace(batch, epoch=240)
    method = CRCD(replace(module.method.context, epochs=250))
    assert first.epoch < method.last_epoch <= last.epoch


def test_trial_passes_and_passes_in_eval_mode_leave_the_state_alone() -> None:
    module = _module()
    batch = building.first_batch(module)
    before = {k: v.clone() for k, v in module.method.state_dict().items()}
    for trial in (partial(module.begin_phase, None), module.measure, module.eval()):
        trial(batch)
        module.after_step()
    assert {"relations.gradients.student_bank", "relations.features.normalisers"} <= {*before}
    assert all(torch.equal(v, before[k]) for k, v in module.method.state_dict().items())
    module.train()(batch)
    module.after_step()
    state = module.method.state_dict()
    for element in ("features", "gradients"):
        for bank in ("student_bank", "teacher_bank"):
            name = f"relations.{element}.{bank}"
            moved = (state[name] != before[name]).any(1).nonzero().flatten()
            assert moved.tolist() == sorted(batch.index.tolist()), name


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, Tensor):
                self.size = max(self.size, one.numel())
        return made


def test_no_difference_of_every_image_anchor_and_row_is_made() -> None:
    images, negatives, features, rows = 10, 40, 16, 100
    relations = Relations(8, 8, features, rows)
    index = torch.arange(images)
    drawn = torch.cat([index[:, None], torch.randint(rows, (images, negatives))], 1)
    with _Largest() as largest:
        relations(torch.randn(images, 8), torch.randn(images, 8), index, drawn, TAU).backward()
    # Rows that were drawn, or scores; a difference of each would be (N, N - 1, 1 + K, D).
    assert largest.size == max(images * (1 + negatives) * features, images**2 * (1 + negatives))


def test_draws_are_of_other_classes_and_a_function_of_the_step() -> None:
    method = _module().method
    assert isinstance(method, CRCD)
    whole = Batch((), (), building.images().labels, torch.arange(24), epoch=0, step=0)
    drawn = method.sampler.others(whole.labels, method.generator(whole))
    assert bool((whole.labels[drawn] != whole.labels[:, None]).all())
    assert torch.equal(drawn, method.sampler.others(whole.labels, method.generator(whole)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": 0}, "at least 1, got 0"),
        ({"temperature": 0.01}, "at least 0.02, got 0.01"),
        ({"momentum": 1.0}, "from 0 to below 1"),
        ({"features": 0}, "features is at least 1"),
        ({"gradient": "mse"}, "relations, cosine or none, got mse"),
        ({"gradient_weight": 0.0}, "gradient_weight is above 0, got 0"),
        ({"until": 0.0}, "until is above 0 and at most 1, got 0"),
    ],
)
def test_impossible_values_are_refused_in_words(arguments: dict[str, Any], message: str) -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match=message):
        CRCD(building.context(student, teachers), **arguments)


def test_gradients_of_unequal_widths_have_no_cosine() -> None:
    student, teachers = building.networks()
    with pytest.raises(ValueError, match="64 and 256"):
        CRCD(building.context(student, teachers), gradient="cosine")
