"""The limits of an int8 file, on numbers made by hand."""

import inspect
import math
from dataclasses import asdict, replace

import pytest

from compress.recipe.schema import Int8
from export import verify_bundle
from export.bundle.int8_gate import Int8Limits, Limits, PixelLimits, judge_drop
from export.bundle.parity import Parity, PixelParity

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


def classified(images: int, lost: int, gained: int = 0, other: int = 0) -> Parity:
    """A file that is wrong on `lost` images, right on `gained`, and wrong otherwise on `other`."""
    right = images - gained - other
    same = images - lost - gained - other
    return Parity(
        images,
        0.5,
        0.1,
        10.0,
        100 * same / images,
        100 * (right - lost + gained) / images,
        100 * right / images,
        lost + gained,
    )


@pytest.mark.parametrize(
    ("images", "lost", "gained"), [(45, 1, 0), (45, 3, 1), (10_000, 200, 0), (7, 0, 7), (30, 30, 0)]
)
def test_the_standard_error_is_that_of_the_differences_of_each_image(
    images: int, lost: int, gained: int
) -> None:
    differences = [1.0] * lost + [-1.0] * gained + [0.0] * (images - lost - gained)
    mean = math.fsum(differences) / images
    variance = math.fsum((d - mean) ** 2 for d in differences) / images
    found = classified(images, lost, gained)
    assert found.top1_drop == pytest.approx(100 * mean)
    assert found.drop_standard_error == pytest.approx(100 * math.sqrt(variance / images), abs=1e-6)


def test_one_image_of_45_passes_with_a_remark() -> None:
    parity = classified(45, lost=1)
    assert parity.drop_words() == "-2.22 points on 45 images, standard error 2.2"
    assert Limits().list_exceeded(parity) == []
    remark = Limits().remark(parity)
    assert remark is not None
    for part in ("2.22 points", "standard error 2.2", "45 images", "accepted 1 (max_top1_drop)"):
        assert part in remark
    assert Limits().remark(classified(45, lost=0)) is None
    same = classified(45, lost=0, other=1)
    assert same.drop_words() == "+0.00 points, right on the same of 45 images"


def test_two_points_of_10000_images_are_refused() -> None:
    parity = classified(10_000, lost=200)
    (clause,) = Limits().list_exceeded(parity)
    assert "2.00 points" in clause and "standard error 0.14" in clause
    assert Limits().remark(parity) is None


def test_few_images_excuse_no_disagreement() -> None:
    """Five of 45 images are too few to decide the drop, and too many to be the same network."""
    parity = classified(45, lost=4, other=1)
    (clause,) = Limits().list_exceeded(parity)
    assert "min_agreement_percent" in clause
    far = replace(classified(45, lost=1), max_abs_difference=2.0)
    (clause,) = Limits().list_exceeded(far)
    assert "max_difference" in clause


def test_a_drop_is_above_its_limit_by_two_standard_errors_or_undecided() -> None:
    assert judge_drop(1.0, 1.0, 0.0) == "within"
    assert judge_drop(-3.0, 1.0, 5.0) == "within"
    assert judge_drop(1.9, 1.0, 0.5) == "undecided"
    assert judge_drop(2.1, 1.0, 0.5) == "exceeded"
    assert judge_drop(1.1, 1.0, 0.0) == "exceeded", "what has no error is decided"
    for numbers in ((math.nan, 1.0, 1.0), (2.0, 1.0, math.nan)):
        assert judge_drop(*numbers) == "exceeded"


def test_mean_iou_is_judged_alike() -> None:
    def segmented(error: float) -> PixelParity:
        return PixelParity(20, 9.0, 0.1, 1.0, 99, 99.0, 57.5, 60.0, error)

    limits = Limits(pixels=PixelLimits(1.0))
    assert limits.list_exceeded(segmented(0.8)) == []
    remark = limits.remark(segmented(0.8))
    assert remark is not None and "2.50 points of mean IoU" in remark and "0.8" in remark
    assert len(limits.list_exceeded(segmented(0.7))) == 1
    assert limits.remark(segmented(0.7)) is None
