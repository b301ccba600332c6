"""The ONNX file: alone, any batch size, described by itself, equal to the network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from compress.data import Preprocessing
from compress.errors import UserError
from compress.onnx import open_session, run_session
from export import export_onnx
from export.bundle.parity import pixels_of

CLASSES = ["zero", "one", "two", "three", "four"]
PREPROCESSING = {"image_size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "resize": 0}


class Plain(nn.Module):
    """Reads sizes from its input, as many published networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).relu()
        pooled = nn.functional.avg_pool2d(features, features.shape[2]).view(features.size(0), -1)
        logits: Tensor = self.head(self.drop(pooled))
        return logits


class Deployed(nn.Module):
    """What SimKD ships: a graph as encoder, a projector, pooling and the teacher's classifier."""

    def __init__(self) -> None:
        super().__init__()
        encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.encoder = fx.symbolic_trace(encoder)
        self.projector = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.projector(self.encoder(images)))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def write(network: nn.Module, path: Path, **settings: Any) -> Path:
    export_onnx(
        network,
        path,
        input_shape=(3, 32, 32),
        class_names=CLASSES,
        preprocessing=PREPROCESSING,
        fingerprint="0123abcd",
        **settings,
    )
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of its own folder: nothing else is there to load from."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("alone") / "plain.onnx"
    return write(Plain(), place)


@pytest.mark.parametrize("network", [Plain(), Deployed()], ids=type)
def test_equal_to_torch_at_any_batch_size(network: nn.Module, tmp_path: Path) -> None:
    network.train()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    session = open_session(write(network, tmp_path / "x.onnx"))
    assert network.training
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    network.eval()
    for batch in (1, 3, 64):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = network(images)
        found = torch.from_numpy(run_session(session, images.numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_folder_holds_one_file(plain: Path) -> None:
    assert [p.name for p in plain.parent.iterdir()] == ["plain.onnx"]


def test_names_and_dynamic_batch(plain: Path) -> None:
    graph = onnx.load(plain).graph
    (source,), (result,) = graph.input, graph.output
    assert (source.name, result.name) == ("images", "logits")
    sizes = source.type.tensor_type.shape.dim
    assert sizes[0].dim_param
    assert [d.dim_value for d in sizes[1:]] == [3, 32, 32]
    assert result.type.tensor_type.shape.dim[0].dim_param == sizes[0].dim_param


def test_metadata_describe_the_file(plain: Path) -> None:
    metadata = open_session(plain).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == CLASSES
    assert json.loads(metadata["preprocessing"]) == PREPROCESSING
    assert metadata["fingerprint"] == "0123abcd"
    assert "softmax" in metadata["output"]


def test_no_batch_norm_and_no_path_of_this_machine_is_left(plain: Path) -> None:
    model = onnx.load(plain)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert {o.domain: o.version for o in model.opset_import}[""] == 18
    content = plain.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert Path(__file__).name.encode() not in content


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Deployed()
    one, two = (write(network, tmp_path / n) for n in ("1.onnx", "2.onnx"))
    assert one.read_bytes() == two.read_bytes()


def test_raw_pixels_are_normalised_in_the_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Plain().eval()
    session = open_session(write(network, tmp_path / "x", raw_pixels=True))
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    for batch in (1, 5):
        pixels = torch.randint(0, 256, (batch, 32, 32, 3), dtype=torch.uint8)
        preprocessing = Preprocessing.from_dict(PREPROCESSING)
        images = preprocessing.normalise(pixels.permute(0, 3, 1, 2))
        np.testing.assert_array_equal(pixels_of(images, preprocessing), pixels.numpy())
        with torch.no_grad():
            expected = network(images)
        found = torch.from_numpy(run_session(session, pixels.numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Untranslatable(nn.Module):
    """Decides by values, which no graph holds."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_a_network_that_cannot_be_exported_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot export this network: ") as refusal:
        write(Untranslatable(), tmp_path / "x.onnx")
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_model_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="cannot load"):
        open_session(tmp_path / "text.onnx")
