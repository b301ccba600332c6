"""An int8 teacher shows taps near the float ones, for any batch, and touches nothing."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.onnx import INPUT, open_session
from compress.onnx.qdq import largest_weight
from compress.taps import Tapped, TapSpecs, discover
from compress.teacher import measure_tap_differences
from compress.teacher.int8 import int8_teacher
from tests.export.quantizing import batches, settled

KINDS = ["logits", "pooled", "last_map", "stages", "pre_activations"]


@pytest.fixture(scope="module")
def teacher() -> tuple[nn.Module, TapSpecs]:
    network = settled("resnet8")
    return network, discover(network, (3, 16, 16), "resnet8")


def images(seed: int, count: int) -> list[Tensor]:
    return [torch.from_numpy(batch) for batch in batches(seed, count)]


def test_taps_are_near_for_any_batch_and_the_network_is_as_it_was(
    teacher: tuple[nn.Module, TapSpecs],
) -> None:
    network, specs = teacher
    network.train()
    before = copy.deepcopy(network.state_dict())
    fast = int8_teacher(network, specs, KINDS, images(0, 3))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    plain = Tapped(network.eval(), specs, KINDS)
    for batch in (images(1, 1)[0], images(2, 1)[0][:3]):
        found = measure_tap_differences(
            fast, plain, batch.contiguous(memory_format=torch.channels_last)
        )
        assert set(found) == {*KINDS, "same_class_percent"}
        assert all(0 < found[kind] < 0.2 for kind in KINDS)
    assert fast.notes() == [
        "teacher: 10 of 10 layers are int8 with 7-bit weights (minmax over 24 images), run by "
        "ONNX Runtime"
    ]


def test_only_what_is_wanted_is_in_the_file(
    teacher: tuple[nn.Module, TapSpecs], tmp_path: Path
) -> None:
    network, specs = teacher
    fast = int8_teacher(network, specs, ["layer2"], images(0, 1), folder=tmp_path / "int8")
    taps = fast(images(1, 1)[0])
    assert list(taps) == ["layer2"]
    assert taps.tensor("layer2").dtype == torch.float32
    assert "6 of 6 layers" in fast.notes()[0]  # stem, two blocks and a shortcut
    kept = {path.name for path in (tmp_path / "int8").iterdir()}
    assert kept == {"teacher.onnx", "teacher.int8.onnx"}


def test_kernels_of_this_machine_show_what_the_file_says(
    teacher: tuple[nn.Module, TapSpecs], tmp_path: Path
) -> None:
    network, specs = teacher
    fast = int8_teacher(network, specs, ["logits"], images(0, 3), folder=tmp_path)
    path, (batch,) = tmp_path / "teacher.int8.onnx", batches(1, 1)
    assert largest_weight(onnx.load(path).graph) == 64
    exact = open_session(path, exact=True).run(["taps"], {INPUT: batch})[0]
    found = fast(torch.from_numpy(batch)).tensor("logits")
    assert found is not None
    assert np.abs(found.numpy() - exact).max() < 0.03 * np.abs(exact).max()


def test_deterministic_and_usable_in_a_backward_pass(teacher: tuple[nn.Module, TapSpecs]) -> None:
    network, specs = teacher
    batch = images(1, 1)[0]
    first, second = (
        int8_teacher(network, specs, ["last_map"], images(0, 2))(batch).tensor("last_map")
        for _ in range(2)
    )
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    weight = torch.ones(first.shape[1], 1, 1, requires_grad=True)
    (weight * first).sum().backward()
    assert weight.grad is not None


class Choosing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.mean((2, 3)))
        return logits if logits.mean() > 0 else -logits


def test_what_cannot_be_int8_is_refused(teacher: tuple[nn.Module, TapSpecs]) -> None:
    network, specs = teacher
    with pytest.raises(UserError, match="on the CPU alone, this one is on meta"):
        int8_teacher(copy.deepcopy(network).to("meta"), specs, ["logits"], images(0, 1))
    with pytest.raises(UserError, match="needs calibration images"):
        int8_teacher(network, specs, ["logits"], [])
    with pytest.raises(UserError, match=r"teacher cannot be made int8: torch\.fx cannot"):
        int8_teacher(Choosing(), TapSpecs((), (), None, None, None, 2), ["logits"], images(0, 1))
    with pytest.raises(UserError, match="no module 'lyer2'"):
        int8_teacher(network, specs, ["lyer2"], images(0, 1))
