"""Architectures, taps and weights from files."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.errors import UserError
from compress.model_files import load_state, read_state
from compress.models import MODELS, build, find
from compress.taps import Tapped, discover, encoder_until
from tests.hostile.weights import CHANGES, compressed, referring_to_itself
from tests.hostile.weights import network as tiny


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# Printed in, or exactly implied by, the CRD and SimKD papers' tables at 100 classes.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 278_324),
        ("resnet32", 472_756),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet116", 1_833_780),
        ("resnet110x2", 6_911_220),
        ("resnet110x4", 27_584_900),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(build(name, num_classes=100)) == count


def test_initialisation_depends_on_seed_and_name_alone() -> None:
    one = build("resnet8", num_classes=10, seed=3)
    torch.manual_seed(99)
    build("resnet14", num_classes=10)
    same, other = build("resnet8", num_classes=10, seed=3), build("resnet8", num_classes=10, seed=4)
    assert torch.equal(one.conv1.weight, same.conv1.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(one.conv1.weight, other.conv1.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("name", "last", "channels", "stages"),
    [
        ("resnet8", "layer3", 64, ["layer1", "layer2", "layer3"]),
        ("resnet8x4", "layer3", 256, ["layer1", "layer2", "layer3"]),
        ("torchvision:resnet18", "layer4", 512, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("torchvision:mobilenet_v2", "features", 1280, None),
        ("torchvision:shufflenet_v2_x0_5", "conv5", 1024, None),
    ],
)
def test_taps_are_found(name: str, last: str, channels: int, stages: list[str] | None) -> None:
    network = build(name, num_classes=7).eval()
    specs = discover(network, (3, 64, 64), name)
    assert (specs.last_map.path, specs.last_map.channels) == (last, channels)
    assert specs.num_classes == 7
    if stages is not None:
        assert [stage.path for stage in specs.stages] == stages
    images = torch.randn(2, 3, 64, 64)
    taps = Tapped(network, specs, ("last_map", "pooled", "stages", "logits"))(images)
    # Independent of hooks: the pooled vector is the mean of the last map, the logits follow.
    torch.testing.assert_close(
        taps.tensor("last_map").mean((2, 3)), taps.tensor("pooled"), rtol=1e-4, atol=1e-5
    )
    classifier = network.get_submodule(specs.classifier)
    torch.testing.assert_close(classifier(taps.tensor("pooled")), taps.tensor("logits"))
    for spec, stage in zip(specs.stages, taps.tensors("stages"), strict=True):
        assert stage.shape[1:] == (spec.channels, spec.height, spec.width)
        assert spec.stride == 64 // spec.height
    encoder = encoder_until(network, last).eval()
    torch.testing.assert_close(encoder(images), taps.tensor("last_map"))
    assert not any(key.startswith(specs.classifier) for key in encoder.state_dict())
    assert encoder(torch.randn(1, 3, 96, 80)).shape[1] == channels


def test_tapping_leaves_state_and_mode_as_they_were() -> None:
    network = build("resnet8", num_classes=5).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    specs = discover(network, (3, 16, 16), "resnet8")
    assert network.training
    encoder_until(network, specs.last_map.path)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules())


def test_the_encoder_shares_parameters() -> None:
    network = build("resnet8", num_classes=5)
    specs = discover(network, (3, 16, 16), "resnet8")
    encoder = encoder_until(network, specs.last_map.path)
    assert {id(p) for p in encoder.parameters()} < {id(p) for p in network.parameters()}


def test_a_dotted_path_with_numbers_can_be_tapped() -> None:
    network = build("resnet20", num_classes=5)
    specs = discover(network, (3, 16, 16), "resnet20")
    taps = Tapped(network, specs, ("layer2.1",))(torch.randn(1, 3, 16, 16))
    assert taps.tensor("layer2.1").shape == (1, 32, 8, 8)
    with pytest.raises(UserError, match=r"no module 'layer2.7'; did you mean 'layer2"):
        Tapped(network, specs, ("layer2.7",))


def test_a_network_without_logits_is_refused() -> None:
    with pytest.raises(UserError, match=r"does not give logits of shape"):
        discover(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8), "headless")


@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v3_small", "densenet121"])
def test_a_network_without_a_pooled_last_map_still_has_logits(name: str) -> None:
    # An activation that overwrites its input or a second linear layer stands between.
    network = build(f"torchvision:{name}", num_classes=4).eval()
    specs = discover(network, (3, 64, 64), name)
    assert specs.last_map is None
    assert specs.stages
    assert Tapped(network, specs, ("logits",))(torch.randn(2, 3, 64, 64)).tensor(
        "logits"
    ).shape == (2, 4)
    with pytest.raises(UserError, match=r"no map whose spatial mean"):
        Tapped(network, specs, ("last_map",))


@pytest.mark.parametrize("name", ["resnet20", "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_pre_activations_are_what_the_activation_reads(name: str) -> None:
    network = build(name, num_classes=4).eval()
    specs = discover(network, (3, 64, 64), name)
    taps = Tapped(network, specs, ("stages", "pre_activations"))(torch.randn(2, 3, 64, 64))
    pairs = zip(
        specs.pre_activations, taps.tensors("pre_activations"), taps.tensors("stages"), strict=True
    )
    for spec, before, after in pairs:
        # MobileNetV2's blocks end linearly: there the map itself is the pre-activation.
        linear = "mobilenet" in name and spec.side == "output"
        expected = before if linear else before.clamp(0, 6 if "mobilenet" in name else None)
        assert torch.equal(expected, after), spec.path
        if not linear:
            assert (before < 0).any()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean 'resnet32x4'"):
        find("resnet32x")
    with pytest.raises(UserError, match=r"did you mean 'resnet50'"):
        find("torchvision:resnet5")


def test_every_architecture_takes_num_classes() -> None:
    for name in MODELS:
        if "110" not in name and "116" not in name:
            assert build(name, num_classes=3)(torch.randn(2, 3, 32, 32)).shape == (2, 3)


@pytest.fixture
def network() -> nn.Module:
    return build("resnet8", num_classes=5, seed=1)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model": {"state_dict": {f"module.module.{k}": v for k, v in s.items()}}},
    ],
)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, network: nn.Module, wrap: Any) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(dict(network.state_dict())), path)
    other = build("resnet8", num_classes=5, seed=2)
    loaded = load_state(other, read_state(path), "fc", str(path))
    assert not loaded.classifier_replaced
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in network.state_dict().items())


def test_plain_values_beside_the_weights_are_read(tmp_path: Path, network: nn.Module) -> None:
    # As the CRD repository saves its teachers: options, and a learning rate that numpy computed.
    path = tmp_path / "ckpt_epoch_240.pth"
    optimizer = {"param_groups": [{"lr": np.float64(0.05)}]}
    content = {"opt": Namespace(model="resnet8"), "optimizer": optimizer}
    torch.save({**content, "model": network.state_dict()}, path)
    assert set(read_state(path)) == set(network.state_dict())


def test_a_classifier_of_other_classes_is_left_new(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    other = build("resnet8", num_classes=9, seed=2)
    fresh = other.fc.weight.clone()  # type: ignore[union-attr, operator]
    loaded = load_state(other, read_state(path), "fc", "w")
    assert (loaded.classifier_replaced, loaded.classes_in_file) == (True, 5)
    assert torch.equal(other.fc.weight, fresh)  # type: ignore[union-attr, arg-type]
    assert torch.equal(other.conv1.weight, network.conv1.weight)  # type: ignore[union-attr, arg-type]


def test_another_architecture_is_refused_with_its_keys(tmp_path: Path, network: nn.Module) -> None:
    other = build("resnet14", num_classes=5)
    with pytest.raises(UserError, match=r"w\.pth is of another architecture.*missing: layer1\.1"):
        load_state(other, dict(network.state_dict()), "fc", "w.pth")
    with pytest.raises(UserError, match=r"unexpected: layer1\.1"):
        load_state(network, dict(other.state_dict()), "fc", "w.pth")
    wide = build("resnet8x4", num_classes=5)
    with pytest.raises(UserError, match=r"of another shape: .*instead of"):
        load_state(wide, dict(network.state_dict()), "fc", "w.pth")


class Attack:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: torch.save({"x": Attack()}, p), "never executed here"),
        (lambda p: p.write_bytes(b"PK\x03\x04 truncated"), "damaged or truncated"),
        (lambda p: p.write_bytes(b""), "damaged or truncated"),
        (lambda p: torch.save({"epoch": 3}, p), "holds no state dict; found epoch"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
    ],
)
def test_a_file_that_holds_no_weights(
    tmp_path: Path, write: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(UserError, match=words):
        read_state(path)
    assert "executed\n" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # torch's, of sparse and quantised tensors
@pytest.mark.parametrize("kind", CHANGES)
def test_what_may_stand_for_a_weight(tmp_path: Path, kind: str) -> None:
    change, fits = CHANGES[kind]
    state = tiny().state_dict()
    state["2.weight"] = change(state["2.weight"])
    path = tmp_path / "w.pth"
    torch.save(state, path)
    network = tiny()
    if fits:
        load_state(network, read_state(path), "2", str(path))
        expected = state["2.weight"].to(torch.float32)
        assert torch.equal(network.state_dict()["2.weight"], expected)
        return
    with pytest.raises(
        UserError, match=r"w\.pth .*(2\.weight|no state dict)|w\.pth: .*2\.weight"
    ) as said:
        load_state(network, read_state(path), "2", str(path))
    assert len(str(said.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "complex64", "int64", "bool"])
def test_what_may_stand_for_a_weight_in_safetensors(tmp_path: Path, kind: str) -> None:
    state = tiny().state_dict()
    state["2.weight"] = state["2.weight"].to(getattr(torch, kind))
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=rf"w\.safetensors: tensor '2\.weight' is of torch\.{kind}"):
        load_state(tiny(), read_state(path), "2", str(path))


def test_a_state_dict_that_contains_itself_is_refused(tmp_path: Path) -> None:
    torch.save(referring_to_itself(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds no state dict: .* contains itself"):
        read_state(tmp_path / "w.pth")


def test_an_archive_that_unpacks_to_more_than_it_is_refused(tmp_path: Path) -> None:
    compressed(tmp_path / "w.pth", {"weight": torch.zeros(1 << 20)})
    with pytest.raises(UserError, match=r"w\.pth is damaged.* unpacks to 4,19.* bytes"):
        read_state(tmp_path / "w.pth")


def test_tensors_that_share_their_memory_are_read(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["1.weight"] = state["0.bias"]
    torch.save(state, tmp_path / "w.pth")
    network = tiny()
    load_state(network, read_state(tmp_path / "w.pth"), "2", "w.pth")
    assert torch.equal(network.state_dict()["1.weight"], network.state_dict()["0.bias"])


def test_a_truncated_safetensors_file(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"w\.safetensors is damaged or truncated"):
        read_state(path)


def test_a_missing_file_says_where_it_looked() -> None:
    with pytest.raises(UserError, match=r"'no\.pth' not found \(looked in /"):
        read_state(Path("no.pth"))
