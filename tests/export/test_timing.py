"""Runtimes are timed beside each other, a compiled network among them where a compiler works."""

from typing import Any

import pytest
import torch
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
