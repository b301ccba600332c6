"""`int8: {search: true}` chooses by what it measured, and never looks at the test split."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from compress import model_files
from compress.model_files import Student
from compress.recipe.schema import Export, Int8
from compress.taps import discover
from export.bundle import int8_search
from export.bundle.int8_gate import Int8Limits, Limits
from export.bundle.int8_search import quantize_with, search_int8
from export.bundle.request import BundleRequest, compare_file
from tests.export import bundles

SETTINGS = Int8(search=True, calibration_images=100)
LIMITS = Limits(Int8Limits(max_top1_drop=5.0))


class Untouchable:
    """A test split that nobody may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test split's {name} was asked for")


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BundleRequest:
    """A student that knows its digits, its float file in `tmp_path`."""
    monkeypatch.setattr(int8_search, "_SEGMENTS", 3)
    data = bundles.digits()
    own = data.preprocessing
    bundles.write_onnx(tmp_path / "student.onnx", bundles.network(), raw=False, preprocessing=own)
    description = model_files.describe(
        {"name": "resnet8", "arguments": {}},
        discover(bundles.network(), own.input_shape, "student"),
        data.class_names,
        own,
        metrics={},
        fingerprint="",
    )
    train, blind = data.train, Untouchable()
    split = replace(data, train=train.subset(slice(None, 300)), test=blind)  # type: ignore[arg-type]
    return BundleRequest("none", Student(bundles.network(), description), split, {}, Export())


def score(trial: dict[str, Any], layers: int = 10) -> tuple[bool, float, float]:
    """The documented order: limits, agreement at 0.1 % for each float layer, mean difference."""
    price = 0.1 * (layers - trial["quantized_layers"])
    agreement = round(trial["agreement_percent"] - price, 9)
    return trial["within_limits"], agreement, -trial["mean_abs_difference"]


def wreck(monkeypatch: pytest.MonkeyPatch, is_wrong: Callable[[dict[str, Any]], bool]) -> None:
    """Quarter the weights of layer 2 in the files of some settings."""
    quantize = int8_search.quantize_onnx

    def quantize_wrongly(source: Path, target: Path, *given: Any, **options: Any) -> Any:
        info = quantize(source, target, *given, **options)
        if is_wrong(options):
            model = onnx.load(target)
            layer = [node for node in model.graph.node if node.op_type == "Conv"][1]
            stored = {t.name: t for t in model.graph.initializer}
            made = {node.output[0]: node for node in model.graph.node}
            tensor = stored[made[layer.input[1]].input[0]]
            values = onnx.numpy_helper.to_array(tensor) // 4
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
            target.write_bytes(model.SerializeToString())
        return info

    monkeypatch.setattr(int8_search, "quantize_onnx", quantize_wrongly)


def test_the_best_trial_is_chosen_and_can_be_had_again(
    request_: BundleRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_search, "_ENOUGH", 101.0)  # segments are tried in any case
    chosen, found = search_int8(request_, SETTINGS, tmp_path, LIMITS)
    trials = found["trials"]
    assert [t["calibration"] for t in trials[:3]] == ["minmax", "entropy", "percentile"]
    left = [len(trial["leave_out"]) for trial in trials]  # of 10 layers in segments of 3, 3 and 4
    assert left[:3] == [0, 0, 0] and left[3] in (3, 4) and left[4] in (6, 7)
    assert (found["split"], found["images"]) == ("training", 200)  # not calibrated on
    assert score(trials[found["chosen"]]) == max(map(score, trials))
    assert trials[found["chosen"]]["calibration"] == chosen.calibration
    assert trials[found["chosen"]]["leave_out"] == chosen.leave_out
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]
    # The same settings without a search give the same numbers.
    quantize_with(request_, chosen, tmp_path, tmp_path / "again.onnx")
    _, judges = int8_search._judges(request_, SETTINGS)
    parity = compare_file(request_, tmp_path / "again.onnx", judges, exact=True)
    assert parity.mean_abs_difference == trials[found["chosen"]]["mean_abs_difference"]


def test_a_method_that_costs_accuracy_is_left(
    request_: BundleRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wreck(monkeypatch, lambda options: options["method"] == "minmax")
    chosen, found = search_int8(request_, SETTINGS, tmp_path, LIMITS)
    first, best = found["trials"][0], found["trials"][found["chosen"]]
    assert (first["calibration"], first["within_limits"]) == ("minmax", False)
    assert first["top1_drop"] > 0.5 > best["top1_drop"]
    assert chosen.calibration != "minmax"


def test_a_layer_that_costs_accuracy_stays_float(
    request_: BundleRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wreck(monkeypatch, lambda options: 2 not in options["leave_out"])
    chosen, found = search_int8(request_, SETTINGS, tmp_path, LIMITS)
    assert chosen.leave_out == [1, 2, 3], "the segment of three that it is in"
    assert not any(trial["within_limits"] for trial in found["trials"][:3])
    assert len(found["trials"]) == 3 + 3 * 2, "each method with one and with two segments"
    assert found["trials"][found["chosen"]]["agreement_percent"] > 97


def test_the_validation_split_judges_where_there_is_one(
    request_: BundleRequest, tmp_path: Path
) -> None:
    validation = request_.data.train.subset(slice(None, 50))  # type: ignore[arg-type]
    given = replace(request_, data=replace(request_.data, validation=validation))
    _, found = search_int8(given, SETTINGS, tmp_path, LIMITS)
    assert (found["split"], found["images"]) == ("validation", 50)
