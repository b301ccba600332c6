"""Every method between CNNs, ViT, Swin, ConvNeXt and DeiT: it runs, or refuses in one sentence.

The networks are small, and run. Where a pair is refused, it is before anything is trained.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch
from compress.distill import Distillation
from compress.errors import UserError
from compress.methods import METHODS, Method, MethodContext, teacher_context
from compress.models import build
from compress.taps import Tapped, TapSpecs, discover
from compress.tasks import Classification
from tests import transformers
from tests.methods import building
from tests.transformers import CLASSES, SHAPE

VIT, SWIN, CONVNEXT = "torchvision_vit", "torchvision_swin", "torchvision_convnext"
MEAN, DEIT, CNN = "vit_mean", "own_deit", "resnet8x4"
PAIRS = [
    *((teacher, "resnet8") for teacher in (VIT, SWIN, CONVNEXT, MEAN)),
    *((CNN, student) for student in (VIT, SWIN, CONVNEXT, DEIT)),
    (VIT, SWIN),
    (DEIT, VIT),
]
EVERY = {teacher for teacher, _ in PAIRS}
NO_MAP = {VIT, DEIT}
# Method -> teachers and students that it refuses.
_SIMKD: tuple[set[str], set[str]] = {*NO_MAP, MEAN, CONVNEXT}, NO_MAP
_NORM: tuple[set[str], set[str]] = NO_MAP, {*NO_MAP, CONVNEXT}
REFUSED: Mapping[str, tuple[set[str], set[str]]] = {
    **dict.fromkeys(("simkd", "simkd_joint", "simkd_sequential", "ca_mkd"), _SIMKD),
    **dict.fromkeys(("norm", "norm_crd"), _NORM),
    **dict.fromkeys(("ega", "simkd_v"), (set(), {*NO_MAP, CONVNEXT})),
    **dict.fromkeys(("cwd", "dlkd_pixels", "ifvd", "skd"), (EVERY, set())),  # of pixels
    "crcd": (set(), {DEIT}),
    "fsp": (EVERY - {DEIT}, set()),  # wants equal widths
    "ofd": (EVERY - {CNN}, set()),  # wants batch norms
    "simkd_plus": ({*NO_MAP, MEAN}, {*NO_MAP, CONVNEXT}),  # a class token; a coarser student
    "deit": (set(), {"resnet8", VIT, SWIN, CONVNEXT}),  # wants two heads
}


def _network(name: str, seed: int) -> nn.Module:
    if name in transformers.NAMES:
        return transformers.network(name, seed)
    return build(name, num_classes=CLASSES, seed=seed)


@functools.cache
def _specs(name: str) -> TapSpecs:
    return discover(_network(name, 0), SHAPE, name)


def _module(name: str, teacher: str, student: str) -> Distillation:
    """Raises ValueError or UserError where the method refuses the pair."""
    own = _network(student, 1)
    known = [_network(teacher, 2 + i) for i in range(building.teachers_of(METHODS[name]))]
    context = MethodContext(
        student=_specs(student),
        teachers=tuple(teacher_context(network, _specs(teacher)) for network in known),
        num_classes=CLASSES,
        train_size=24,
        labels=torch.arange(24) % CLASSES,
        batch_size=4,
        steps_per_epoch=3,
        epochs=2,
    )
    torch.manual_seed(0)
    method: Method = METHODS[name](context)
    weights = replace(METHODS[name].protocols["simkd"], method=1)
    return Distillation(own, known, method, weights, Classification(), kd_temperature=4.0)


def _batch(method: Method) -> Batch:
    images = tuple(torch.randn(4, *SHAPE) for _ in method.views)
    index = torch.arange(4)
    ids = (index,) * len(images)
    return Batch(images, ids, index % CLASSES, index, epoch=1, step=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_or_refuses_in_a_sentence(name: str) -> None:
    pytest.importorskip("timm")
    teachers, students = REFUSED.get(name, (set(), set()))
    for teacher, student in PAIRS:
        pair = f"{teacher} -> {student}"
        try:
            module = _module(name, teacher, student)
        except (ValueError, UserError) as error:
            assert teacher in teachers or student in students, f"{pair}: {error}"
            assert "\n" not in str(error)
            assert len(str(error)) > 40
            continue
        assert teacher not in teachers, pair
        assert student not in students, pair
        _check(module, pair)


def test_the_heads_of_a_teacher_are_one_classifier() -> None:
    network = _network(DEIT, 3).eval()
    known = teacher_context(network, _specs(DEIT))
    taps = Tapped(network, known.taps, ["pooled", "logits"])(transformers.images())
    assert known.weight is not None
    read = nn.functional.linear(taps.tensor("pooled"), known.weight, known.bias)
    torch.testing.assert_close(read, taps.tensor("logits"))


def _check(module: Distillation, pair: str) -> None:
    """Terms and gradients are finite; what ships predicts what was trained."""
    method = module.method
    total = torch.stack([*module.train()(_batch(method)).values()]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in module.student.parameters() if p.grad is not None]
    assert gradients, f"{pair}: nothing reaches the student"
    assert all(torch.isfinite(g).all() for g in (total, *gradients)), pair
    if type(method).deploy is Method.deploy:
        return
    with torch.no_grad():
        images: Tensor = torch.randn(3, *SHAPE)
        expected = method.logits(method.extend(module.eval()._tapped(images)))
        torch.testing.assert_close(
            method.deploy(module.student).eval()(images), expected, rtol=1e-4, atol=1e-4
        )
