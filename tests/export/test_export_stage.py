"""The export stage and `python -m export`, on an untrained student and real digits."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml

import export.stage
from compress import deployment
from compress.artifacts import Job
from compress.data import Preprocessing
from compress.deployment import Student
from compress.errors import UserError
from compress.models import build
from compress.recipe import Recipe
from compress.stages import dataset_of
from export.__main__ import main

RECIPE = Recipe.model_validate(
    {
        "data": {"name": "digits", "test_images": 40},
        "teacher": {"model": "resnet20", "train": {"epochs": 1, "lr": 0.1}},
        "student": {"model": "resnet8"},
        "distill": {"method": "kd", "train": {"epochs": 1, "lr": 0.1}},
        "account": {"latency": {"batch_sizes": [1, 3], "rounds": 2}},
    }
)


def student() -> Student:
    """A described network as `load_student` gives it."""
    data = dataset_of(RECIPE)
    size = data.preprocessing.image_size
    description = {
        "input_shape": [3, size, size],
        "class_names": list(data.class_names),
        "preprocessing": data.preprocessing.as_dict(),
        "fingerprint": "0123abcd",
    }
    return Student(build("resnet8", num_classes=10).eval(), description)


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory with one trained student, `kd`."""
    folder = tmp_path / "run"
    (folder / "distill" / "kd").mkdir(parents=True)
    (folder / "distill" / "kd" / "result.json").write_text("{}")
    (folder / "resolved.yaml").write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    loaded = student()

    def load(asked: Path) -> Student:
        assert asked == folder / "distill" / "kd"
        return loaded

    monkeypatch.setattr(deployment, "load_student", load)
    monkeypatch.setattr(export.stage, "load_student", load)
    return folder


def job(run_folder: Path, recipe: Recipe = RECIPE) -> Job:
    """The job that the plan makes of the recipe's export section."""
    (run_folder / "export").mkdir()
    return Job(
        name="export",
        folder=run_folder / "export",
        run_folder=run_folder,
        recipe=recipe,
        arguments={"label": "kd", "students": ["distill/kd"]},
        device=torch.device("cpu"),
        workers=0,
        recipe_fingerprint="89abcdef",
    )


def test_the_stage_writes_a_checked_file_and_its_numbers(run_folder: Path) -> None:
    outcome = export.stage.run(job(run_folder))
    values: dict[str, Any] = outcome.values
    path = run_folder / "export" / "student.onnx"
    assert [p.name for p in path.parent.iterdir()] == ["student.onnx"]
    assert values["file"] == "student.onnx"
    assert values["student"] == "kd"
    assert values["size_bytes"] == path.stat().st_size
    assert values["images"] == 40
    assert values["top1_agreement_percent"] == 100
    assert values["onnx_top1_percent"] == values["torch_top1_percent"]
    assert values["max_abs_difference"] <= values["tolerance"] * values["logit_scale"]
    assert set(outcome.measured["latency"]) == {"1", "3"}
    assert outcome.measured["protocol"]["threads"] == torch.get_num_threads()
    json.dumps([values, outcome.measured], allow_nan=False)


def test_a_file_that_differs_is_refused_and_not_left(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export.stage.export_onnx

    def write_another(network: torch.nn.Module, path: Path, **described: Any) -> None:
        write(build("resnet8", num_classes=10, seed=1), path, **described)

    monkeypatch.setattr(export.stage, "export_onnx", write_another)
    with pytest.raises(UserError, match="differs from the trained network"):
        export.stage.run(job(run_folder))
    assert list((run_folder / "export").iterdir()) == []


def test_preprocessing_in_the_file_rebuilds_the_preprocessing(run_folder: Path) -> None:
    export.stage.run(job(run_folder))
    model = onnx.load(run_folder / "export" / "student.onnx")
    metadata = {p.key: p.value for p in model.metadata_props}
    found = Preprocessing.from_dict(json.loads(metadata["preprocessing"]))
    assert found == dataset_of(RECIPE).preprocessing


def test_the_command_exports_the_main_student(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.onnx"
    assert main([str(run_folder), "--out", str(path)]) == 0
    assert path.is_file()
    assert "same class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "kb"], "did you mean 'kd'?"),
        (["--out", "no/such/folder/x.onnx"], "does not exist"),
        (["--out", "."], "is a folder"),
    ],
)
def test_mistakes_are_one_sentence(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(run_folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err
