"""The comparison of torch and ONNX Runtime, with a stand-in for the session."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.data import Preprocessing
from compress.errors import UserError
from export.bundle.parity import Parity, compare, compare_each, pixels_of


class Table(nn.Module):
    """Gives its input's channels as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


class Session:
    """Runs like an ONNX session and returns what it was given."""

    def __init__(self, *answers: list[list[float]]) -> None:
        self.answers = iter(answers)

    def run(self, outputs: Any, inputs: dict[str, Any]) -> list[Any]:
        self.given = inputs
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
    assert found.mean_abs_difference == pytest.approx((2.0 + 0.5 + 0.25) / 6)
    assert found.logit_scale == 4.0
    assert found.top1_agreement_percent == pytest.approx(200 / 3)
    assert found.torch_top1_percent == pytest.approx(200 / 3)
    assert found.onnx_top1_percent == pytest.approx(100)


def test_discordant_images_are_right_by_one_of_the_two() -> None:
    """Of three classes, so that both may be wrong with different classes, which counts nowhere."""
    choices = {0: [9.0, 0, 0], 1: [0, 9.0, 0], 2: [0, 0, 9.0]}
    trained, said, truth = [0, 0, 0, 1, 2, 1], [0, 1, 0, 2, 0, 1], [0, 0, 1, 0, 0, 0]
    batch = (images([choices[c] for c in trained]), torch.tensor(truth))
    found = compare(Table(), Session([choices[c] for c in said]), [batch])  # type: ignore[arg-type]
    assert isinstance(found, Parity)
    assert found.discordant_images == 2, "the second, lost, and the fifth, gained"
    assert found.top1_drop == pytest.approx(0)
    assert found.drop_standard_error == pytest.approx(100 * 2**0.5 / 6)


def parity(difference: float, scale: float) -> Parity:
    return Parity(10, difference, difference / 2, scale, 90.0, 70.0, 80.0)


def test_the_gate_is_relative_to_the_logits() -> None:
    parity(0.01, 10.0).require(1e-3)
    parity(0.0, 0.0).require(1e-3)
    with pytest.raises(UserError) as refusal:
        parity(0.02, 10.0).require(1e-3)
    for number in ("0.02", "0.01", "10 images", "90.00 %", "70.00 %", "80.00 %"):
        assert number in str(refusal.value)


def test_several_files_are_compared_as_each_alone() -> None:
    batches = [(images([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))]
    answers = [[[1.0, 0.0], [0.0, 2.0]], [[1.0, 3.0], [0.0, 2.0]]]
    sessions = {str(i): Session(answer) for i, answer in enumerate(answers)}
    found = compare_each(Table(), sessions, batches)  # type: ignore[arg-type]
    for i, answer in enumerate(answers):
        alone = compare(Table(), Session(answer), batches)  # type: ignore[arg-type]
        assert found[str(i)] == alone
    assert [found["0"].top1_drop, found["1"].top1_drop] == [0, 50]


def test_a_file_is_given_what_it_takes() -> None:
    preprocessing = Preprocessing(2, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(64, 3, 2, 2)
    session = Session([[0.0, 0.0, 0.0]] * 64)
    batches = [(preprocessing.normalise(every), torch.zeros(64, dtype=torch.long))]
    to_input = partial(pixels_of, preprocessing=preprocessing)
    compare(Table(), session, batches, to_input=to_input)  # type: ignore[arg-type]
    assert session.given["images"].dtype == np.uint8
    np.testing.assert_array_equal(session.given["images"], every.permute(0, 2, 3, 1).numpy())


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
