"""A graph down to the taps shows what hooks show, bit for bit, and does nothing past them."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import UserError
from compress.models import build
from compress.taps import (
    Tapped,
    TappedGraph,
    Taps,
    TapSpecs,
    Untraceable,
    discover,
    encoder_until,
    tail_after,
)

NETWORKS = [
    *("resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"),
    *("torchvision:resnet18", "timm:regnetx_002"),
]
NONE = TapSpecs((), (), None, None, None, 10)


def prepared(name: str) -> tuple[nn.Module, TapSpecs, Tensor]:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    size = 64 if ":" in name else 32
    network = build(name, num_classes=7)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    return network, discover(network, (3, size, size), name), images


def every_kind(specs: TapSpecs) -> list[str]:
    single = {"last_map": specs.last_map, "stem": specs.stem}
    present = [kind for kind, spec in single.items() if spec]
    return ["logits", "pooled", "stages", "pre_activations", *present]


def named(taps: Taps) -> Iterator[tuple[str, Tensor]]:
    for kind, tap in taps.items():
        if isinstance(tap, Tensor):
            yield kind, tap
        else:
            yield from ((f"{kind} {number}", one) for number, one in enumerate(tap))


def same(found: Taps, expected: Taps) -> None:
    one, other = dict(named(found)), dict(named(expected))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_gradients_and_statistics_are_those_of_hooks(name: str, training: bool) -> None:
    network, specs, images = prepared(name)
    wanted = every_kind(specs)
    network.train(training)
    other = copy.deepcopy(network)
    both = TappedGraph(network, specs, wanted), Tapped(other, specs, wanted)
    shown = []
    for tapped in both:
        torch.manual_seed(0)  # dropout
        shown.append(tapped(images))
        torch.stack([value.square().mean() for _, value in named(shown[-1])]).sum().backward()
    same(*shown)
    for mine, its in zip(network.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert torch.equal(mine.grad, its.grad)
    for name_of, buffer in network.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name_of))


@pytest.mark.parametrize(
    ("wanted", "skipped"),
    [
        (["logits"], []),
        (["last_map"], ["avgpool", "fc"]),
        (["pooled"], ["fc"]),
        (["layer2"], ["avgpool", "fc", "layer3"]),
        (["stem"], ["avgpool", "fc", "layer1", "layer2", "layer3"]),
    ],
)
def test_nothing_past_the_last_tap_is_run(wanted: list[str], skipped: list[str]) -> None:
    network, specs, images = prepared("resnet8")
    graph = TappedGraph(network.eval(), specs, wanted)
    expected = Tapped(network, specs, wanted)(images)
    assert graph.skipped == skipped
    for path in skipped:
        network.get_submodule(path).forward = None  # type: ignore[assignment]
    taps = graph(images)
    assert list(taps) == wanted
    same(taps, expected)
    assert not [n for n in graph.graph.state_dict() if n.startswith(tuple(skipped or "-"))]


def test_parameters_are_shared_and_modes_followed() -> None:
    network, specs, images = prepared("resnet8")
    network.train()
    network.get_submodule("bn1").eval()  # a frozen norm stays frozen
    graph = TappedGraph(network, specs, ["logits"])
    assert [p for p, m in network.named_modules() if not m.training] == ["bn1"]
    own = {id(p) for p in network.parameters()}
    assert {id(p) for p in graph.graph.parameters()} == own
    network.eval()
    with torch.no_grad():
        network.get_parameter("fc.weight").mul_(2)
        same(graph(images), Tapped(network, specs, ["logits"])(images))
    another = graph.with_network(build("resnet8", num_classes=7, seed=1).eval())
    assert not torch.equal(_logits(another(images)), _logits(graph(images)))


def _logits(taps: Taps) -> Tensor:
    return taps.tensor("logits")


class Twice(nn.Module):
    """Calls one layer twice, overwrites values, draws numbers and reads a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.again = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor, scale: float | None = None) -> Tensor:
        self.calls.mul_(2).add_(1)  # type: ignore[operator, union-attr]
        maps = self.again(self.again(self.first(images)).tanh())
        self.unused(maps)
        other = maps * 2
        other.add_(1)
        functional.relu(other, inplace=True)
        if scale is not None:
            other = other * scale
        dropped: Tensor = functional.dropout(other, 0.5, self.training)
        return dropped.mean((2, 3)) + self.calls


