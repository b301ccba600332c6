"""NORM+CRD is the terms of the two; what it remembers of the images does not ship."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from compress.methods import METHODS
from compress.methods.crd import CRD
from compress.methods.norm import NORM
from compress.methods.norm_crd import NORMCRD
from compress.model_files import describe_method
from compress.model_files.artifacts import load_method_state, rebuild_method
from compress.taps import Taps
from tests.methods import building
from tests.methods.test_norm import may_refuse

__all__ = ["may_refuse"]


def _built(**arguments: Any) -> NORMCRD:
    student, teachers = building.networks()
    return NORMCRD(building.context(student, teachers), **arguments)


def test_the_terms_are_those_of_both_methods() -> None:
    module = building.distillation(NORMCRD)
    method, batch = module.method, building.first_batch(module)
    assert isinstance(method, NORMCRD)
    method.seed = 7
    own = method.extend(module._tapped(batch.images[0]))
    known = module._teachers[0](batch.images[0])
    terms = method([own], [[known]], batch)
    expected = NORM.forward(method, [own], [[known]], batch)
    torch.testing.assert_close(terms["norm"], expected["norm"])
    alone = CRD(method.context)
    alone.seed = 7
    alone.load_state_dict(method.contrast.state_dict())
    pooled = Taps(pooled=own.tensor("last_map").mean((2, 3)))
    before = alone([pooled], [[known]], batch)["crd"]
    behind = alone([Taps(pooled=own.tensor("pooled"))], [[known]], batch)["crd"]
    torch.testing.assert_close(terms["crd"], 2.5 * behind)
    assert not torch.allclose(before, behind)


def test_banks_move_after_a_step_alone() -> None:
    module = building.distillation(NORMCRD).train()
    method = module.method
    assert isinstance(method, NORMCRD)
    contrast = method.contrast.contrasts[0]
    before = contrast.student_bank.clone()
    batch = building.first_batch(module)
    module(batch)
    assert torch.equal(contrast.student_bank, before)
    module.after_step()
    moved = (contrast.student_bank != before).any(1)
    assert sorted(moved.nonzero().flatten().tolist()) == sorted(batch.index.tolist())


def test_rebuilt_without_data_it_ships_the_same_and_holds_no_rows() -> None:
    student, _ = building.networks()
    method = _built()
    with torch.no_grad():
        method.transform.expand[0].weight.mul_(2)
    described = describe_method(method, "norm_crd", {})
    rebuilt = rebuild_method(described)
    assert isinstance(rebuilt, NORMCRD)
    assert rebuilt.contrast.contrasts[0].student_bank.shape == (0, 128)
    load_method_state(rebuilt, method.state_dict())
    images = torch.randn(2, *building.SHAPE)
    with torch.no_grad():
        expected, result = (m.ship(student).eval()(images) for m in (method, rebuilt))
    assert torch.equal(result, expected)


def test_it_reads_labels_and_knows_its_images() -> None:
    needs = METHODS["norm_crd"].needs({})
    assert needs.reads_labels and needs.teacher_taps == ("last_map", "pooled")
    assert NORMCRD.knows_images and not NORM.knows_images
    assert "two memory banks of 24 x 128" in _built().notes()[0]


def test_impossible_values_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"contrast_weight is above 0 \(without contrast: norm\)"):
        _built(contrast_weight=0.0)
    with pytest.raises(ValueError, match="negatives is at least 1, got 0"):
        _built(negatives=0)
    student, teachers = building.networks()
    context = building.context(student, teachers)
    with pytest.raises(ValueError, match="all 24 training images are of one class"):
        NORMCRD(replace(context, labels=torch.zeros(24, dtype=torch.long)))
