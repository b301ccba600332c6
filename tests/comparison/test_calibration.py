"""Expected calibration error against a loop over the formula, and its limits."""

import math
from pathlib import Path

import numpy as np
import pytest

from compress.comparison.calibration import Bin, expected_calibration_error, reliability
from compress.comparison.predictions import (
    prediction_arrays,
    read_confidences,
    write_predictions,
)


def oracle(confidence: list[float], correct: list[bool], bins: int) -> float:
    """Guo et al. (2017), eq. 3, written out."""
    error = 0.0
    for number in range(1, bins + 1):
        inside = [i for i, p in enumerate(confidence) if (number - 1) / bins < p <= number / bins]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            sure = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - sure)
    return error


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_it_is_the_formula(bins: int) -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.05, 1, 400)
    correct = generator.uniform(size=400) < confidence**2
    found = expected_calibration_error(reliability(confidence, correct, bins=bins))
    expected = oracle(confidence.tolist(), correct.tolist(), bins)
    assert math.isclose(found, expected, rel_tol=1e-12)
    assert found > 0.05


def test_bounds_of_bins_belong_to_the_lower_one() -> None:
    confidence, correct = np.array([0.2, 0.4, 0.4, 1.0]), np.array([True, True, False, True])
    assert reliability(confidence, correct, bins=5) == [
        Bin(1, 0.2, 1.0),
        Bin(2, 0.4, 0.5),
        Bin(1, 1.0, 1.0),
    ]


def test_right_as_often_as_it_says_is_no_error_and_sure_and_wrong_is_all() -> None:
    half = np.array([0.5, 0.5])
    assert expected_calibration_error(reliability(half, np.array([True, False]))) == 0
    assert expected_calibration_error(reliability(np.ones(3), np.zeros(3, bool))) == 1


@pytest.mark.parametrize("most", [1000, 10])
def test_confidences_are_those_of_the_predicted_classes(tmp_path: Path, most: int) -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.ones(12), 8)
    arrays = prediction_arrays(np.zeros(8, int), probabilities.argmax(1), probabilities, most=most)
    write_predictions(tmp_path / "p.npz", arrays, "images")
    confidence = read_confidences(tmp_path / "p.npz")
    assert confidence is not None
    assert np.allclose(confidence, probabilities.max(1), rtol=1e-3)


def test_a_file_without_probabilities_has_none(tmp_path: Path) -> None:
    arrays = {"labels": np.zeros(3, np.int32), "top1": np.zeros(3, np.int32)}
    write_predictions(tmp_path / "p.npz", arrays, "images")
    assert read_confidences(tmp_path / "p.npz") is None
