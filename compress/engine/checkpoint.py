"""A training's state on disk: written after every epoch, resumed from bit by bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from compress.distributed.collectives import is_first, wait
from compress.errors import UserError
from compress.storage.files import read_tensors, write_tensors, write_text

_FILE = "checkpoint.safetensors"


def best_row(history: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The first of the rows with the highest value of `metric`."""
    return max(history, key=lambda row: row[metric])


def trained_state(directory: Path) -> dict[str, Tensor]:
    """The state of the trained module: the best epoch's where one was selected, else the last's."""
    for path in directory.glob("best-*.safetensors"):
        return read_tensors(path)[0]
    return part_of(read_tensors(directory / _FILE)[0], "module.")


def read_history(directory: Path) -> list[dict[str, Any]]:
    """The rows of the whole epochs that a training has behind it; none without a checkpoint."""
    path = directory / _FILE
    if not path.is_file():
        return []
    history: list[dict[str, Any]] = json.loads(read_tensors(path)[1].get("history", "[]"))
    return history


def trained_epoch(directory: Path, history: list[dict[str, Any]]) -> int:
    """The epoch, counted from 1, of the weights that `trained_state` gives."""
    for path in directory.glob("best-*.safetensors"):
        return int(path.stem.removeprefix("best-"))
    return len(history)


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class Checkpoint:
    """A training's state in one safetensors file: module, optimiser, history; no pickle.

    Of several processes the first writes it and all read it: their states are the same.
    """

    def __init__(
        self,
        directory: Path,
        module: nn.Module,
        optimizer: Optimizer,
        scaler: GradScaler | None = None,
    ) -> None:
        if is_first():
            directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.path = directory / _FILE
        self.module = module
        self.optimizer = optimizer
        self.scaler = scaler

    def save(self, history: list[dict[str, Any]], keep_best: str | None) -> None:
        """Write the state after an epoch.

        With `keep_best` the weights of the best epoch so far have a file of their own, named by
        the epoch: at every moment the one that the saved history calls the best is there.
        """
        if is_first():
            self._write(history, keep_best)
        wait()

    def _write(self, history: list[dict[str, Any]], keep_best: str | None) -> None:
        best = best_row(history, keep_best)["epoch"] if keep_best is not None else None
        if best == len(history):
            write_tensors(self._best_path(best), self.module.state_dict())
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        plain: dict[str, Any] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    plain[f"{index}.{key}"] = value
        metadata = {"history": json.dumps(history), "optimizer": json.dumps(plain)}
        if self.scaler is not None:
            metadata["scaler"] = json.dumps(self.scaler.state_dict())
        write_tensors(self.path, tensors, metadata)
        self._write_metrics(history)
        if best is not None:
            self._drop_all_but(best)

    def resume(self) -> list[dict[str, Any]]:
        """Load the state of the last whole epoch; an empty history where there is none."""
        if not self.path.is_file():
            return []
        try:
            return self._load()
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.path} does not fit this training ({error}); redo the stage with --fresh"
            ) from None

    def _load(self) -> list[dict[str, Any]]:
        tensors, metadata = read_tensors(self.path)
        history: list[dict[str, Any]] = json.loads(metadata["history"])
        self.module.load_state_dict(part_of(tensors, "module."))
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
        for parameter, own in self.optimizer.state.items():
            for key, value in own.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # In the parameter's memory format, which files do not keep.
                    own[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if self.scaler is not None:
            self.scaler.load_state_dict(json.loads(metadata.get("scaler", "{}")))
        # A kill between the two files leaves a line too few; the checkpoint is what counts.
        self._write_metrics(history)
        return history

    def restore_best(self, history: list[dict[str, Any]], metric: str) -> None:
        """Load the weights of the best epoch."""
        best = best_row(history, metric)["epoch"]
        self.module.load_state_dict(read_tensors(self._best_path(best))[0])
        self._drop_all_but(best)

    def _best_path(self, epoch: int) -> Path:
        return self.directory / f"best-{epoch:04d}.safetensors"

    def _drop_all_but(self, epoch: int) -> None:
        for path in self.directory.glob("best-*.safetensors"):
            if is_first() and path != self._best_path(epoch):
                path.unlink()

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in history)
        write_text(self.directory / "metrics.jsonl", text)
