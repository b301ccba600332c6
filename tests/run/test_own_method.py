"""The shipped recipe with a method of one's own, run by command with few images."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compress import pipeline
from compress.models import user_code
from compress.storage.files import read_json
from export.__main__ import main as export
from tests.quick import quick_commands

PIPELINES = Path(__file__).parents[2] / "pipelines"
FEW = [
    "data.classes=3",
    "data.train_images=120",
    "data.test_images=60",
    "teacher.train.epochs=2",
    "teacher.allow_chance_level=true",
    "distill.train.epochs=2",
    "distill.compare=[none]",
    "account.latency.rounds=1",
    "export.int8=null",
]


def results(out: Path) -> Mapping[str, Any]:
    return {
        path.parent.name: read_json(path)
        for path in (out / "distill").glob("*/result.json")
        if "superseded" not in path.parts
    }


def test_the_recipe_ships_a_student_and_a_changed_file_trains_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pipelines").mkdir()
    for name in ("own_method.py", "own_method.yaml"):
        shutil.copy(PIPELINES / name, tmp_path / "pipelines")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_code, "_trusted", set())
    command = ["pipelines/own_method.yaml", "--out", "run", "--workers", "0"]
    command += [word for one in FEW for word in ("--set", one)]
    with quick_commands():
        assert pipeline.main(command) == 0
    first = results(Path("run"))
    assert {*first} == {"direction", "none"}
    code = user_code.provenance("pipelines/own_method.py:Direction")
    student = read_json(Path("run/distill/direction/student.json"))
    assert student["distillation"]["code"] == code
    assert Path("run/export/bundle/student.onnx").is_file()

    # The student itself ships, and needs no code of the method: nobody is asked to trust it.
    user_code._trusted.clear()
    assert export(["run", "--out", "again"]) == 0

    file = Path("pipelines/own_method.py")
    file.write_text(file.read_text().replace("1 - cosine", "2 - 2 * cosine"))
    capsys.readouterr()
    with quick_commands():
        assert pipeline.main([*command, "--until", "distill"]) == 0
    second = results(Path("run"))
    assert second["none"] == first["none"]
    assert second["direction"]["values"] != first["direction"]["values"]
    assert "method_code" in capsys.readouterr().out
