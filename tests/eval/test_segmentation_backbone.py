"""PSPNet's trunk: published parameter counts, output stride 8, stems, frozen encoders."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress import models
from compress.data import Preprocessing
from compress.engine import OptimizerStep, TrainSettings
from compress.errors import UserError
from compress.model_files import Encoder, cut_encoder
from compress.models.segmentation.dilation import dilate
from compress.taps import Tapped, TapSpecs, discover
from eval.segmentation import SegmentationLoss, Segmenter, describe, describe_architecture
from eval.segmentation.backbone import SegmentationBackbone, auxiliary_map
from eval.segmentation.deep_stem import with_deep_stem
from tests import transformers

SHOWN = Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def cut(name: str, seed: int = 0) -> tuple[nn.Module, TapSpecs, Encoder]:
    """A plain network whose own weights count as loaded, its taps and its encoder."""
    network = models.build(name, num_classes=5, seed=seed)
    taps = discover(network, SHOWN.input_shape, name)
    return network, taps, cut_encoder(network, taps, SHOWN, network.state_dict(), name)


def parameters_by_hand(blocks: list[int], expansion: int, classes: int, *, deep: bool) -> int:
    """Convolutions and norms of a ResNet and PSPNet's heads, counted one by one."""

    def convolution(inside: int, outside: int, side: int) -> int:
        return inside * outside * side**2 + 2 * outside  # its norm has a weight and a bias

    count = convolution(3, 64, 7)
    width = 64
    if deep:
        count = convolution(3, 64, 3) + convolution(64, 64, 3) + convolution(64, 128, 3)
        width = 128
    for stage, number in enumerate(blocks):
        middle = 64 * 2**stage
        for block in range(number):
            sides = (3, 3) if expansion == 1 else (1, 3, 1)
            widths = [width, *[middle] * (len(sides) - 1), middle * expansion]
            count += sum(map(convolution, widths[:-1], widths[1:], sides))
            if block == 0 and (width != middle * expansion or stage > 0):
                count += convolution(width, middle * expansion, 1)
            width = middle * expansion
    branch, second = width // 4, width // 2
    count += 4 * convolution(width, branch, 1) + convolution(width + 4 * branch, branch, 3)
    count += convolution(second, second // 2, 3)
    return count + classes * (branch + 1) + classes * (second // 2 + 1)


# TRANSFER: 13.07 M and 70.43 M are the numbers of the paper, auxiliary head included.
@pytest.mark.parametrize(
    ("name", "stem", "published", "blocks", "expansion"),
    [
        ("resnet18", None, 13.07, [2, 2, 2, 2], 1),
        ("resnet101", None, 70.43, [3, 4, 23, 3], 4),
        ("resnet18", "plain", 12.92, [2, 2, 2, 2], 1),
        ("resnet101", "plain", 70.31, [3, 4, 23, 3], 4),
    ],
)
def test_parameters_are_the_published_ones(
    name: str, stem: str | None, published: float, blocks: list[int], expansion: int
) -> None:
    parameters = describe_architecture(name, 19, stem)
    assert parameters["parameters"] / 1e6 == pytest.approx(published, abs=0.01)
    by_hand = parameters_by_hand(blocks, expansion, 19, deep=stem is None)
    assert parameters["parameters"] == by_hand
    assert parameters["output_stride"] == 8


def test_description_is_json_with_the_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.main(["--describe", "resnet18", "--classes", "19"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stem"] == "deep"
    assert printed["parameters"] == sum(printed["parameters_by_part"].values())


@pytest.mark.parametrize(
    ("given", "said"),
    [(["resnet19"], "resnet19"), (["resnet18", "--classes", "0"], "classes is at least 1, got 0")],
)
def test_what_cannot_be_described_is_refused_in_a_sentence(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        describe.main(["--describe", *given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:resnet50"])
def test_dilation_changes_the_map_and_no_weight(name: str) -> None:
    network, _, encoder = cut(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert dilate(encoder.body, encoder.stride) == 8
    with torch.no_grad():
        assert encoder.eval()(torch.rand(1, 3, 64, 96)).shape[-2:] == (8, 12)
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    dilations = {
        name: {m.dilation for m in part.modules() if getattr(m, "kernel_size", None) == (3, 3)}
        for name, part in network.named_children()
        if name.startswith("layer")
    }
    assert dilations == {
        "layer1": {(1, 1)},
        "layer2": {(1, 1)},
        "layer3": {(2, 2)},
        "layer4": {(4, 4)},
    }


def test_dilated_convolutions_are_those_of_a_plain_sum() -> None:
    """layer3's second block on a constant image: far from the border as if not dilated."""
    _, _, encoder = cut("torchvision:resnet18")
    encoder.eval()
    flat = torch.full((1, 3, 512, 512), 0.5)
    with torch.no_grad():
        plain = encoder(flat)[0, :, 8, 8]
        dilate(encoder.body, encoder.stride)
        dense = encoder(flat)[0, :, 32, 32]
    torch.testing.assert_close(plain, dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v2", "shufflenetv2"])
def test_other_encoders_keep_their_stride(name: str) -> None:
    _, taps, encoder = cut(name)
    second = auxiliary_map(taps)
    assert second is not None
    trunk = SegmentationBackbone(encoder, second, frozen=False)
    assert trunk.output_stride == encoder.stride
    last, maps = trunk(torch.rand(2, 3, 64, 64))
    assert maps is not None
    assert last.shape[1] == encoder.channels
    assert maps.shape[1] == second.channels
    assert maps.shape[-1] > last.shape[-1]


def test_auxiliary_map_is_what_a_tap_of_the_plain_network_shows() -> None:
    network, taps, encoder = cut("resnet8")
    second = auxiliary_map(taps)
    assert second is not None
    assert second.path == "layer2"
    images = torch.rand(2, 3, 32, 32)
    trunk = SegmentationBackbone(encoder, second, frozen=True)
    batches: list[Tensor] = []
    network.eval().get_submodule(second.path).register_forward_hook(
        lambda _module, _given, output: batches.append(output)
    )
    network(images)
    maps = trunk(images)
    assert maps[1] is not None
    assert torch.equal(maps[1], batches[0])
    assert torch.equal(maps[0], encoder(images))
    assert {*trunk.state_dict()} == {*encoder.state_dict()}


def test_auxiliary_loss_counts_with_its_weight_and_void_does_not() -> None:
    _, taps, encoder = cut("resnet8")
    segmenter = Segmenter(encoder, classes=3, seed=0, auxiliary=auxiliary_map(taps)).eval()
    images, masks = torch.rand(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    masks[0] = 255
    logits = segmenter.both(images)[1]
    assert logits is not None
    chosen = -torch.log_softmax(logits[1].detach().double(), 0).gather(0, masks[1:]).mean()
    terms = SegmentationLoss(segmenter, 255)((images, masks))
    assert terms["auxiliary"].item() == pytest.approx(0.4 * chosen.item(), rel=1e-5)
    masks[:] = 255
    assert [t.item() for t in SegmentationLoss(segmenter, 255)((images, masks)).values()] == [0, 0]


def steps(segmenter: Segmenter, count: int = 3) -> None:
    module = SegmentationLoss(segmenter, 255).train()
    step = OptimizerStep(module, TrainSettings(epochs=1, lr=0.1), torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    totals: dict[str, Tensor] = {}
    for _ in range(count):
        images = torch.randn(2, 3, 32, 32, generator=draw)
        step((images, torch.randint(0, 3, (2, 32, 32), generator=draw)), 0.0, totals)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_encoder_gives_bit_equal_maps_after_training(frozen: bool) -> None:
    _, _, encoder = cut("resnet8")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = encoder.eval()(images)
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    segmenter = Segmenter(encoder, classes=3, seed=0, frozen=frozen)
    head = segmenter.head.classifier.weight.detach().clone()
    steps(segmenter)
    with torch.no_grad():
        after = encoder.eval()(images)
    assert torch.equal(before, after) is frozen
    assert all(torch.equal(state[k], v) for k, v in encoder.state_dict().items()) is frozen
    assert not torch.equal(head, segmenter.head.classifier.weight)


def test_heads_start_alike_with_and_without_the_auxiliary_one() -> None:
    _, taps, encoder = cut("resnet8")
    alone = Segmenter(encoder, classes=3, seed=4)
    both = Segmenter(encoder, classes=3, seed=4, auxiliary=auxiliary_map(taps))
    other = Segmenter(encoder, classes=3, seed=5)
    first = alone.head.state_dict()
    assert all(torch.equal(first[k], v) for k, v in both.head.state_dict().items())
    assert not torch.equal(first["merge.0.weight"], other.head.state_dict()["merge.0.weight"])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:resnet50"])
def test_deep_stem_keeps_all_but_the_stem(name: str) -> None:
    network, taps, encoder = cut(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert taps.last_map is not None
    deep = with_deep_stem(network, encoder, taps.last_map, seed=0)
    after: dict[str, Any] = dict(deep.state_dict())
    new = [k for k in after if k not in before or not torch.equal(before[k], after[k])]
    stem = ("body.conv1.", "body.bn1.", "body.layer1.0.conv1.", "body.layer1.0.downsample.")
    assert new
    assert all(key.startswith(stem) for key in new)
    shared = [k for k in after if not k.startswith(stem)]
    assert deep.matched_percent == pytest.approx(100 * len(shared) / len(after))
    assert dilate(deep.body, deep.stride) == 8
    assert deep.eval()(torch.rand(1, 3, 64, 64)).shape[-2:] == (8, 8)


def test_deep_stem_of_another_network_is_refused() -> None:
    network, taps, encoder = cut("resnet8")
    assert taps.last_map is not None
    with pytest.raises(UserError, match="no conv1, bn1 and layer1 of an ImageNet-style ResNet"):
        with_deep_stem(network, encoder, taps.last_map, seed=0)


def test_maps_of_a_channels_last_encoder_are_channels_first() -> None:
    network = transformers.network("torchvision_swin").eval()
    shown = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    taps = discover(network, shown.input_shape, "swin")
    encoder = cut_encoder(network, taps, shown, network.state_dict(), "swin")
    backbone = SegmentationBackbone(encoder, auxiliary_map(taps), frozen=True)
    last, auxiliary = backbone(transformers.images())
    expected = Tapped(network, taps, ["last_map", "stages"])(transformers.images())
    assert torch.equal(last, expected.tensor("last_map"))
    assert auxiliary is not None
    assert torch.equal(auxiliary, expected.tensors("stages")[0])
    assert auxiliary.shape[1:] == (8, 16, 16)
