"""Checkpoints that are damaged or of another training are never continued."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compress.engine import Checkpoint, Selection, TrainSettings, train, trained_state
from compress.errors import UserError
from compress.storage.files import read_tensors
from tests.engine.test_loop import CPU, Data, Problem

METRIC = "validation_top1_percent"


class Stopped(Exception):
    """Ends a training as a kill does."""


def learn(
    folder: Path, *, seed: int = 0, epochs: int = 4, stop: int = 0, **options: Any
) -> Problem:
    """Train up to `epochs`, or until the checkpoint of epoch `stop` is written."""
    problem = Problem()
    save = Checkpoint.save

    def save_and_stop(self: Checkpoint, history: list[dict[str, Any]], best: str | None) -> None:
        save(self, history, best)
        if len(history) == stop:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_stop)
        with suppress(Stopped):
            settings = TrainSettings(epochs=epochs, lr=0.05)
            train(problem, Data(), settings, directory=folder, role="test", seed=seed,
                  device=CPU, **options)  # fmt: skip
    return problem


def flip(path: Path, place: int = -5) -> None:
    """Change a byte of the tensors' data in place."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("damage", ["data", "history", "half", "both"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = learn(tmp_path / "whole")
    folder = tmp_path / "hurt"
    learn(folder, stop=3)
    path = folder / "checkpoint.safetensors"
    before = folder / "checkpoint.previous.safetensors"
    if damage == "history":
        path.write_bytes(path.read_bytes().replace(b'\\"epoch\\": 2', b'\\"epoch\\": 4'))
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        flip(path)
    if damage == "both":
        flip(before)
    hurt = path.read_bytes()
    assert same(learn(folder), expected)
    printed = capsys.readouterr().out
    assert f"{path} is damaged" in printed
    assert ("starts anew" if damage == "both" else "goes on after the epoch before") in printed
    kept = folder / "superseded/001-damaged/checkpoint.safetensors"
    assert kept.read_bytes() == hurt
    assert not before.exists(), "a training that is done keeps one checkpoint"


def test_a_checkpoint_of_another_training_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = learn(tmp_path / "whole", fingerprint="a")
    for number, other in enumerate(({"seed": 1, "fingerprint": "a"}, {"fingerprint": "b"})):
        folder, foreign = tmp_path / str(number), tmp_path / f"foreign-{number}"
        learn(foreign, stop=2, **other)
        folder.mkdir()
        path = folder / "checkpoint.safetensors"
        path.write_bytes((foreign / path.name).read_bytes())
        assert same(learn(folder, fingerprint="a"), expected)
        assert f"{path} is of another training" in capsys.readouterr().out
        assert (folder / "superseded/001-damaged" / path.name).is_file()


def test_damaged_weights_of_the_best_epoch_are_not_taken(tmp_path: Path) -> None:
    """Where the best epoch is the last one they are in the checkpoint, else they are lost."""

    def judged(folder: Path, values: tuple[float, ...], first: int = 0, **options: Any) -> Problem:
        rest = iter(values[first:])
        return learn(
            folder, evaluate=lambda: {METRIC: next(rest)}, keep_best=Selection(METRIC), **options
        )

    for number, values in enumerate(((1.0, 2.0, 3.0, 0.0), (1.0, 3.0, 2.0, 0.0))):
        expected = judged(tmp_path / f"whole-{number}", values)
        folder = tmp_path / f"hurt-{number}"
        judged(folder, values, stop=3)
        best = folder / f"best-000{3 - number}.safetensors"
        flip(best)
        # The epoch before the last has its best epoch's weights too, unless they are these.
        first = 3 if number == 0 else 0
        if number:
            with pytest.raises(UserError, match=rf"{best.name} is damaged"):
                trained_state(folder)
        assert same(judged(folder, values, first=first), expected)
        assert [p.name for p in folder.glob("best-*")] == [best.name]
        assert (folder / "superseded/001-damaged" / best.name).is_file()


def test_a_checkpoint_of_before_there_were_checksums_is_continued(tmp_path: Path) -> None:
    expected = learn(tmp_path / "whole")
    learn(tmp_path / "old", stop=2)
    path = tmp_path / "old/checkpoint.safetensors"
    (tmp_path / "old/checkpoint.previous.safetensors").unlink()
    tensors, metadata = read_tensors(path)
    save_file(tensors, path, metadata={key: metadata[key] for key in ("history", "optimizer")})
    assert len(trained_state(tmp_path / "old")) == len(expected.state_dict())
    resumed = learn(tmp_path / "old")
    assert same(resumed, expected)
    assert not (tmp_path / "old/superseded").exists()


def test_a_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(tmp_path, stop=2)
    files: list[str] = []

    def read(path: Path) -> Any:
        files.append(path.name)
        return read_tensors(path)

    monkeypatch.setattr("compress.engine.checkpoint.read_tensors", read)
    learn(tmp_path, epochs=3)
    assert files == ["checkpoint.safetensors"]
