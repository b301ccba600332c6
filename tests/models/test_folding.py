"""Folding batch norm: the same function with fewer layers, and a list of what stays."""

import copy
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from compress.accounting import count_macs, count_parameters
from compress.models import Folded, build, fold_batchnorm


def trained(network: nn.Module) -> nn.Module:
    """Double precision, and batch norms as training could leave them."""
    generator = torch.Generator().manual_seed(0)
    network = network.double()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -1.0),
                (module.running_mean, -1.0),
                (module.running_var, 0.2),
            ):
                assert tensor is not None
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.data.copy_(low + 1.5 * noise)
    return network


def check(network: nn.Module, size: int = 32) -> Folded:
    """Fold and compare on random images; the original must stay as it was, bit by bit."""
    network.train()
    before = copy.deepcopy(network.state_dict())
    result = fold_batchnorm(network)
    assert all(m.training for m in network.modules())
    assert not any(m.training for m in result.network.modules())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    images = torch.randn(2, 3, size, size, dtype=torch.double)
    with torch.no_grad():
        expected, folded = network.eval()(images), result.network(images)
    torch.testing.assert_close(folded, expected, rtol=1e-9, atol=1e-9)
    return result


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4"])
def test_own_networks_fold_completely(name: str) -> None:
    network = trained(build(name, num_classes=5))
    result = check(network)
    assert len(result.folded) == norms(network)
    assert result.not_folded == []
    assert norms(result.network) == 0


@pytest.mark.parametrize(
    ("name", "narrow"),
    [("resnet18", {}), ("mobilenet_v2", {"width_mult": 0.25}), ("shufflenet_v2_x0_5", {})],
)
def test_torchvision_networks_fold_completely(name: str, narrow: dict[str, float]) -> None:
    network = trained(torchvision.models.get_model(name, num_classes=5, **narrow))
    result = check(network)
    assert len(result.folded) == norms(network)
    assert result.not_folded == []


def test_norms_before_convolutions_are_listed() -> None:
    network = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8)
    result = check(trained(network))
    assert len(result.folded) + len(result.not_folded) == norms(network)
    listed = [entry["module"] for entry in result.not_folded]
    assert "features.denseblock1.denselayer1.norm1" in listed
    assert "features.denseblock1.denselayer1.norm2" in result.folded
    assert all(entry["reason"] for entry in result.not_folded)


def test_parameters_and_macs_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    folded = fold_batchnorm(network).network
    # The norm's scale and shift (2 x 8) leave, a bias (8) comes.
    assert count_parameters(network) - count_parameters(folded) == 8
    assert count_macs(folded, (3, 6, 6)).macs == count_macs(network, (3, 6, 6)).macs == 4 * 4 * 216


def test_one_channel_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).double()
    values = {"0.weight": 3, "0.bias": 1, "1.running_mean": 5, "1.running_var": 4}
    state = network.state_dict()
    for name, value in (values | {"1.weight": 2, "1.bias": 7}).items():
        state[name].fill_(value)
    folded = fold_batchnorm(network).network.state_dict()
    # (3 x + 1 - 5) / sqrt(4) * 2 + 7 = 3 x + 3
    assert [float(t) for t in folded.values()] == [3, 3]


def test_folding_twice_gives_the_same_bits() -> None:
    network = trained(build("resnet8", num_classes=5))
    one, two = fold_batchnorm(network), fold_batchnorm(network)
    assert one.folded == two.folded
    states = one.network.state_dict(), two.network.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    again = fold_batchnorm(one.network)
    assert again.folded == again.not_folded == []


class Deployed(nn.Module):
    """An encoder that is an fx graph itself, a projector, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.encoder = fx.symbolic_trace(encoder)
        self.projector = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(4, 6, 1, bias=False), norm=nn.BatchNorm2d(6))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.projector(self.encoder(images))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


def test_a_graph_inside_a_module_is_folded() -> None:
    result = check(trained(Deployed()))
    assert result.folded == ["encoder.1", "projector.norm"]


class Untraceable(nn.Module):
    """Decides by values, which a graph cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(images))
        return features if features.sum() > 0 else -features


def test_untraceable_parts_stay_whole_and_the_rest_folds() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    result = check(trained(nn.Sequential(stem, nn.Sequential(Untraceable(), nn.ReLU()))))
    assert result.folded == ["0.1"]
    (entry,) = result.not_folded
    assert entry["module"] == "1.0.norm"
    assert "cannot trace '1.0'" in entry["reason"]


def test_an_untraceable_network_is_returned_with_everything_listed() -> None:
    result = check(trained(Untraceable()))
    assert type(result.network) is Untraceable
    assert result.folded == []
    assert [entry["module"] for entry in result.not_folded] == ["norm"]
    assert "cannot trace the network" in result.not_folded[0]["reason"]


class TwoReaders(nn.Module):
    """The convolution's output is needed beside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return features + self.norm(features)


class CalledTwice(nn.Module):
    """One convolution serves two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.second(self.conv(self.first(self.conv(images))))
        return features


class WeightReader(nn.Module):
    """The convolution's weight is used beside the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)) * self.conv.weight.sum()


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm by class that does more."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        return super().forward(input).relu()


def hooked() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (TwoReaders(), "used 2 times"),
        (CalledTwice(), "convolution 'conv' is used 2 times"),
        (WeightReader(), "convolution 'conv' is used 2 times"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), NormAndActivation(3)), "no plain batch norm"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "'1' (ReLU)"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), "not the output"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
            "no running statistics",
        ),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)),
            "parametrisations",
        ),
        (nn.Sequential(nn.ConvTranspose2d(3, 3, 2, groups=3), nn.BatchNorm2d(3)), "grouped"),
        (hooked(), "hooks"),
    ],
)
def test_what_cannot_be_folded_is_left_alone(network: nn.Module, reason: str) -> None:
    result = fold_batchnorm(network)
    assert result.folded == []
    assert result.not_folded
    assert reason in result.not_folded[0]["reason"]
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(result.network(images), network.eval()(images))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, padding=1), nn.BatchNorm2d(6)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)),
    ],
)
def test_other_convolutions_fold(network: nn.Module) -> None:
    assert check(trained(network), size=8).folded == ["1"]


def test_a_norm_that_is_never_called_is_listed() -> None:
    result = check(trained(WithSpare()), size=4)
    assert result.not_folded == [{"module": "spare", "reason": "the forward does not call it"}]


class WithSpare(nn.Module):
    """Holds a batch norm that its forward ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.spare = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.conv(images)
        return features
