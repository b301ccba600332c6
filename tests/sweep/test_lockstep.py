"""Students trained side by side: each bit for bit as alone, the teacher asked once per batch."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress import pipeline
from compress.engine import Position, drain, in_lockstep
from compress.errors import UserError
from compress.storage.files import read_tensors
from compress.sweep import command, lockstep
from compress.teacher import inference
from tests.quick import quick_commands

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "classes": 3, "train_images": 64, "test_images": 30, "seed": 3},
    "teacher": {"model": "resnet8", "train": {"epochs": 6, "lr": 0.02, "batch_size": 16}},
    "student": {"model": "resnet8"},
    "distill": {
        "method": "kd",
        "compare": ["none", "simkd", {"name": "crd", "negatives": 8}],
        "train": {"epochs": 2, "lr": 0.05, "batch_size": 16},
    },
    "engine": {"compile": "never", "share_teacher": True},
    "fuse": None,
    "account": None,
    "export": None,
}


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def run(path: Path, out: Path, *options: str) -> int:
    with quick_commands():
        return pipeline.main([str(path), "--out", str(out), "--workers", "0", *options])


def students(out: Path) -> dict[str, Path]:
    return {p.parent.name: p for p in sorted(out.glob("distill/*/student.safetensors"))}


def assert_equal(first: Path, second: Path) -> None:
    """The same students with the same history, but for the time that it took."""
    assert students(first).keys() == students(second).keys()
    for name, path in students(first).items():
        one, other = read_tensors(path)[0], read_tensors(students(second)[name])[0]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one), name
        rows = [
            [json.loads(line) | {"seconds": 0} for line in lines]
            for lines in (
                (p.parent / "metrics.jsonl").read_text().splitlines()
                for p in (path, students(second)[name])
            )
        ]
        assert rows[0] == rows[1], name


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("separate")
    changes = {"engine": {"compile": "never"}, "trials": 2}
    assert run(write(folder / "small.yaml", **changes), folder / "run") == 0
    return folder / "run"


def test_each_student_is_bit_equal_to_its_own_run(separate: Path, tmp_path: Path) -> None:
    # Two trials in the same order of data share, too.
    assert run(write(tmp_path / "small.yaml", trials=2), tmp_path / "run") == 0
    assert len(students(tmp_path / "run")) == 8
    assert_equal(separate, tmp_path / "run")


def test_the_teacher_sees_each_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    shows = inference.FastTeacher.__call__

    def counted(self: inference.FastTeacher, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return shows(self, images)

    monkeypatch.setattr(inference.FastTeacher, "__call__", counted)
    assert run(write(tmp_path / "small.yaml"), tmp_path / "run") == 0
    assert sum(seen) == 2 * 64, "three of the four students read the teacher, in two epochs"


def test_an_interrupted_student_resumes_alone_or_with_others(
    separate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path / "small.yaml")
    shows, seen = inference.FastTeacher.__call__, []

    def interrupted(self: inference.FastTeacher, images: torch.Tensor) -> Any:
        seen.append(1)
        if len(seen) == 6:  # in the second epoch
            raise KeyboardInterrupt
        return shows(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(inference.FastTeacher, "__call__", interrupted)
        assert run(recipe, tmp_path / "run") == 130
    assert not students(tmp_path / "run")
    alone = write(tmp_path / "alone" / "small.yaml", engine={"compile": "never"})
    assert run(alone, tmp_path / "run", "--until", "distill/kd") == 0
    assert [*students(tmp_path / "run")] == ["kd"]
    assert run(recipe, tmp_path / "run") == 0
    for name, path in students(tmp_path / "run").items():
        mine, other = read_tensors(path)[0], read_tensors(students(separate)[name])[0]
        assert all(torch.equal(mine[k], other[k]) for k in mine), name


def test_runs_of_a_sweep_share_their_teacher(tmp_path: Path, forked_runs: None) -> None:
    table = {
        "title": "Shared",
        "recipe": {k: v for k, v in RECIPE.items() if k not in ("teacher", "student", "distill")}
        | {"distill": {"protocol": "crd", "train": RECIPE["distill"]["train"]}},
        "teachers": {"big": RECIPE["teacher"]},
        "students": {"thin": {"model": "resnet8"}, "wide": {"model": "resnet14"}},
        "pairs": [{"teacher": "big", "student": "thin"}, {"teacher": "big", "student": "wide"}],
        "methods": ["simkd"],
    }
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(table))
    assert command.main([str(path), "--out", str(tmp_path / "shared")]) == 0
    table["recipe"]["engine"] = {"compile": "never"}  # type: ignore[index]
    path.write_text(yaml.safe_dump(table))
    assert command.main([str(path), "--out", str(tmp_path / "apart")]) == 0
    for pair in ("big-thin", "big-wide"):
        first, second = (tmp_path / out / "cells" / pair / "simkd" for out in ("shared", "apart"))
        assert_equal(first, second)


def test_a_run_that_fails_leaves_the_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.yaml")
    bad = write(tmp_path / "bad.yaml", student={"model": "resnet7"})
    assert lockstep.main([str(bad), str(good), "--workers", "0"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert f"error: {bad}: {bad} has 1 problem" in printed
    assert len(students(tmp_path / "good")) == 4


def _counting(name: str, first: int, last: int, seen: list[str]) -> Generator[Position, None, str]:
    for epoch in range(first, last):
        yield 0, epoch, 0
        seen.append(f"{name}{epoch} {torch.rand(()).item():.6f}")
        if name == "bad":
            raise UserError("broken")
    return name


def test_who_is_behind_goes_first_and_draws_its_own_numbers() -> None:
    def numbers(name: str, first: int) -> list[str]:
        alone: list[str] = []
        torch.manual_seed(7)
        drain(_counting(name, first, 4, alone))
        return alone

    seen: list[str] = []
    torch.manual_seed(7)
    before = torch.get_rng_state()
    ended = drain(in_lockstep([_counting("a", 2, 4, seen), _counting("b", 0, 4, seen)]))
    assert ended == ["a", "b"]
    assert [s.split()[0] for s in seen] == ["b0", "b1", "a2", "b2", "a3", "b3"]
    for name, first in (("a", 2), ("b", 0)):
        assert [s for s in seen if s[0] == name] == numbers(name, first)
    torch.set_rng_state(before)
    drain(in_lockstep([_counting("a", 0, 2, [])]))
    assert torch.equal(before, torch.get_rng_state()), "nobody else's numbers move"


def test_the_error_of_one_is_raised_when_the_others_are_done() -> None:
    seen: list[str] = []
    with pytest.raises(UserError, match="broken"):
        drain(in_lockstep([_counting("bad", 0, 4, seen), _counting("good", 0, 4, seen)]))
    assert len([s for s in seen if s.startswith("good")]) == 4
