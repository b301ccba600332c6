"""The limits of an int8 file, on numbers made by hand."""

import inspect
from dataclasses import asdict, replace

from compress.recipe.schema import Int8
from export import verify_bundle
from export.bundle.int8_gate import Int8Limits
from export.bundle.parity import Parity

GOOD = Parity(2000, 0.5, 0.1, 10.0, 99.0, 70.0, 70.0)


def exceeded(
    limits: Int8Limits | None = None, slack_images: int = 0, **changes: float
) -> list[str]:
    return (limits or Int8Limits()).list_exceeded(replace(GOOD, **changes), slack_images)  # type: ignore[arg-type]


def test_the_drop_of_accuracy() -> None:
    assert exceeded(onnx_top1_percent=69.0) == []
    assert exceeded(Int8Limits(0.3), torch_top1_percent=70.3) == []
    assert exceeded(Int8Limits(0.0), onnx_top1_percent=71.0) == []
    (clause,) = exceeded(onnx_top1_percent=68.5)
    for part in ("1.50 points", "70.00 %", "68.50 %", "accepted is 1 (max_top1_drop)"):
        assert part in clause
    assert len(exceeded(onnx_top1_percent=float("nan"))) == 1


def test_agreement_and_difference() -> None:
    assert exceeded(top1_agreement_percent=95.0, max_abs_difference=1.0) == []
    (clause,) = exceeded(top1_agreement_percent=94.9)
    assert "94.90 % of the images" in clause
    assert "min_agreement_percent" in clause
    (clause,) = exceeded(max_abs_difference=1.1)
    assert "off by up to 1.1, 0.11 of the largest" in clause
    for scale in (10.0, 0.0, float("nan")):
        assert len(exceeded(max_abs_difference=float("nan"), logit_scale=scale)) == 1
    assert len(exceeded(logit_scale=0.0)) == 1
    assert exceeded(logit_scale=0.0, max_abs_difference=0.0) == []


def test_few_images_may_go_wrong_however_few_there_are() -> None:
    worse = {"images": 50, "onnx_top1_percent": 64.0, "top1_agreement_percent": 94.0}
    assert exceeded(slack_images=3, **worse) == []
    assert len(exceeded(slack_images=2, **worse)) == 2


def test_verify_and_recipe_have_the_same_limits() -> None:
    defaults = {k: p.default for k, p in inspect.signature(verify_bundle).parameters.items()}
    recipe = Int8().model_dump()
    for name, limit in asdict(Int8Limits()).items():
        assert recipe[name] == defaults[name] == limit
