"""The comparison of torch and ONNX Runtime, with a stand-in for the session."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserError
from export.parity import Parity, compare


class Table(nn.Module):
    """Gives its input's channels as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


class Session:
    """Runs like an ONNX session and returns what it was given."""

    def __init__(self, *answers: list[list[float]]) -> None:
        self.answers = iter(answers)

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        return [np.asarray(next(self.answers), dtype=np.float32)]


def images(logits: list[list[float]]) -> Tensor:
    return torch.tensor(logits)[:, :, None, None]


def test_numbers_by_hand_over_two_batches() -> None:
    batches = [
        (images([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])),
        (images([[-4.0, 3.0]]), torch.tensor([1])),
    ]
    # The second image changes class in the ONNX file; the third is off by a quarter.
    session = Session([[1.0, 0.0], [2.0, 1.5]], [[-4.25, 3.0]])
    found = compare(Table(), session, batches)  # type: ignore[arg-type]
    assert found.images == 3
    assert found.max_abs_difference == 2.0
    assert found.logit_scale == 4.0
    assert found.top1_agreement_percent == pytest.approx(200 / 3)
    assert found.torch_top1_percent == pytest.approx(200 / 3)
    assert found.onnx_top1_percent == pytest.approx(100)


def parity(difference: float, scale: float) -> Parity:
    return Parity(10, difference, scale, 90.0, 70.0, 80.0)


def test_the_gate_is_relative_to_the_logits() -> None:
    parity(0.01, 10.0).require(1e-3)
    parity(0.0, 0.0).require(1e-3)
    with pytest.raises(UserError) as refusal:
        parity(0.02, 10.0).require(1e-3)
    for number in ("0.02", "0.01", "10 images", "90.00 %", "70.00 %", "80.00 %"):
        assert number in str(refusal.value)


@pytest.mark.parametrize("answer", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_is_refused(answer: float) -> None:
    batch = (images([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    session = Session([[1.0, answer], [1.0, 0.0]])
    found = compare(Table(), session, [batch])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="differs"):
        found.require(1e-3)


def test_nothing_to_compare_on_is_refused() -> None:
    with pytest.raises(UserError, match="no test images"):
        compare(Table(), Session(), [])  # type: ignore[arg-type]
