"""Methods that relate a batch, or have networks and queues of their own: two processes are as one.

Each is trained for some steps by two processes that have parts of every batch, once by one process
that has all of it. The states are equal up to rounding, in float64.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.data import Batch
from compress.engine import TrainSettings, train
from compress.methods import METHODS, LossWeights, Method, MethodContext
from tests.methods import building
from tests.methods.throwaway import HintsAtOnce, ThreeViews
from tests.processes import on_two_ranks

SMALL = {"queue_size": 11, "hidden_width": 6, "feature_width": 5, "predictor_width": 4}
# Of DLKD what relates no images, and takes parts of a batch.
ALIGN = {"hidden_ratio": 0.1, "correlation_weight": 0, "supervised_weight": 0}
# Method, and the parts that each batch is run in.
CASES: Mapping[str, tuple[Callable[[MethodContext], Method], int]] = {
    "three views": (ThreeViews, 1),
    "dcd": (partial(METHODS["dcd"], form="text"), 1),
    "dist": (METHODS["dist"], 1),
    "aekd": (METHODS["aekd"], 1),
    "aekd_f": (HintsAtOnce, 1),
    "cocord": (partial(METHODS["cocord"], **SMALL), 1),
    "cocord in parts": (partial(METHODS["cocord"], **SMALL), 2),
    "seed": (partial(METHODS["seed"], queue_size=11), 1),
    "seed in parts": (partial(METHODS["seed"], queue_size=11), 2),
    "dlkd": (partial(METHODS["dlkd"], hidden_ratio=0.1, feature_width=5), 1),
    "dlkd in parts": (partial(METHODS["dlkd"], **ALIGN), 2),
    "crcd": (partial(METHODS["crcd"], negatives=5), 1),
    "skd": (METHODS["skd"], 1),
    "ifvd": (METHODS["ifvd"], 1),
    "ifvd in parts": (partial(METHODS["ifvd"], adversary_weight=0.0), 2),
    "norm_crd": (partial(METHODS["norm_crd"], copies=2, negatives=3, features=5), 1),
    "cwd": (partial(METHODS["cwd"], features_weight=50.0), 1),
    "dlkd_pixels": (partial(METHODS["dlkd_pixels"], hidden_ratio=0.5), 1),
}


class _Wide:
    """The batches of a method in float64."""

    def __init__(self, method: Method) -> None:
        self.batches = building.batches(method)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        for batch in self.batches.epoch(epoch):
            yield replace(batch, images=tuple(view.double() for view in batch.images))


def _trained(name: str, folder: Path) -> dict[str, Tensor]:
    build, parts = CASES[name]
    weights = LossWeights(ce=1, kd=0, method=1)
    module = building.distillation(build, weights=weights).double()  # type: ignore[arg-type]
    for teacher in module._teachers:
        teacher.network.double()
    batches = _Wide(module.method)
    module.begin_phase(None, next(batches.epoch(0)))
    settings = TrainSettings(2, lr=0.05, batch_size=8, accumulate=parts)
    history = train(
        module,
        batches,
        settings,
        directory=folder / name,
        role=name,
        seed=0,
        device=building.CPU,
    )
    losses = torch.tensor([row["loss"] for row in history], dtype=torch.float64)
    return {**module.state_dict(), "losses": losses}


def _rank_results(_rank: int, folder: Path) -> dict[str, dict[str, Any]]:
    return {name: _trained(name, folder) for name in CASES}


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """States that each of two processes has trained."""
    return on_two_ranks(_rank_results, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_as_one(name: str, states: list[dict[str, Any]], tmp_path: Path) -> None:
    whole = _trained(name, tmp_path)
    for process in states:
        assert process[name].keys() == whole.keys()
        for key, expected in whole.items():
            torch.testing.assert_close(
                process[name][key], expected, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )
