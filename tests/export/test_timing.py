"""Runtimes are timed beside each other, a compiled network among them where a compiler works."""

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper, save
from torch import nn

from compress.recipe.schema import LatencyPart
from export.bundle.timing import COMPILED, TORCH, time_runtimes

SETTINGS = LatencyPart(batch_sizes=[1, 3], rounds=2, warmup=1)


def timed(monkeypatch: pytest.MonkeyPatch, compiler: Any) -> dict[str, Any]:
    compile_network = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda network, **kw: compile_network(network, backend=compiler, **kw)
    )
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)).eval()
    network(torch.zeros(1, 3, 8, 8))
    return time_runtimes(network, {}, (3, 8, 8), SETTINGS, compiled=True)


def test_a_compiled_network_is_timed_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _examples: object) -> Any:
        graphs.append(graph)
        return graph.forward

    timing = timed(monkeypatch, compiler)
    assert timing["not_compiled"] is None
    assert timing["latency"].keys() == {TORCH, COMPILED}
    assert all(times.keys() == {"1", "3"} for times in timing["latency"].values())
    assert len(graphs) == 2, "one for each batch size"


def test_without_a_compiler_the_reason_stands_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: torch.fx.GraphModule, _examples: object) -> Any:
        raise OSError("there is no compiler here")

    timing = timed(monkeypatch, broken)
    assert timing["latency"].keys() == {TORCH}
    assert "backend='broken'" in timing["not_compiled"]


def pooling_file(path: Path, size: int) -> Path:
    """An ONNX file that takes images (N, 3, size, size) and gives their means (N, 3, 1, 1)."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size])
    means = helper.make_tensor_value_info("means", TensorProto.FLOAT, ["N", 3, 1, 1])
    node = helper.make_node("GlobalAveragePool", ["images"], ["means"])
    graph = helper.make_graph([node], "pooling", [images], [means])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_each_file_is_timed_on_images_of_its_own_size(tmp_path: Path) -> None:
    files = {f"file {size}": pooling_file(tmp_path / f"{size}.onnx", size) for size in (8, 12)}
    timing = time_runtimes(nn.Flatten().eval(), files, (3, 8, 8), SETTINGS, compiled=False)
    assert timing["latency"].keys() == {TORCH, *files}
    assert all(row.keys() == {"1", "3"} for row in timing["latency"].values())
