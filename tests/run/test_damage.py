"""Damaged files of a run: found, put aside and made again as they were, or refused in words."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress import pipeline
from compress.errors import UserError
from compress.model_files import open_origin
from compress.pipeline import STAGES
from compress.recipe import check_shape
from compress.reporting.collect import load, metrics
from compress.run.directory import RunDirectory
from compress.run.executor import is_finished
from compress.run.skipping import can_skip
from compress.stages.job import Outcome
from compress.storage.files import read_json, read_tensors, write_tensors
from compress.storage.fingerprints import sha256_file
from compress.storage.integrity import UNSEALED_RESULT, find_damaged, record
from compress.storage.results import read_result
from tests.quick import quick_commands

TRAIN = {"epochs": 1, "lr": 0.05, "batch_size": 16}
RECIPE: dict[str, Any] = {
    "data": {
        "name": "digits", "classes": 2, "train_images": 60, "test_images": 20, "validation": 20,
        "augment": "none",
    },
    "teacher": {"model": "resnet8", "train": {"epochs": 3, "lr": 0.02, "batch_size": 12}},
    "student": {"model": "resnet8"},
    "distill": {"method": "kd", "train": {**TRAIN, "epochs": 2}, "compare": ["none"]},
    "fuse": {},
    "account": None,
    "export": {"int8": None},
    "transfer": [
        {"task": "linear_probe", "train": TRAIN, "data": {"name": "digit_scenes", "classes": 2}},
    ],
}  # fmt: skip
# What a training goes on from checks itself when it is read; a finished stage does not read it.
STATE = ("checkpoint", "best-", "description.json")
UNREAD = ("features/", "/seed-0/fields.json")
# Written anew by every command.
ALWAYS = ("log.txt", "report.", "environment.json", "recipe.yaml", "resolved.yaml", "verified.json")


def run(folder: Path) -> int:
    recipe = folder.parent / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    with quick_commands():
        return pipeline.main([str(recipe), "--out", str(folder), "--workers", "0"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    assert run(folder) == 0
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def files(folder: Path) -> list[str]:
    """The files that results are made of."""
    paths = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    left = (p for p in paths if p.parts[0] not in ("superseded", "figures"))
    return [str(p) for p in left if not p.name.startswith((*ALWAYS, ".", "run.json"))]


def content(path: Path) -> Any:
    """What a file says, without times that were measured; None where reading it is refused."""
    if path.name == "metrics.jsonl":
        return _without_times([json.loads(line) for line in path.read_text().splitlines()])
    if path.name in ("result.json", "outcome.json"):
        result = read_json(path)
        return {key: result.get(key) for key in ("fingerprint", "values", "metrics")}
    if _is_state(path) and path.suffix == ".safetensors":
        try:
            tensors, metadata = read_tensors(path)
        except UserError:
            return None
        history = _without_times(json.loads(metadata.get("history", "[]")))
        identity = tuple(
            metadata.get(key) for key in ("role", "seed", "fingerprint", "epoch", "digest")
        )
        return identity, {k: t.tolist() for k, t in tensors.items()}, history
    return path.read_bytes()


def _is_state(path: Path) -> bool:
    return path.name.startswith(STATE) or any(part in path.as_posix() for part in UNREAD)


def _without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def differing(folder: Path, whole: Path) -> list[str]:
    """The files of a run that are not those of the whole one."""
    wrong = []
    for name in files(whole):
        path = folder / name
        if _is_state(path):
            # It may have stayed as it is, where nothing had to be made again: damaged, or of
            # another training, both of which are refused when it is read.
            if path.suffix == ".safetensors" and path.exists():
                own, expected = content(path), content(whole / name)
                if own is not None and own[0] == expected[0] and own != expected:
                    wrong.append(name)
        elif path.name == "metrics.jsonl" and not path.exists():
            # A history is lost, and said to be, only where its checkpoint was damaged as well.
            if _identity(path.parent) == _identity((whole / name).parent):
                wrong.append(name)
        elif not path.exists() or content(path) != content(whole / name):
            wrong.append(name)
    return wrong


def _identity(training: Path) -> Any:
    """The identity in a training's checkpoint; None where that is damaged or missing."""
    path = training / "checkpoint.safetensors"
    own = content(path) if path.exists() else None
    return None if own is None else own[0]


