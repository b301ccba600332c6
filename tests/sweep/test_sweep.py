"""Sweeps: cells are ordinary recipes, trained once, and the table says what they found."""

import argparse
import csv
import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml

from compress.pipeline import STAGES
from compress.recipe import check_shape
from compress.run.checks import check_recipe
from compress.sweep import command, execution
from compress.sweep.processes import Command, Ended
from compress.sweep.runs import SweepRuns
from compress.sweep.schema import Status, Sweep, cells, check_sweep, recipe_of

SMALL: dict[str, Any] = {
    "title": "Small: a test",
    "recipe": {
        "data": {"name": "digits", "classes": 3, "train_images": 120, "test_images": 60},
        "teacher": {"train": {"epochs": 5, "lr": 0.05, "batch_size": 16}},
        "distill": {"protocol": "crd", "train": {"epochs": 1, "lr": 0.05}},
        "trials": 2,
        "fuse": None,
        "account": None,
        "export": None,
    },
    "teachers": {"big": {"model": "resnet14"}},
    "students": {"thin": {"model": "resnet8", "train": {"lr": 0.02}}, "wide": {"model": "vgg8"}},
    "pairs": [{"teacher": "big", "student": "thin"}],
    "methods": ["kd", {"name": "kd", "label": "hot", "temperature": 8.0, "trials": 1}],
    "paper": {"kd": [[75.0, 0.5]]},
}

DONE = Ended(0, "")


def small(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(SMALL)), **changes}


def checked(raw: dict[str, Any]) -> Sweep:
    sweep, problems = check_sweep(raw)
    assert sweep is not None, problems
    return sweep


def test_a_cell_is_an_ordinary_recipe() -> None:
    sweep = checked(small())
    hot = cells(sweep)[1]
    assert hot.name == "big-thin/hot"
    recipe, problems = check_shape(
        recipe_of(sweep, hot.pair, [hot.method], {"big": "t.safetensors"})
    )
    assert recipe is not None, problems
    assert recipe.distill.method.name == "kd"
    assert recipe.distill.method.arguments == {"temperature": 8.0}
    assert recipe.trials == 1
    assert recipe.distill.train.lr == 0.02, "the student's own learning rate"
    assert recipe.teacher[0].checkpoint == "t.safetensors"
    assert sweep.recipe["distill"]["train"]["lr"] == 0.05, "the shared part is untouched"


def test_a_pair_of_several_teachers_trains_each_once_and_reads_them_all(tmp_path: Path) -> None:
    own = {"image_size": 24}
    teachers = {
        "one": {"model": "resnet14", "seed": 1},
        "two": {"model": "resnet14", "seed": 2},
        "other": {"model": "resnet20", "preprocessing": own},
    }
    pairs = [
        {"teacher": ["one", "two"], "student": "thin"},
        {"teacher": ["two", "other"], "student": "thin", "label": "mixed"},
    ]
    sweep = checked(small(teachers=teachers, pairs=pairs, methods=["kd", "ca_mkd"], paper={}))
    assert [cell.name for cell in cells(sweep)] == [
        "one+two-thin/kd",
        "one+two-thin/ca_mkd",
        "mixed-thin/kd",
        "mixed-thin/ca_mkd",
    ]
    runs = SweepRuns(sweep, tmp_path, Status(), [])
    assert [run.name for run in runs.teachers()] == ["teacher one", "teacher other", "teacher two"]
    for run in runs.teachers():
        recipe, problems = check_shape(run.recipe)
        assert recipe is not None, problems
        assert len(recipe.teacher) == 1
        assert recipe.teacher[0].seed == teachers[run.name.split()[1]].get("seed")
        assert check_recipe(recipe, STAGES) == [], "no method that needs two teachers"
    recipe, problems = check_shape(runs.student(cells(sweep)[3]).recipe)
    assert recipe is not None, problems
    files = [
        f"{tmp_path}/teachers/{label}/teacher/0/teacher.safetensors" for label in ("two", "other")
    ]
    assert [part.checkpoint for part in recipe.teacher] == files
    assert [part.preprocessing for part in recipe.teacher] == [None, "own"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"pairs": [{"teacher": ["big", "bog"], "student": "thin"}]},
            "pairs.0.teacher: 'bog' is not in teachers (big); did you mean 'big'?",
        ),
        ({"pairs": [{"teacher": "bog", "student": "thin"}]}, "did you mean 'big'?"),
        ({"methods": ["kd", "kd"]}, "methods: 'kd' stands twice"),
        ({"paper": {"kd": [1.0, 2.0]}}, "paper.kd: one value per pair (1), got 2"),
        ({"paper": {"at": [1.0]}}, "paper.at: no such row"),
        ({"statistic": "median"}, "statistic: "),
        ({"metods": []}, "did you mean 'methods'?"),
    ],
)
def test_a_mistake_in_the_shape_is_named(changes: dict[str, Any], expected: str) -> None:
    sweep, problems = check_sweep(small(**changes))
    assert sweep is None
    assert any(expected in problem for problem in problems), problems


