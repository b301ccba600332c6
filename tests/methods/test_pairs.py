"""Every method on every pair of the papers' tables: it runs, or refuses in one sentence.

The networks themselves do not run: taps of the right shapes are drawn in their place. A method that
may refuse pairs says which in its own test file, by `may_refuse(teacher, student)` of their taps.
"""

import functools
import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch
from compress.methods import METHODS, Method, MethodContext, TeacherContext
from compress.models import build
from compress.recipe import read_yaml
from compress.sweep.schema import check_sweep
from compress.taps import (
    KINDS,
    MapSpec,
    Tapped,
    Taps,
    TapSpecs,
    VectorSpec,
    discover,
    switch_off_inplace,
)
from tests.methods import building

TABLES = sorted((Path(__file__).parents[2] / "pipelines/tables").glob("*_table?.yaml"))
CLASSES, SHAPE, IMAGES = 10, (3, 32, 32), 4


def _pairs() -> list[tuple[str, str]]:
    found = []
    for path in TABLES:
        sweep, problems = check_sweep(read_yaml(path))
        assert sweep is not None, problems
        found += [
            (sweep.teachers[label]["model"], sweep.students[p.student]["model"])
            for p in sweep.pairs
            for label in p.teachers
        ]
    # Ends of what users bring: torchvision's and timm's networks, other sizes of maps.
    found += [("torchvision:resnet18", "resnet8"), ("resnet8x4", "torchvision:mobilenet_v2")]
    found += [("timm:resnet10t", "shufflenetv2"), ("wrn_16_2", "timm:resnet10t")]
    return list(dict.fromkeys(found))


PAIRS = _pairs()


@functools.cache
def _specs(name: str) -> TapSpecs:
    return discover(build(name, num_classes=CLASSES), SHAPE, name)


def _network(name: str) -> nn.Module:
    network = build(name, num_classes=CLASSES)
    switch_off_inplace(network)
    return network


def _tap(kind: str, spec: MapSpec | VectorSpec, *, learns: bool) -> Tensor:
    sample = torch.randn if kind == "logits" else torch.rand
    drawn = sample(IMAGES, *spec.shape) - (0.5 if kind == "pre_activations" else 0)
    return drawn.requires_grad_(learns)


def _taps(specs: TapSpecs, *, learns: bool) -> Taps:
    """Random numbers of every kind that the network has."""
    taps = Taps()
    for kind in KINDS:
        found = specs.of(kind)
        if isinstance(found, tuple):
            taps[kind] = [_tap(kind, spec, learns=learns) for spec in found]
        elif found is not None:
            taps[kind] = _tap(kind, found, learns=learns)
    # By its path, as a method may ask for it.
    stages = zip(specs.stages, taps.tensors("stages"), strict=True)
    taps |= {spec.path: drawn for spec, drawn in stages}
    if specs.last_map is not None:
        taps.setdefault(specs.last_map.path, taps.tensor("last_map"))
    return taps


class _Drawn(Tapped):
    """A student, and any copy of it, that shows random numbers for images."""

    def __init__(self, specs: TapSpecs, network: nn.Module | None = None) -> None:
        super().__init__(network or nn.Linear(1, 1), specs, ())

    def with_network(self, network: nn.Module) -> Tapped:
        return self

    def __call__(self, images: Tensor) -> Taps:
        return _taps(self.specs, learns=False)


def _has_network(method: type[Method]) -> bool:
    return method.copies_teacher or method.reads_network


def _method(name: str, teacher: str, student: str) -> Method:
    known, classes = _specs(teacher), torch.arange(60) % CLASSES
    assert known.pooled_width is not None
    context = MethodContext(
        student=_specs(student),
        teachers=tuple(
            TeacherContext(
                known,
                torch.randn(CLASSES, known.pooled_width),
                torch.randn(CLASSES),
                _network(teacher) if _has_network(METHODS[name]) else None,
            )
            for _ in range(_teachers(name))
        ),
        num_classes=CLASSES,
        train_size=60,
        labels=classes,
        batch_size=IMAGES,
        steps_per_epoch=15,
        epochs=2,
    )
    method = METHODS[name](context)
    reads = METHODS[name].reads_classifier
    method.bind(_Drawn(_specs(student), _network(student) if reads else None))
    return method


def _terms(method: Method, own: Taps, known: list[Taps]) -> dict[str, Tensor]:
    """The terms where every view of a network has the same taps."""
    images, index = torch.rand(IMAGES, *SHAPE), torch.arange(IMAGES)
    views = len(method.views)
    seen = (images,) * views, (index,) * views
    batch = Batch(*seen, index % CLASSES, index, epoch=1, step=0)  # every term is on
    with torch.no_grad():
        batch = replace(batch, observed=method.observe(batch))
    shown = [method.extend(own) if view.student else None for view in method.views]
    targets = [[taps if view.teacher else None for view in method.views] for taps in known]
    return method(shown, targets, batch)  # type: ignore[no-any-return]


def _teachers(name: str) -> int:
    return building.teachers_of(METHODS[name])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_a_method_runs_on_every_pair_or_refuses_in_a_sentence(name: str) -> None:
    torch.manual_seed(0)
    for teacher, student in PAIRS:
        # Projections to the widest teachers have billions of weights: they are built, not run.
        is_huge = name == "semckd" and _specs(teacher).stages[-1].channels > 512
        try:
            with torch.device("meta" if is_huge else "cpu"):
                method = _method(name, teacher, student)
        except ValueError as error:
            assert _may_refuse(name, teacher, student), f"{teacher} -> {student}: {error}"
            assert "\n" not in str(error)
            assert len(str(error)) > 40
            continue
        if is_huge:
            continue
        own = _taps(_specs(student), learns=True)
        known = [_taps(_specs(teacher), learns=False) for _ in range(_teachers(name))]
        terms = _terms(method, own, known)
        total = torch.stack([*terms.values()]).sum()
        assert torch.isfinite(total), f"{teacher} -> {student}"
        total.backward()  # type: ignore[no-untyped-call]
        learned = [t for tap in own.values() for t in (tap if isinstance(tap, list) else [tap])]
        reached = any(t.grad is not None for t in learned)
        assert reached, f"{teacher} -> {student}: nothing reaches the student"


def _may_refuse(name: str, teacher: str, student: str) -> bool:
    own_tests = importlib.import_module(f"tests.methods.test_{name}")
    may_refuse = getattr(own_tests, "may_refuse", lambda *_: False)
    return bool(may_refuse(_specs(teacher), _specs(student)))


def test_fsp_runs_where_the_paper_has_a_number() -> None:
    for teacher, student in (("wrn_40_2", "wrn_16_2"), ("resnet56", "resnet20")):
        assert not _may_refuse("fsp", teacher, student)
    assert _may_refuse("fsp", "wrn_40_2", "wrn_40_1")
