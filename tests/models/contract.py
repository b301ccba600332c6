"""What every network for small images must do, whichever family it is of."""

from collections.abc import Sequence

import torch
from torch import nn

from compress.models import build
from compress.taps import MapSpec, Tapped, discover, encoder_until

# Module path, channels, height at 32x32 images.
Place = tuple[str, int, int]


def parameters(name: str) -> int:
    """Parameters at 100 classes, as the papers count."""
    return sum(p.numel() for p in build(name, num_classes=100).parameters())


def spec_place(spec: MapSpec | None) -> Place:
    assert spec is not None
    assert spec.height == spec.width
    assert spec.stride == 32 // spec.height
    return (spec.path, spec.channels, spec.height)


def check_taps(name: str, *, last: Place, stages: Sequence[Place]) -> None:
    """The last map is found, the papers' list of stages can be tapped, the encoder is the tap."""
    network = build(name, num_classes=7, seed=1).eval()
    randomise_norms(network)
    specs = discover(network, (3, 32, 32), name)
    assert spec_place(specs.last_map) == last
    assert (specs.pooled_width, specs.num_classes) == (last[1], 7)
    heights = [stage.height for stage in specs.stages]
    assert heights == sorted(heights, reverse=True)
    assert len(specs.pre_activations) == len(specs.stages)

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        paths = [path for path, _, _ in stages]
        taps = Tapped(network, specs, ("last_map", "pooled", "stages", *paths))(images)
        for path, channels, height in stages:
            assert taps.tensor(path).shape == (2, channels, height, height), path
        # The projector of SimKD ends in ReLU: what it imitates must not be negative.
        assert taps.tensor("last_map").min() == 0
        torch.testing.assert_close(
            taps.tensor("last_map").mean((2, 3)), taps.tensor("pooled"), rtol=1e-4, atol=1e-5
        )
        encoder = encoder_until(network, last[0]).eval()
        torch.testing.assert_close(encoder(images), taps.tensor("last_map"), rtol=0, atol=0)
    classifier = specs.classifier
    assert classifier is not None
    assert not any(key.startswith(classifier) for key in encoder.state_dict())


def check_pre_activations(name: str, places: dict[str, str]) -> None:
    """At each stage's path the map is the ReLU of what the given module reads."""
    network = build(name, num_classes=3, seed=2).eval()
    randomise_norms(network)
    seen: dict[str, torch.Tensor] = {}
    for stage, relu in places.items():
        network.get_submodule(stage).register_forward_hook(
            lambda _m, _i, output, key=stage: seen.__setitem__(key, output)
        )
        network.get_submodule(relu).register_forward_pre_hook(
            lambda _m, inputs, key="before " + stage: seen.__setitem__(key, inputs[0])
        )
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for stage in places:
        before = seen["before " + stage]
        assert before.min() < 0
        assert torch.equal(before.clamp(min=0), seen[stage]), stage


def check_sizes(name: str, *multiples: tuple[int, int]) -> None:
    """Logits at other image sizes, none of them square, for one image and for three."""
    network = build(name, num_classes=4).eval()
    for height, width in multiples:
        with torch.no_grad():
            assert network(torch.zeros(1, 3, height, width)).shape == (1, 4)
    assert network.train()(torch.randn(3, 3, 32, 32)).shape == (3, 4)


def check_gradients(name: str) -> None:
    """Every parameter has a gradient that is not zero, and no activation is called twice."""
    network = build(name, num_classes=5, seed=3).eval()
    calls = dict.fromkeys((p for p, m in network.named_modules() if isinstance(m, nn.ReLU)), 0)
    for path in calls:
        network.get_submodule(path).register_forward_hook(
            lambda _m, _i, _o, path=path: calls.__setitem__(path, calls[path] + 1)
        )
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(network(images), torch.tensor([0, 3]))
    torch.autograd.backward(loss)
    assert set(calls.values()) == {1}
    without = [path for path, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def randomise_norms(network: nn.Module) -> None:
    """Give each batch norm a state of its own, so that a mix-up of two shows."""
    generator = torch.Generator().manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.normal_(0, 0.2, generator=generator)