def _write(folder: Path, raw: dict[str, Any]) -> Path:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return file


def test_a_mistake_in_a_cell_has_its_path_in_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _write(tmp_path, small(methods=["none", {"name": "kd", "temprature": 2}]))
    assert command.main([str(file), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().out
    assert "methods.1.temprature: unknown key" in printed
    assert "temperature" in printed
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_apply_is_a_cell_without_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [{"name": "simkd", "label": "impossible", "reduction": 1000}]
    file = _write(tmp_path, small(methods=methods, paper={}))
    out = tmp_path / "out"
    assert command.main([str(file), "--out", str(out), "--table"]) == 0
    assert "big-thin/impossible: not applicable: reduction is" in capsys.readouterr().out
    (_, row) = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert row["not_applicable"].startswith("reduction is")
    assert "| n/a |" in (out / "table.md").read_text(encoding="utf-8")


def test_a_sweep_with_code_of_its_own_lets_no_other_run(tmp_path: Path) -> None:
    own = f"{tmp_path}/own.py:net"
    sweep = checked(small(students={"thin": {"model": own}}))
    options = argparse.Namespace(trust_code=False, device=None)
    assert execution._options(sweep, options) == [f"--trust-name={own}"]
    options.trust_code = True
    assert execution._options(sweep, options) == ["--trust-code"]


def test_trained_once_then_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forked_runs: None
) -> None:
    file, out = _write(tmp_path, small()), tmp_path / "out"
    arguments = [str(file), "--out", str(out), "--jobs", "2"]
    assert command.main(arguments) == 0
    first = capsys.readouterr().out
    assert first.count(": starts") == 3, "one teacher, two cells"
    rows = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert [row["trials"] for row in rows] == [1, 2, 1]
    kd = rows[1]
    assert kd["paper_percent"] == 75.0
    assert kd["standard_deviation"] is not None
    assert set(kd["terms"][0]) == {"initial", "start", "end"}
    with (out / "table.csv").open(encoding="utf-8") as table:
        assert [row["method"] for row in csv.DictReader(table)] == ["teacher", "kd", "hot"]
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "75.00 ± 0.50" in text
    assert "Protocol crd" in text
    assert "big → thin" in (out / "table.html").read_text(encoding="utf-8")
    assert command.main(arguments) == 0
    assert ": starts" not in capsys.readouterr().out
    _changes_are_noticed(file, out)
    # One more row trains that row alone.
    _write(tmp_path, small(methods=[*SMALL["methods"], {"name": "none", "trials": 1}]))
    assert command.main(arguments) == 0
    assert capsys.readouterr().out.count(": starts") == 1


def test_a_sweep_without_labels_is_about_neighbours(tmp_path: Path, forked_runs: None) -> None:
    data = {"name": "digits", "labels": False, "train_images": 120, "test_images": 60}
    train = {"epochs": 1, "lr": 0.03, "batch_size": 20}
    moco = {"model": "resnet14", "ssl": {"name": "moco", "queue_size": 32}, "train": train}
    raw = small(
        statistic="knn",
        recipe={**SMALL["recipe"], "data": data, "teacher": {}, "trials": 1},
        teachers={"big": moco},
        methods=[{"name": "seed", "queue_size": 32}, {"name": "dlkd", "labels": False}],
        paper={"seed": [43.4]},
    )
    file, out = _write(tmp_path, raw), tmp_path / "out"
    assert command.main([str(file), "--out", str(out), "--jobs", "2"]) == 0
    rows = _table(file, out)
    assert [row["method"] for row in rows] == ["teacher", "seed", "dlkd"]
    assert all(0 < row["knn_top1_percent"] <= 100 for row in rows)
    text = (out / "table.md").read_text(encoding="utf-8")
    assert "k-NN top-1 accuracy" in text and "43.40" in text
    _write(tmp_path, {**raw, "statistic": "mutual_knn"})
    rows = _table(file, out)
    assert rows[0]["mutual_knn_percent"] is None, "a teacher has nothing to compare with"
    assert rows[1]["mutual_knn_percent"] > 0


@pytest.mark.parametrize(
    ("labels", "statistic", "known"),
    [(True, "knn", "last_epoch, best_on_test"), (False, "last_epoch", "knn, mutual_knn")],
)
def test_a_statistic_that_the_data_cannot_give_is_named(
    labels: bool, statistic: str, known: str
) -> None:
    data = {"name": "digits", "labels": labels}
    raw = small(recipe={**SMALL["recipe"], "data": data}, statistic=statistic)
    _, problems = check_sweep(raw)
    said = f"statistic: recipe.data.labels is {str(labels).lower()}, so it is one of {known}"
    assert problems == [said]


def _table(file: Path, out: Path, *, code: int = 0) -> list[dict[str, Any]]:
    """The table of what a sweep's directory holds for the recipe as it is now."""
    assert command.main([str(file), "--out", str(out), "--table"]) == code
    rows: list[dict[str, Any]] = json.loads((out / "table.json").read_text(encoding="utf-8"))
    return rows


def _changes_are_noticed(file: Path, out: Path) -> None:
    # Numbers of another recipe are not shown as this one's.
    raw = small()
    raw["methods"][0] = {"name": "kd", "weights": {"ce": 0.5}}
    _write(file.parent, raw)
    assert [row["trials"] for row in _table(file, out)] == [1, 0, 1]
    raw = small()
    raw["recipe"]["teacher"]["train"]["epochs"] = 6
    _write(file.parent, raw)
    assert [row["trials"] for row in _table(file, out)] == [0, 0, 0]
    # Fewer trials are fewer.
    _write(file.parent, small(methods=[{"name": "kd", "trials": 1}]))
    assert [row["trials"] for row in _table(file, out)] == [1, 1]
    # A damaged cell is told, the others stay.
    _write(file.parent, small())
    result = out / "cells/big-thin/kd/distill/kd/result.json"
    whole = result.read_text(encoding="utf-8")
    result.write_text('{"broken', encoding="utf-8")
    rows = _table(file, out, code=1)
    assert "is damaged" in rows[1]["failed"]
    assert [row["trials"] for row in rows] == [1, 0, 1]
    result.write_text(whole, encoding="utf-8")


def test_a_failed_cell_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Command, stopped: Event, *, threads: int) -> Ended:
        return Ended(2, "error: the disk is full") if command.folders[0].name == "kd" else DONE

    monkeypatch.setattr(execution, "run_process", run)
    out = tmp_path / "out"
    assert command.main([str(_write(tmp_path, small())), "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "error: big-thin/kd: the disk is full" in printed
    assert "hot" not in printed.partition("error")[2]
    assert "failed" in (out / "table.md").read_text(encoding="utf-8")


def test_a_teacher_is_trained_with_a_method_that_fits_its_pair(tmp_path: Path) -> None:
    methods = [{"name": "simkd", "reduction": 1000}, "none"]
    sweep = checked(small(methods=methods, paper={}))
    plan = SweepRuns(sweep, tmp_path, Status(refused={"big-thin/simkd": "it cannot"}), ())
    (teacher,) = plan.teachers()
    assert teacher.recipe["distill"]["method"]["name"] == "none"
    assert [cell.name for cell in plan.cells] == ["big-thin/none"]


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("teacher", ["resnet14"], "recipe.teacher: expected a mapping, got ['resnet14']"),
        ("student", "resnet8", "recipe.student: expected a mapping"),
        ("distill", [1], "recipe.distill: expected a mapping"),
        ("distill", {"train": 5}, "recipe.distill.train: expected a mapping, got 5"),
        ("distill", {"method": "kd"}, "recipe.distill.method: stands in methods"),
    ],
)
def test_a_wrong_part_is_no_traceback(place: str, value: object, expected: str) -> None:
    raw = small()
    raw["recipe"][place] = value
    sweep, problems = check_sweep(raw)
    assert sweep is None
    assert any(problem.startswith(expected) for problem in problems), problems
