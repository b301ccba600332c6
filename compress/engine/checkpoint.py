"""A training's state on disk: written after every epoch, resumed from bit by bit."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from compress.console.messages import log
from compress.distributed.collectives import barrier, is_main_process, on_main_process
from compress.errors import UserError
from compress.storage.files import read_json, read_tensors, write_tensors, write_text
from compress.storage.fingerprints import fingerprint_of
from compress.storage.integrity import put_aside

FILE = "checkpoint.safetensors"
# The epoch before, for as long as the training goes on. It takes the room that writing the next
# checkpoint needs anyway: of the two that are there, the older makes room first.
PREVIOUS = "checkpoint.previous.safetensors"
PHASE_PREFIX = "phase-"  # of the folder of a training before or after the main one
Contents = tuple[dict[str, Tensor], dict[str, str]]  # tensors and metadata of a file
_STATE = ("history", "optimizer", "scaler")
_IDENTITY = ("role", "seed", "fingerprint")


@dataclass(frozen=True)
class Selection:
    """The metric of the rows that chooses an epoch, and its direction."""

    metric: str
    higher_is_better: bool = True

    def best(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """The first of the rows with the best value."""
        choose = max if self.higher_is_better else min
        return choose(history, key=lambda row: row[self.metric])


def checkpoint_path(directory: Path) -> Path:
    """The newest checkpoint of a training."""
    return _newest(directory)


def read_checkpoint(path: Path, identity: Mapping[str, str]) -> Contents:
    """Tensors and metadata of a checkpoint, or of a best epoch's weights, that are whole.

    Args:
        identity: what is known of the training that it must be of: its `role`, `seed` and the
            `fingerprint` of what it depends on. A file written before there were checksums names
            none of them, and is taken as it is.

    Raises:
        UserError: it is damaged, or of another training.
    """
    tensors, metadata = read_tensors(path)
    if not {*metadata} <= {*_STATE, *_IDENTITY, "epoch", "best"}:
        raise UserError(f"{path} is damaged: its header is not what was written")
    for key, expected in identity.items():
        if metadata.get(key, expected) != expected:
            raise UserError(
                f"{path} is of another training: its {key} is {metadata[key]}, not {expected}"
            )
    return tensors, metadata


def trained_state(directory: Path, role: str | None = None) -> dict[str, Tensor]:
    """The state of the trained module: the best epoch's where one was selected, else the last's.

    Raises:
        UserError: there is none, it is damaged or of another training.
    """
    identity = _identity_of(directory, role)
    tensors, metadata = read_checkpoint(_newest(directory), identity)
    path = _best_file(directory, metadata)
    if path is None:
        return part_of(tensors, "module.")
    return _read_best(path, identity)


def read_history(directory: Path, role: str | None = None) -> list[dict[str, Any]]:
    """The rows of the whole epochs that a training has behind it; none without a checkpoint."""
    path = _newest(directory)
    if not path.is_file():
        return []
    metadata = read_checkpoint(path, _identity_of(directory, role))[1]
    history: list[dict[str, Any]] = json.loads(metadata.get("history", "[]"))
    return history


def trained_epoch(directory: Path, history: list[dict[str, Any]]) -> int:
    """The epoch, counted from 1, of the weights that `trained_state` gives."""
    path = _best_file(directory, read_tensors(_newest(directory))[1])
    return len(history) if path is None else _epoch_of(path)


def rewrite_metrics(directory: Path) -> bool:
    """Write `metrics.jsonl` again from the checkpoint; whether there is a whole one."""
    try:
        history = read_history(directory)
    except UserError:
        return False
    if history:
        _write_metrics(directory, history)
    return bool(history)


def _newest(directory: Path) -> Path:
    """The checkpoint; that of the epoch before where a kill came between the two."""
    path = directory / FILE
    return path if path.is_file() or not (directory / PREVIOUS).is_file() else directory / PREVIOUS


def _identity_of(directory: Path, role: str | None) -> dict[str, str]:
    """The identity that a folder's checkpoint must have, as far as the folder tells."""
    known = {} if role is None else {"role": role}
    fields = directory / "fields.json"
    if fields.is_file():
        known["fingerprint"] = fingerprint_of(read_json(fields))
    return known


def _best_file(directory: Path, metadata: Mapping[str, str]) -> Path | None:
    """The file of the best epoch's weights, where the training selects one."""
    if "best" in metadata:
        return directory / _best_name(int(metadata["best"]))
    return next(directory.glob("best-*.safetensors"), None)


def _best_name(epoch: int) -> str:
    return f"best-{epoch:04d}.safetensors"


def _epoch_of(path: Path) -> int:
    return int(path.stem.removeprefix("best-"))


def _read_best(path: Path, identity: Mapping[str, str]) -> dict[str, Tensor]:
    return read_checkpoint(path, {**identity, "epoch": str(_epoch_of(path))})[0]


