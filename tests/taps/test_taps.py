"""Taps are a mapping, and a kind of tap is a line of one table."""

import json
from typing import Any

import pytest
import torch

from compress.models import build
from compress.taps import KINDS, Kind, Tapped, TappedGraph, TapSpecs, discover
from compress.teacher import make_fast, measure_tap_differences
from compress.teacher.cache import obstacle

WANTED = ["first_two", "coarsest", "logits"]


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds more: a list of maps, and one map."""
    table: Any = KINDS
    monkeypatch.setitem(table, "first_two", Kind(lambda specs: specs.stages[:2]))
    monkeypatch.setitem(table, "coarsest", Kind(lambda specs: specs.stages[-1]))


def test_a_new_kind_is_tapped_everywhere(kinds: None) -> None:
    network = build("resnet8", num_classes=7).eval()
    specs, images = discover(network, (3, 16, 16), "resnet8"), torch.randn(2, 3, 16, 16)
    stages = Tapped(network, specs, ["stages"])(images).tensors("stages")
    fast = make_fast(network, specs, WANTED, compile=False, precision="float32")
    for forward in (Tapped(network, specs, WANTED), TappedGraph(network, specs, WANTED), fast):
        taps = forward(images)
        assert list(taps) == WANTED
        for tap, stage in zip(taps.tensors("first_two"), stages[:2], strict=True):
            torch.testing.assert_close(tap, stage, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(taps.tensor("coarsest"), stages[-1], rtol=1e-4, atol=1e-4)
    differences = measure_tap_differences(fast, Tapped(network, specs, WANTED), images)
    assert set(differences) == {*WANTED, "same_class_percent"}
    reason = obstacle(["coarsest"], specs, ["none"], 100, 1)
    assert reason is not None and "reads the teacher's 'coarsest', 0.4 MB" in reason


def test_a_tap_that_was_not_wanted_is_named() -> None:
    network = build("resnet8", num_classes=7)
    taps = Tapped(network, discover(network, (3, 16, 16), "resnet8"), ["stages", "pooled"])(
        torch.randn(2, 3, 16, 16)
    )
    with pytest.raises(ValueError, match="'logits' was not tapped"):
        taps.tensor("logits")
    with pytest.raises(ValueError, match="'stages' is a list of tensors"):
        taps.tensor("stages")
    with pytest.raises(ValueError, match="'pooled' is one tensor"):
        taps.tensors("pooled")
    doubled = taps.map(lambda tensor: 2 * tensor)
    assert torch.equal(doubled.tensor("pooled"), 2 * taps.tensor("pooled"))
    assert torch.equal(doubled.tensors("stages")[1], 2 * taps.tensors("stages")[1])


def test_specs_survive_json_and_old_files_have_no_stem() -> None:
    specs = discover(build("resnet8", num_classes=7), (3, 16, 16), "resnet8")
    content = json.loads(json.dumps(specs.as_dict()))
    assert TapSpecs.from_dict(content) == specs
    assert sorted(content) == [
        *("classifier", "last_map", "num_classes", "pooled_width", "pre_activations"),
        *("stages", "stem"),
    ]
    del content["stem"]
    assert TapSpecs.from_dict(content).stem is None
