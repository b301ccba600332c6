"""Networks that cannot serve are refused before anything runs, each in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from compress import model_files, models
from compress.recipe import Recipe
from compress.run.preview import list_teacher_notes
from compress.run.probe import probe
from compress.stages import dataset_of
from compress.storage.files import read_json, write_json
from compress.taps import discover

CODE = """
from tests.models.test_forward import Auxiliary, ChangesItsInput, Small

class Choosing(Small):
    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)
"""
SHAPE = (3, 16, 16)


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(CODE)
    return path


def recipe(teacher: dict[str, Any], student: str = "resnet8", **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "digits", "test_images": 100},
            "teacher": teacher,
            "student": {"model": student},
            "distill": {"method": "kd", "train": {"epochs": 1, "lr": 0.1}},
            **more,
        }
    )


TRAIN = {"train": {"epochs": 1, "lr": 0.1}}


@pytest.mark.parametrize("name", ["Auxiliary", "ChangesItsInput"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_forward_that_cannot_serve_is_refused(nets: Path, name: str, role: str) -> None:
    names = {"teacher": "resnet14", "student": "resnet8", role: f"{nets}:{name}"}
    problems = probe(recipe({"model": names["teacher"], **TRAIN}, names["student"]))[1]
    said = "a tuple in training mode" if name == "Auxiliary" else "changes its input in place"
    assert len(problems) == 1
    assert problems[0].startswith(f"{role}: ") and said in problems[0]


def test_a_teacher_that_does_not_learn_may_have_auxiliary_heads(nets: Path) -> None:
    teacher = {"model": f"{nets}:Auxiliary", "checkpoint": "some.pth"}
    shapes, problems = probe(recipe(teacher))
    assert shapes is not None and not problems


def test_an_untraceable_teacher_is_refused_as_int8_alone(nets: Path) -> None:
    teacher = {"model": f"{nets}:Choosing", **TRAIN}
    assert probe(recipe(teacher))[1] == []
    problems = probe(recipe(teacher, engine={"teacher": "int8"}))[1]
    assert len(problems) == 1
    assert "cannot be made int8" in problems[0]
    assert probe(recipe({"model": "resnet14", **TRAIN}, engine={"teacher": "int8"}))[1] == []


def test_a_teacher_of_other_images_is_told(tmp_path: Path) -> None:
    given = recipe({"checkpoint": str(tmp_path / "teacher.safetensors")})
    data = dataset_of(given)
    network = models.build("resnet14", num_classes=10)
    specs = discover(network, SHAPE, "resnet14")
    architecture = {"name": "resnet14", "arguments": {}}
    description = model_files.describe(
        architecture, specs, data.class_names, data.preprocessing, metrics={}, fingerprint="f"
    )
    model_files.save(tmp_path, "teacher", network, description | {"method": None})
    assert list_teacher_notes(given) == []
    content = read_json(tmp_path / "teacher.json")
    content["preprocessing"]["mean"] = [0.1, 0.2, 0.9]
    write_json(tmp_path / "teacher.json", content)
    notes = list_teacher_notes(given)
    assert len(notes) == 1
    assert "mean [0.1, 0.2, 0.9]" in notes[0] and "mean [0.305, 0.305, 0.305]" in notes[0]
    assert "std" not in notes[0]
    assert list_teacher_notes(recipe({"model": "resnet14", **TRAIN})) == []