def flip(path: Path, draw: random.Random) -> None:
    with path.open("r+b") as file:
        place = draw.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << draw.randrange(8))]))


def halve(path: Path, draw: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def change_digit(path: Path, draw: random.Random) -> None:
    text = path.read_bytes()
    places = [i for i, byte in enumerate(text) if chr(byte).isdigit()]
    if not places:
        return flip(path, draw)
    place = draw.choice(places)
    other = draw.choice([d for d in b"0123456789" if d != text[place]])
    path.write_bytes(text[:place] + bytes([other]) + text[place + 1 :])
    return None


def swap(path: Path, draw: random.Random) -> None:
    """Exchange it with another file of its name, else of its kind."""
    root = next(p for p in path.parents if (p / "run.json").is_file())
    others = [root / name for name in files(root) if (root / name).suffix == path.suffix]
    others = [p for p in others if p != path and p.read_bytes() != path.read_bytes()]
    same = [p for p in others if p.name == path.name] or others
    if not same:
        return flip(path, draw)
    other = draw.choice(same)
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)
    return None


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip, flip, halve, delete, change_digit, swap,
)  # fmt: skip


def kinds(folder: Path) -> list[list[str]]:
    """The files by kind: the generated pictures and the like are one each."""
    by_kind: dict[tuple[str, str], list[str]] = {}
    for name in files(folder):
        path = Path(name)
        kind = path.suffix if path.suffix == ".png" or path.suffix == ".xml" else path.name
        by_kind.setdefault((path.parts[0], kind), []).append(name)
    return [*by_kind.values()]


def attack(whole: Path, folder: Path, seed: int, several: int) -> tuple[list[str], int]:
    """Damage several files of a copy and run the recipe again: what was done, the exit code."""
    draw = random.Random(seed)
    done = []
    for names in draw.sample(kinds(whole), several):
        name, damage = draw.choice(names), draw.choice(DAMAGES)
        if (folder / name).is_file():
            damage(folder / name, draw)
            done.append(f"{damage.__name__} {name}")
    return done, run(folder)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_made_again_or_refused(
    whole: Path, copied: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    done, code = attack(whole, copied, seed, several=6)
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    if code == 0:
        assert not differing(copied, whole), done
    else:
        assert code == 2 and printed.count("error: ") == 1, done


def flip_in_place(path: Path, place: int = -5) -> None:
    """Change a byte and give the file its times back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(place, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_change_is_found_whenever_it_comes(tmp_path: Path) -> None:
    """Just after the file was read whole, or later with its times given back."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    records = {"weights": record(path)}
    assert find_damaged(tmp_path, records) == {}
    flip_in_place(path)
    assert find_damaged(tmp_path, records) == {"weights": "was changed: its SHA-256 differs"}
    flip_in_place(path)
    os.utime(path, ns=(0, 0))
    with pytest.MonkeyPatch.context() as patch:
        later = time.time_ns() + 10**10
        patch.setattr(time, "time_ns", lambda: later)
        assert find_damaged(tmp_path, records) == {}
    assert (tmp_path / "verified.json").is_file()
    with pytest.MonkeyPatch.context() as patch:  # an unchanged file is not read again
        patch.setattr("compress.storage.integrity.sha256_file", lambda path: "another")
        assert find_damaged(tmp_path, records) == {}
    flip_in_place(path)
    assert find_damaged(tmp_path, records) == {"weights": "was changed: its SHA-256 differs"}
    path.unlink()
    assert find_damaged(tmp_path, records) == {"weights": "is missing"}


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((4,), float(seed))}


