"""A frozen teacher shows the taps of the plain one, whatever could be done to it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.models import build
from compress.taps import Tapped, TapSpecs, discover
from compress.teacher import Precision, make_fast, measure_tap_differences

NONE = TapSpecs((), (), None, None, None, 10)


def settled(name: str, **arguments: Any) -> tuple[nn.Module, TapSpecs, Tensor]:
    """A network whose batch norm has seen images, as after training; and images."""
    size = 64 if ":" in name else 32
    network = build(name, num_classes=7, **arguments)
    specs = discover(network, (3, size, size), name)
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(8):
            network.train()(images)
    return network.eval(), specs, images


def every_kind(specs: TapSpecs) -> list[str]:
    single = {"last_map": specs.last_map, "stem": specs.stem}
    present = [kind for kind, spec in single.items() if spec]
    return ["logits", "pooled", "stages", "pre_activations", *present]


def largest(found: dict[str, float]) -> float:
    return max(value for tap, value in found.items() if tap != "same_class_percent")


@pytest.mark.parametrize(
    "name",
    [
        *("resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"),
        *("torchvision:resnet18", "torchvision:shufflenet_v2_x0_5"),
    ],
)
def test_equal_up_to_rounding_and_the_network_is_as_it_was(name: str) -> None:
    network, specs, images = settled(name)
    network.train()
    before = copy.deepcopy(network.state_dict())
    frozen = make_fast(network, specs, every_kind(specs), compile=False, precision="float32")
    shown = frozen(images)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    plain = Tapped(network.eval(), specs, every_kind(specs))
    differences = measure_tap_differences(lambda _: shown, plain, images)
    assert set(differences) == {*every_kind(specs), "same_class_percent"}
    assert largest(differences) < 1e-4
    assert differences["same_class_percent"] == 100


def test_remarks_tell_what_was_folded_and_what_is_not_run() -> None:
    network, specs, images = settled("resnet8")
    frozen = make_fast(
        network, specs, ["layer2"], compile=False, precision="float32", name="teacher resnet8"
    )
    taps = frozen(images)
    assert frozen.notes() == [
        "teacher resnet8: 6 batch norms are folded; not run: avgpool, fc, layer3"
    ]
    assert list(taps) == ["layer2"]


def test_a_tap_between_convolution_and_norm_keeps_the_norm() -> None:
    network, specs, images = settled("resnet8")
    wanted = ["conv1", "bn1", "logits"]
    frozen = make_fast(network, specs, wanted, compile=False, precision="float32")
    assert largest(measure_tap_differences(frozen, Tapped(network, specs, wanted), images)) < 1e-4
    assert frozen.notes() == ["teacher: 8 batch norms are folded, 1 are not"]


def test_maps_serve_in_a_students_backward_pass() -> None:
    network, specs, images = settled("resnet8")
    frozen = make_fast(network, specs, ["last_map"], compile=False, precision="float32")
    with torch.enable_grad():
        target = frozen(images).tensor("last_map")
        assert not target.requires_grad
        weight = torch.ones(target.shape[1], 1, 1, requires_grad=True)
        (weight * target).sum().backward()
    torch.testing.assert_close(weight.grad, target.sum((0, 2, 3))[:, None, None])


def test_bfloat16_is_near_and_gives_float32() -> None:
    network, specs, images = settled("resnet8")
    frozen = make_fast(network, specs, every_kind(specs), compile=False, precision="bfloat16")
    taps = frozen(images)
    assert {taps.tensor("logits").dtype, *(one.dtype for one in taps.tensors("stages"))} == {
        torch.float32
    }
    differences = measure_tap_differences(frozen, Tapped(network, specs, every_kind(specs)), images)
    assert 1e-4 < largest(differences) < 0.05


def compiled_by(monkeypatch: pytest.MonkeyPatch, compiler: Any) -> None:
    def compile_with(body: nn.Module, **options: Any) -> Any:
        assert options.pop("options") == {"freezing": True}
        return real(body, backend=compiler, **options)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_only_the_first_batch_size_is_compiled(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    compilations, runs = [], []

    def compiler(graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Any:
        def run(*values: Any) -> Any:
            runs.append(1)
            return graph.forward(*values)

        compilations.append(1)
        return run

    compiled_by(monkeypatch, compiler)
    network, specs, images = settled("resnet8")
    wanted = ["logits", "stages"]
    frozen = make_fast(network, specs, wanted, compile=True, precision=precision)
    plain = make_fast(network, specs, wanted, compile=False, precision=precision)
    reference = Tapped(network, specs, wanted)
    for batch in (images, images[:5], images, images[:1], images.flip(0)):
        logits, expected = frozen(batch).tensor("logits"), plain(batch).tensor("logits")
        torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)
        assert largest(measure_tap_differences(frozen, reference, batch)) < 0.05
    assert len(compilations) == 1
    assert len(runs) == 6  # three batches, shown twice


def test_compiles_for_the_usual_rows_whatever_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def compiler(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Any:
        compiled.extend(len(e) for e in examples if e.shape[1:] == (3, 32, 32))
        return graph.forward

    compiled_by(monkeypatch, compiler)
    network, specs, images = settled("resnet8")
    frozen = make_fast(network, specs, ["logits"], compile=True, precision="float32", rows=4)
    assert frozen.compiled_rows() == 4
    for batch in (images[:3], images[:2], images[:4], images, images[4:]):
        frozen(batch)
    assert compiled == [4]
    assert (
        make_fast(
            network, specs, ["logits"], compile=False, precision="float32", rows=4
        ).compiled_rows()
        is None
    )


def test_without_a_working_compiler_it_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Any:
        raise OSError("there is no compiler here")

    compiled_by(monkeypatch, broken)
    network, specs, images = settled("resnet8")
    frozen = make_fast(network, specs, ["logits"], compile=True, precision="float32")
    reference = Tapped(network, specs, ["logits"])
    for batch in (images, images[:3], images):
        assert largest(measure_tap_differences(frozen, reference, batch)) < 1e-4
    said = capsys.readouterr().out
    assert said.count("not compiled") == said.count("there is no compiler here") == 1
    assert "not compiled" in frozen.notes()[-1]
    assert frozen.compiled_rows() is None


class Choosing(nn.Module):
    """Control flow that depends on the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.norm(self.conv(images))
        return (maps if maps.mean() > 0 else -maps).mean((2, 3))