@pytest.mark.parametrize("training", [False, True])
def test_layers_called_twice_and_values_overwritten(training: bool) -> None:
    network = Twice().train(training)
    other = copy.deepcopy(network)
    images = torch.randn(2, 3, 5, 5)
    wanted = ["logits", "again"]
    graph = TappedGraph(network, NONE, wanted)
    assert graph.skipped == ["unused"]
    for _ in range(2):
        shown = []
        for tapped in (graph, Tapped(other, NONE, wanted)):
            torch.manual_seed(0)
            shown.append(tapped(images))
        same(*shown)
    assert torch.equal(network.calls, other.calls)  # type: ignore[arg-type]
    assert vars(network).keys() == vars(other).keys()


def test_what_overwrites_values_past_the_last_tap_is_not_run() -> None:
    graph = TappedGraph(Twice().eval(), NONE, ["again"])
    assert "tanh" in {node.target for node in graph.graph.graph.nodes}
    assert functional.relu not in {node.target for node in graph.graph.graph.nodes}


class Choosing(nn.Module):
    """Control flow that depends on the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) if images.mean() > 0 else images


def test_parts_that_cannot_be_traced_stay_whole() -> None:
    network = nn.Sequential(Choosing(), nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    graph = TappedGraph(network, NONE, ["1"])
    assert graph.skipped == ["2"]
    for images in (torch.ones(1, 3, 5, 5), -torch.ones(1, 3, 5, 5)):
        assert torch.equal(graph(images).tensor("1"), network[:2](images))
    with pytest.raises(Untraceable, match=r"output of '0\.inner'"):
        TappedGraph(network, NONE, ["0.inner"])


def test_what_has_no_graph_is_refused() -> None:
    with pytest.raises(Untraceable, match="cannot trace it"):
        TappedGraph(Choosing(), NONE, ["logits"])
    with pytest.raises(UserError, match=r"no module 'lyer2'.*layer2"):
        network, specs, _ = prepared("resnet8")
        TappedGraph(network, specs, ["lyer2"])


def test_it_compiles_whole() -> None:
    network, specs, images = prepared("resnet8")
    graph = TappedGraph(network.eval(), specs, ["logits", "stages"])
    compiled: Any = torch.compile(graph.graph, backend="eager", fullgraph=True)
    with torch.no_grad():
        same(graph.read(compiled(images)), graph(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_its_encoder_and_its_tail(name: str) -> None:
    network, specs, images = prepared(name)
    network.eval()
    for spec in (*specs.stages[-2:], specs.last_map):
        assert spec is not None
        head, tail = encoder_until(network, spec.path), tail_after(network, spec.path)
        with torch.no_grad():
            assert torch.equal(tail(head(images)), network(images)), spec.path
        learned = [*head.named_parameters(), *tail.body.named_parameters()]
        assert {n for n, _ in learned} == {n for n, _ in network.named_parameters()}


def test_a_tail_is_a_frozen_copy_in_eval_mode() -> None:
    network, _, images = prepared("resnet8")
    tail = tail_after(network.train(), "layer2")
    assert network.training
    assert not any(module.training for module in tail.train().modules())
    assert not any(p.requires_grad for p in tail.parameters())
    own = {p.data_ptr() for p in network.parameters()}
    assert not own & {p.data_ptr() for p in tail.parameters()}
    shown = encoder_until(network.eval(), "layer2")(images)
    before = tail(shown)
    torch.nn.init.zeros_(network.get_parameter("fc.weight"))
    assert torch.equal(tail(shown), before)


class Skipping(nn.Module):
    """The images are read again behind the first layer; a constant is read everywhere."""

    def __init__(self, *, skips: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.skips = skips

    def forward(self, images: Tensor) -> Tensor:
        scale = self.scale * 3
        shown = functional.relu(self.first(images) * scale)
        shown = self.second(shown)
        return (shown + images.mean() if self.skips else shown) * scale


def test_a_skip_around_the_cut_is_refused_and_a_constant_is_not() -> None:
    images = torch.randn(2, 3, 5, 5)
    network = Skipping(skips=False).eval()
    head, tail = encoder_until(network, "first"), tail_after(network, "first")
    assert torch.equal(tail(head(images)), network(images))
    assert not tail.is_activated
    with pytest.raises(UserError, match="after 'first': what follows also reads 'mean'"):
        tail_after(Skipping(skips=True), "first")
    network, _, _ = prepared("resnet8")
    with pytest.raises(
        UserError, match=r"reads 'layer2\.0\.downsample.*', which is before the cut"
    ):
        tail_after(network, "layer2.0.conv2")
    with pytest.raises(UserError, match="no module that its forward runs"):
        tail_after(network, "layer9")


def test_a_tail_tells_whether_a_relu_made_its_map() -> None:
    layers = nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    network = nn.Sequential(*layers, nn.Flatten())
    activated = [tail_after(network, str(number)).is_activated for number in range(4)]
    assert activated == [False, True, False, False]
