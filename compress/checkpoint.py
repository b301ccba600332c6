"""A training's state on disk: written after every epoch, resumed from bit by bit."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from compress.artifacts import read_tensors, write_tensors, write_text

_FILE = "checkpoint.safetensors"
_BEST = "best.safetensors"


def trained_state(directory: Path) -> dict[str, Tensor]:
    """The state of the trained module: the best epoch's where one was selected, else the last's."""
    if (directory / _BEST).is_file():
        return read_tensors(directory / _BEST)[0]
    return _module_part(read_tensors(directory / _FILE)[0])


def _module_part(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}


class Checkpoint:
    """A training's state in one safetensors file: module, optimiser, history; no pickle."""

    def __init__(self, directory: Path, module: nn.Module, optimizer: Optimizer) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / _FILE
        self.best_path = directory / _BEST
        self.metrics_path = directory / "metrics.jsonl"
        self.module = module
        self.optimizer = optimizer

    def save(self, history: list[dict[str, Any]], keep_best: str | None) -> None:
        """Write the state after an epoch; the best weights first, so that a kill loses none."""
        if keep_best is not None:
            values = [row.get(keep_best, -math.inf) for row in history]
            if values[-1] == max(values) and values[-1] not in values[:-1]:
                write_tensors(self.best_path, self.module.state_dict())
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        plain: dict[str, Any] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    plain[f"{index}.{key}"] = value
        metadata = {"history": json.dumps(history), "optimizer": json.dumps(plain)}
        write_tensors(self.path, tensors, metadata)
        self._write_metrics(history)

    def resume(self) -> list[dict[str, Any]]:
        """Load the state of the last whole epoch; an empty history where there is none."""
        if not self.path.is_file():
            return []
        tensors, metadata = read_tensors(self.path)
        history: list[dict[str, Any]] = json.loads(metadata["history"])
        self.module.load_state_dict(_module_part(tensors))
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        for name, plain in json.loads(metadata["optimizer"]).items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = plain
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        # A kill between the two files leaves a line too few; the checkpoint is what counts.
        self._write_metrics(history)
        return history

    def restore_best(self) -> None:
        """Load the weights of the best epoch."""
        self.module.load_state_dict(read_tensors(self.best_path)[0])

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in history))