def _write_metrics(directory: Path, history: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in history)
    write_text(directory / "metrics.jsonl", text)


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
        *,
        role: str = "",
        seed: int = 0,
        fingerprint: str = "",
    ) -> None:
        """`role`, `seed` and `fingerprint` tell trainings apart; each file names them."""
        if is_main_process():
            directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.path = directory / FILE
        self.module = module
        self.optimizer = optimizer
        self.scaler = scaler
        self.identity = dict(zip(_IDENTITY, (role, str(seed), fingerprint), strict=True))

    def save(self, history: list[dict[str, Any]], keep_best: Selection | None) -> None:
        """Write the state after an epoch.

        With `keep_best` the weights of the best epoch so far have a file of their own, named by
        the epoch: at every moment the one that the saved history calls the best is there.
        """
        if is_main_process():
            self._write(history, keep_best)
        barrier()

    def _write(self, history: list[dict[str, Any]], keep_best: Selection | None) -> None:
        best: int | None = keep_best.best(history)["epoch"] if keep_best is not None else None
        if best == len(history):
            metadata = {**self.identity, "epoch": str(best)}
            write_tensors(self._best_path(best), self.module.state_dict(), metadata)
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        plain: dict[str, Any] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                elif value is not None:
                    plain[f"{index}.{key}"] = value
        metadata = {**self.identity, "epoch": str(len(history))}
        metadata |= {"history": json.dumps(history), "optimizer": json.dumps(plain)}
        if best is not None:
            metadata["best"] = str(best)
        if self.scaler is not None:
            metadata["scaler"] = json.dumps(self.scaler.state_dict())
        self._keep_as_previous()
        write_tensors(self.path, tensors, metadata)
        _write_metrics(self.directory, history)
        if keep_best is not None:
            # Those of this checkpoint and of the one before.
            several = [history[:end] for end in (len(history) - 1, len(history)) if end]
            self._drop_all_but(*(keep_best.best(rows)["epoch"] for rows in several))

    def _keep_as_previous(self) -> None:
        """Give the checkpoint that is about to be replaced its other name."""
        self._previous.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without links: there is none before the newest
            os.link(self.path, self._previous)

    def drop_previous(self) -> None:
        """Delete what only an unfinished training needs."""
        if is_main_process():
            self._previous.unlink(missing_ok=True)
        barrier()

    def resume(self, keep_best: Selection | None = None) -> list[dict[str, Any]]:
        """Load the state of the last whole epoch; an empty history where there is none.

        A file that is damaged or of another training is put aside and never loaded.
        """
        checked: dict[Path, Contents] = {}  # in the process that has read it
        path = on_main_process(lambda: self._whole(keep_best, checked))
        if path is None:
            return []
        try:
            return self._load(*(checked.get(path) or read_tensors(path)))
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} does not fit this training ({error}); redo the stage with --fresh"
            ) from None

    def _whole(self, keep_best: Selection | None, checked: dict[Path, Contents]) -> Path | None:
        """The newest checkpoint from which the training can go on; others are put aside.

        Args:
            checked: gets its contents.
        """
        problems: dict[str, str] = {}
        chosen: Path | None = None
        needed: Path | None = None  # the best epoch's weights
        for path in (self.path, self._previous):
            if chosen is None and path.is_file():
                try:
                    contents = read_checkpoint(path, self.identity)
                    needed = self._require(path, contents, keep_best)
                    chosen, checked[path] = path, contents
                except UserError as error:
                    problems[path.name] = str(error)
        if problems:
            # What follows may write files of the same names.
            others = [p.name for p in self.directory.glob("best-*.safetensors") if p != needed]
            place = put_aside(self.directory, [*problems, *others])
            then = "starts anew" if chosen is None else "goes on after the epoch before"
            log(f"  {'; '.join(problems.values())}; it is now in {place}, the training {then}")
        return chosen

    def _require(self, path: Path, contents: Contents, keep_best: Selection | None) -> Path | None:
        """Check a checkpoint and the best epoch's weights that belong to it; returns their file.

        Raises:
            UserError: the training cannot go on from here.
        """
        tensors, metadata = contents
        try:
            history = json.loads(metadata["history"])
            best = keep_best.best(history)["epoch"] if keep_best is not None else None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: its history cannot be read ({error})") from None
        if best is None:
            return None
        weights = self._best_path(best)
        try:
            _read_best(weights, self.identity)
        except UserError:
            if best != len(history):
                raise
            # They are those of the checkpoint itself.
            put_aside(self.directory, [weights.name])
            metadata = {**self.identity, "epoch": str(best)}
            write_tensors(weights, part_of(tensors, "module."), metadata)
        return weights

    def _load(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> list[dict[str, Any]]:
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
        _write_metrics(self.directory, history)
        return history

    def restore_best(self, history: list[dict[str, Any]], selection: Selection) -> None:
        """Load the weights of the best epoch."""
        best = selection.best(history)["epoch"]
        self.module.load_state_dict(_read_best(self._best_path(best), self.identity))
        self._drop_all_but(best)

    @property
    def _previous(self) -> Path:
        return self.directory / PREVIOUS

    def _best_path(self, epoch: int) -> Path:
        return self.directory / _best_name(epoch)

    def _drop_all_but(self, *epochs: int) -> None:
        kept = [self._best_path(epoch) for epoch in epochs]
        for path in self.directory.glob("best-*.safetensors"):
            if is_main_process() and path not in kept:
                path.unlink()
