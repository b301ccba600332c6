"""Trainings after the main one, and networks judged beside what ships, through the stages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress import model_files, pipeline
from compress.engine.checkpoint import Checkpoint
from compress.errors import UserError
from compress.storage.files import read_json, read_tensors

TRAIN = {"epochs": 2, "lr": 0.05, "batch_size": 16}
RECIPE: dict[str, Any] = {
    "data": {
        "name": "digits", "classes": 3, "train_images": 120, "test_images": 60, "augment": "crop",
        "validation": 12,
    },
    "teacher": {"model": "resnet8", "train": {"epochs": 6, "lr": 0.05, "batch_size": 8}},
    "student": {"model": "resnet8"},
    "distill": {
        "method": {"name": "simkd_sequential", "classifier_epochs": 3, "classifier_lr": 0.1},
        "train": TRAIN,
        "protocol": "simkd",
        "compare": [
            {"name": "simkd_joint", "alpha": 0.5},
            {"name": "simkd_joint", "alpha": 0.5, "ships": "own_classifier", "label": "own"},
            "simkd_plus",
        ],
    },
    "account": {"latency": {"batch_sizes": [1], "rounds": 1, "warmup": 1}},
    "export": None,
}  # fmt: skip
SEQUENTIAL, PHASE = "distill/simkd_sequential", "phase-classifier"


def _run(folder: Path, *options: str) -> int:
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return pipeline.main([str(recipe), "--out", str(folder), "--workers", "0", *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases") / "run"
    assert _run(folder) == 0
    return folder


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _values(run: Path, stage: str) -> dict[str, Any]:
    values: dict[str, Any] = read_json(run / stage / "result.json")["values"]
    return values


def test_the_phase_after_is_judged_by_what_ships(done: Path) -> None:
    values = _values(done, SEQUENTIAL)
    main, after = _rows(done / SEQUENTIAL), _rows(done / SEQUENTIAL / PHASE)
    assert (len(main), len(after)) == (2, 3)
    assert values["top1_percent"] in [row["top1_percent"] for row in after]
    assert values["epochs"] == 3
    assert values["main_training"]["epochs"] == 2
    assert values["main_training"]["top1_percent"] in [row["top1_percent"] for row in main]
    # The recipe's schedule, over the phase's own epochs and from its own learning rate.
    assert (after[0]["lr"], after[-1]["lr"]) == (0.1, pytest.approx(1e-4))


def test_the_phase_after_leaves_the_encoder_as_the_main_training_had_it(done: Path) -> None:
    state, _ = read_tensors(done / SEQUENTIAL / "student.safetensors")
    best = next((done / SEQUENTIAL).glob("best-*.safetensors"))
    aligned, _ = read_tensors(best)
    for name, value in state.items():
        same = torch.equal(value, aligned[f"student.{name}"])
        assert same != name.startswith("fc."), name


def test_what_ships_is_proven_and_counted_as_the_bare_student(done: Path) -> None:
    rows = {row["label"]: row for row in _values(done, "fuse")["students"]}
    assert rows["simkd_sequential"]["fused_max_abs"] == 0
    costs = {row["label"]: row for row in _values(done, "account")["networks"]}
    bare = costs["student"]["parameters"]
    assert costs["simkd_sequential"]["parameters"] == costs["own"]["parameters"] == bare
    assert costs["simkd_joint"]["parameters"] > bare
    assert rows["simkd_plus"]["fused_max_abs"] < 1e-5
    assert rows["simkd_plus"]["not_folded"] == []
    # Student and teacher are alike here: what is dropped is replaced by the same.
    reused = costs["simkd_plus"]
    assert reused["parameters"] == bare + reused["projector_parameters"]
    assert model_files.load_student(done / SEQUENTIAL).description["method"] is None


def test_the_other_classifier_stands_beside_the_one_that_ships(done: Path) -> None:
    for label, other in (("simkd_joint", "own_classifier"), ("own", "teacher_classifier")):
        stage = f"distill/{label}"
        values, rows = _values(done, stage), _rows(done / stage)
        key = f"top1_percent/{other}"
        assert all(key in row and f"validation_{key}" in row for row in rows)
        assert values[key] == rows[values["selected_epoch"] - 1][key]
        assert values[f"best_on_test_{key}"] == max(row[key] for row in rows)


def test_the_report_names_what_else_was_judged(done: Path) -> None:
    report = (done / "report.md").read_text(encoding="utf-8")
    for stage, key in (("simkd_joint", "own_classifier"), ("own", "teacher_classifier")):
        value = _values(done, f"distill/{stage}")[f"top1_percent/{key}"]
        assert f"{key} {value:.2f}" in report
    before = _values(done, SEQUENTIAL)["main_training"]["top1_percent"]
    assert f"main training {before:.2f}" in report


class _Stopped(BaseException):
    pass


def test_a_phase_after_that_was_stopped_continues_bit_for_bit(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Checkpoint.save

    def stop_after(count: int, *, phase: bool) -> None:
        def saved(self: Checkpoint, history: list[dict[str, Any]], *rest: Any) -> None:
            save(self, history, *rest)
            if (self.directory.name == PHASE) == phase and len(history) == count:
                raise _Stopped

        monkeypatch.setattr(Checkpoint, "save", saved)

    run = tmp_path / "run"
    assert _run(run, "--until", "teacher") == 0
    for count, phase in ((1, False), (2, True)):
        stop_after(count, phase=phase)
        with pytest.raises(_Stopped):
            _run(run, "--until", SEQUENTIAL)
        unfinished = run / SEQUENTIAL
        if phase:
            description = model_files.load_unfinished(unfinished).description
            assert description["interrupted"]["after_epoch"] == 2
        else:
            with pytest.raises(UserError, match="phase-classifier holds no whole epoch"):
                model_files.load_unfinished(unfinished)
    monkeypatch.setattr(Checkpoint, "save", save)
    assert _run(run, "--until", SEQUENTIAL) == 0
    for file in (
        "student.safetensors",
        "checkpoint.safetensors",
        f"{PHASE}/checkpoint.safetensors",
    ):
        once, resumed = (read_tensors(r / SEQUENTIAL / file)[0] for r in (done, run))
        assert once.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in once.items()), file
