"""What a file is made of: one that loads alone, tensors beside it where they must be, its opset."""

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from compress.errors import UserError
from compress.onnx import check_file, open_session, run_session
from export import Exported, export_onnx
from tests.export.tracing import traced_exports


def network() -> nn.Module:
    """4 x 500 x 5 bytes of weights in its last layer alone."""
    pool = nn.AvgPool2d(8)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(3, 500), nn.Linear(500, 5)).eval()


def export(path: Path, network: nn.Module, **settings: Any) -> Exported:
    return export_onnx(
        network,
        path,
        input_shape=(3, 8, 8),
        class_names=tuple("abcde"),
        preprocessing={},
        fingerprint="",
        **settings,
    )


def alone(path: Path, names: tuple[str, ...], folder: Path) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(path.with_name(name), folder / name)
    return folder / path.name


def test_one_file_loads_alone_in_an_empty_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    info = export(path, network())
    assert info.files == ("x.onnx",)
    assert info.size_bytes == path.stat().st_size
    open_session(alone(path, info.files, tmp_path / "elsewhere"))


def test_tensors_too_large_for_protobuf_lie_beside_it(tmp_path: Path) -> None:
    path, weights = tmp_path / "x.onnx", network()
    info = export(path, weights, embed_up_to=1000)
    assert info.files == ("x.onnx", "x.onnx.data")
    assert {p.name for p in tmp_path.iterdir()} == {*info.files}
    assert info.size_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert path.stat().st_size < 4000 < 4 * 500 * 5 <= path.with_name("x.onnx.data").stat().st_size
    session = open_session(alone(path, info.files, tmp_path / "elsewhere"))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = weights(images)
    found = torch.from_numpy(run_session(session, images.numpy()))
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="cannot load"):
        open_session(alone(path, info.files[:1], tmp_path / "without"))


def test_the_opset_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    assert export(path, network(), opset=20).opset == 20
    assert check_file(path) == 20
    open_session(path)


def test_an_unknown_opset_and_a_broken_graph_are_refused_in_words(tmp_path: Path) -> None:
    path, changed = tmp_path / "x.onnx", tmp_path / "changed.onnx"
    with traced_exports():
        export(path, network())
    model = onnx.load(path)
    model.opset_import[0].version = 99
    changed.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"asks for opset 99; onnx .* knows 1 to"):
        check_file(changed)
    model.opset_import[0].version = 18
    model.graph.node[-1].input[0] = "nowhere"
    changed.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="is no valid ONNX model"):
        check_file(changed)
    changed.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="no ONNX model, or damaged"):
        check_file(changed)
