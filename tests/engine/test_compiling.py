"""When compiling pays, and for which batches it is done."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.engine import compiling
from compress.engine.compiling import CompiledTaps, compile_taps, compiling_pays
from compress.models import build
from compress.taps import TappedGraph, TapSpecs, discover

CPU = torch.device("cpu")


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that went to what torch.compile made."""
    seen: list[int] = []

    def compile_with(graph: nn.Module, **_options: Any) -> Any:
        def run(images: Tensor) -> Any:
            seen.append(len(images))
            return graph(images)

        return run

    monkeypatch.setattr(torch, "compile", compile_with)
    return seen


def resnet8() -> tuple[nn.Module, TapSpecs]:
    network = build("resnet8", num_classes=5)
    return network, discover(network, (3, 16, 16), "resnet8")


@pytest.mark.parametrize(("rows", "expected"), [(4, [4, 4]), (None, [3, 3])])
def test_a_student_is_compiled_for_the_usual_rows(
    sizes: list[int], rows: int | None, expected: list[int]
) -> None:
    network, specs = resnet8()
    look = CompiledTaps(TappedGraph(network, specs, ["logits"]), "student", rows=rows)
    for count in (3, 4, 2, 4, 3):
        logits = look(torch.randn(count, 3, 16, 16)).tensor("logits")
        assert len(logits) == count
    assert sizes == expected


def test_each_process_counts_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda _: "c++")
    enough = 1.5e14
    assert compiling_pays("auto", CPU, macs=lambda: enough, steps=1)
    monkeypatch.setattr(compiling, "world_size", lambda: 2)
    assert not compiling_pays("auto", CPU, macs=lambda: enough, steps=1)
    assert compiling_pays("auto", CPU, macs=lambda: 2 * enough, steps=1)
    assert compiling_pays("always", CPU, macs=lambda: 0, steps=1)


@pytest.mark.parametrize(
    ("wish", "processes", "expected"),
    [("auto", 1, True), ("auto", 2, False), ("always", 2, True)],
)
def test_where_processes_exchange_statistics_only_a_wish_compiles_a_student(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sizes: list[int],
    wish: Any,
    processes: int,
    expected: bool,
) -> None:
    monkeypatch.setattr(compiling, "world_size", lambda: processes)
    network, specs = resnet8()
    look = compile_taps(network, specs, ["logits"], "student", wish=wish)
    assert (look is not None) is expected
    assert ("batch norm across 2 processes" in capsys.readouterr().out) is not expected