def test_what_cannot_be_traced_runs_with_hooks() -> None:
    network, images = Choosing().eval(), torch.randn(4, 3, 8, 8)
    frozen = make_fast(network, NONE, ["logits", "norm"], compile=True, precision="float32")
    differences = measure_tap_differences(frozen, Tapped(network, NONE, ["logits", "norm"]), images)
    assert set(differences) == {"logits", "norm", "same_class_percent"}
    assert largest(differences) < 1e-4
    assert "with hooks" in frozen.notes()[0]
    assert network.conv.weight.requires_grad


class Viewing(nn.Module):
    """Takes a view that channels last does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(images)
        return maps.view(len(images), -1)


def test_views_of_maps_keep_them_contiguous(capfd: pytest.CaptureFixture[str]) -> None:
    network, images = Viewing().eval(), torch.randn(4, 3, 8, 8)
    frozen = make_fast(network, NONE, ["logits"], compile=False, precision="float32")
    assert (
        largest(measure_tap_differences(frozen, Tapped(network, NONE, ["logits"]), images)) < 1e-4
    )
    assert "contiguous" in frozen.notes()[-1]
    assert "Traceback" not in capfd.readouterr().err


def test_errors_of_the_images_are_shown_as_they_are() -> None:
    network, specs, _ = settled("resnet8")
    frozen = make_fast(network, specs, ["logits"], compile=False, precision="float32")
    with pytest.raises(RuntimeError, match="channels"):
        frozen(torch.zeros(2, 5, 32, 32))
    with pytest.raises(UserError, match="no module 'lyer2'"):
        make_fast(network, specs, ["lyer2"], compile=False, precision="float32")
