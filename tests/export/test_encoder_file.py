"""encoder.onnx: the maps of the trained encoder, at any batch and, where it can be, any size."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from compress.data import Preprocessing
from compress.errors import UserError
from compress.model_files import Encoder
from compress.models import build
from compress.onnx import open_session, run_session
from compress.taps import MapSpec, discover, encoder_until
from export import export_encoder
from export import onnx as exporting
from tests.export.networks import trained
from tests.export.tracing import traced_exports

PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def convolutional() -> Encoder:
    network = trained(build("resnet8", num_classes=5), size=16)
    last_map = discover(network, (3, 16, 16), "student").last_map
    assert last_map is not None
    return Encoder(encoder_until(network, last_map.path), last_map, PREPROCESSING, 100)


class Positions(nn.Module):
    """Adds a learned value per position, as transformers do: one image size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.position = nn.Parameter(torch.randn(4, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.conv(images) + self.position
        return result


def fixed() -> Encoder:
    body = fx.symbolic_trace(Positions())
    return Encoder(body, MapSpec("conv", 4, 4, 4, 4), PREPROCESSING, 100)


def require_equal(encoder: Encoder, path: Path, *shape: int) -> None:
    images = torch.randn(*shape)
    with torch.no_grad():
        expected = encoder.eval()(images)
    found = torch.from_numpy(run_session(open_session(path), images.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_convolutional_encoder_takes_any_size(tmp_path: Path) -> None:
    encoder, path = convolutional(), tmp_path / "encoder.onnx"
    info = export_encoder(encoder, path, fingerprint="f")
    assert info.dynamic_size
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]
    for shape in ((1, 3, 16, 16), (2, 3, 64, 32), (5, 3, 20, 44)):
        require_equal(encoder, path, *shape)
    model = onnx.load(path)
    (source,), (result,) = model.graph.input, model.graph.output
    assert (source.name, result.name) == ("images", "features")
    sizes = [d.dim_param or d.dim_value for d in source.type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_an_encoder_of_one_size_is_exported_at_that_size(tmp_path: Path) -> None:
    encoder, path = fixed(), tmp_path / "encoder.onnx"
    assert not export_encoder(encoder, path).dynamic_size
    for batch in (1, 3):
        require_equal(encoder, path, batch, 3, 16, 16)
    sizes = [d.dim_value for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert sizes[1:] == [3, 16, 16]


def test_a_file_that_computes_something_else_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = convolutional()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    translate = exporting.translate
    monkeypatch.setattr(exporting, "translate", lambda _, **given: translate(other, **given))
    refused = pytest.raises(UserError, match=r"encoder\.onnx differs from the trained encoder")
    with traced_exports(), refused:
        export_encoder(convolutional(), tmp_path / "encoder.onnx")
    assert list(tmp_path.iterdir()) == []