def vouched(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    return {"student.safetensors": values.get("sha256"), "metrics.jsonl": None}


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    """A run directory with one finished stage and its checkpoint's history."""
    (tmp_path / "run.json").write_text('{"name": "tiny"}')
    directory, folder = RunDirectory(tmp_path, "tiny"), tmp_path / "distill/kd"
    directory.begin("distill/kd", {"lr": 1})
    write_tensors(folder / "student.safetensors", weights(1))
    write_tensors(folder / "checkpoint.safetensors", weights(1), {"history": '[{"epoch": 1}]'})
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n')
    values = {"sha256": sha256_file(folder / "student.safetensors")}
    directory.finish("distill/kd", {"lr": 1}, Outcome(values, {}), vouched(folder, values))
    return directory


def skipped(directory: RunDirectory) -> bool:
    return can_skip(directory, "distill/kd", {"lr": 1}, vouched)


def test_a_half_written_history_is_written_again_and_stops_nothing(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished.folder / "distill/kd/metrics.jsonl"
    path.write_text('{"epo')
    assert metrics(path) == []
    assert skipped(finished)
    assert path.read_text() == '{"epoch": 1}\n'
    # Without its checkpoint the rows are gone, which is no reason to train again.
    path.write_text('{"epo')
    path.with_name("checkpoint.safetensors").unlink()
    assert skipped(finished)
    assert "its epochs are no longer known" in capsys.readouterr().out
    assert skipped(finished)
    assert capsys.readouterr().out == ""


def test_a_result_of_before_there_were_records_is_taken_once(
    finished: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished.folder / "distill/kd"
    path, student = folder / "result.json", folder / "student.safetensors"
    old = {key: value for key, value in read_json(path).items() if key in UNSEALED_RESULT}
    path.write_text(json.dumps(old))
    assert skipped(finished)
    assert {"student.safetensors", "fields.json"} <= read_json(path)["files"].keys()
    assert {key: read_json(path)[key] for key in old} == old
    # The digest of the weights it always had.
    path.write_text(json.dumps(old))
    flip_in_place(student)
    assert not skipped(finished)
    assert f"{student} was changed" in capsys.readouterr().out
    shelf = finished.folder / "superseded/001-damaged-distill-kd"
    assert sorted(p.name for p in shelf.iterdir()) == ["result.json", "student.safetensors"]


def test_a_changed_digit_of_a_result_is_found_and_shown_nowhere(finished: RunDirectory) -> None:
    path = finished.folder / "distill/kd/result.json"
    result = read_json(path)
    path.write_text(json.dumps({**result, "values": {"sha256": "1", "top1_percent": 99.0}}))
    for read in (load, lambda folder: read_result(folder, "distill/kd")):
        with pytest.raises(UserError, match=r"result\.json is damaged"):
            read(finished.folder)
    assert not skipped(finished)
    assert not path.exists()
    kept = finished.folder / "superseded/001-damaged-distill-kd"
    assert {p.name for p in kept.iterdir()} == {
        "result.json",
        "student.safetensors",
        "metrics.jsonl",
    }


def test_a_damaged_student_is_used_by_no_command(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.__main__ import main

    recipe, _ = check_shape(RECIPE)
    assert recipe is not None and is_finished(recipe, STAGES, copied)
    shipped = read_json(copied / "export/result.json")["values"]["student"]
    path = copied / f"distill/{shipped}/student.safetensors"
    flip_in_place(path)
    with pytest.raises(UserError, match=r"student\.safetensors was changed"):
        is_finished(recipe, STAGES, copied)
    with pytest.raises(UserError, match=r"student\.safetensors was changed"):
        open_origin(str(path.parent))
    assert main([str(copied), "--out", str(copied.parent / "b")]) == 2
    assert "student.safetensors was changed" in capsys.readouterr().err
    assert not (copied.parent / "b").exists()
