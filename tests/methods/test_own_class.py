"""Methods of a user's own: found by file and class, trusted, digested, and checked by command."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from compress import model_files
from compress.errors import UserError
from compress.method_checks.command import main
from compress.methods import METHODS, find_method
from compress.models import user_code
from compress.recipe import Recipe
from compress.run.fields import step_fields
from compress.run.part_checks import check_parts, check_relations
from compress.run.plan import make_plan
from compress.run.probe import probe
from compress.run.stages import StageTable
from compress.storage.files import read_json, write_json
from tests.methods import building

CODE = """
from torch import nn
from compress.methods import Method
from compress.methods.contract import pooled, pooled_widths

class Mine(Method):
    student_taps = teacher_taps = ("pooled",)

    def __init__(self, context, *, width: int = 4) -> None:
        super().__init__(context)
        own, known = pooled_widths(context)
        self.own, self.known = nn.Linear(own, width), nn.Linear(known, width)

    def forward(self, student, teachers, batch):
        apart = self.own(pooled(student)) - self.known(pooled(teachers[0]))
        return {"apart": TERM}

class Ships(Mine):
    def deploy(self, student):
        return nn.Sequential(student, nn.Identity())

class Late(Mine):
    def __init__(self, context):
        super().__init__(context)
        raise KeyError("nothing")

def function(context):
    return None
"""
GOOD = "apart.float().square().mean()"


@pytest.fixture(autouse=True)
def _forget_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "_trusted", set())


def write(folder: Path, term: str = GOOD) -> Path:
    path = folder / "my methods.py"
    path.write_text(CODE.replace("TERM", term))
    return path


def recipe(method: Any, **beside: Any) -> Recipe:
    train = {"epochs": 1, "lr": 0.1}
    return Recipe.model_validate(
        {
            "data": "digits",
            "teacher": {"model": "resnet14", "train": train},
            "student": {"model": "resnet8"},
            "distill": {"method": method, "train": train, **beside},
        }
    )


def problems_of(asked: Recipe) -> list[str]:
    return check_parts(asked, StageTable({})) + check_relations(asked)


def test_a_class_is_found_in_a_file_and_in_a_module(tmp_path: Path) -> None:
    name = f"{write(tmp_path)}:Mine"
    assert find_method(name).__name__ == "Mine"
    assert find_method(name) is find_method(name)
    assert find_method("compress.methods.kd:KD") is METHODS["kd"]
    assert find_method("kd") is METHODS["kd"]


def test_a_file_that_changed_is_another_class_and_another_fingerprint(tmp_path: Path) -> None:
    name = f"{write(tmp_path)}:Mine"
    before, fields = find_method(name), _fields(name)
    assert _fields(name) == fields
    write(tmp_path, "2 * " + GOOD)
    assert find_method(name) is not before
    assert _fields(name) != fields


def _fields(name: str) -> Mapping[str, Any]:
    plan = make_plan(recipe(name))
    step = next(step for step in plan.steps if step.stage == "distill")
    return step_fields(plan, step, version=1).result


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (":Mein", "has no callable 'Mein'.*did you mean 'Mine'"),
        (":function", "is no method: expected a class that inherits from compress.methods.Method"),
        ("x:Mine", "not found"),
    ],
)
def test_what_is_no_method_is_said(tmp_path: Path, end: str, message: str) -> None:
    asked = recipe("kd", compare=[f"{write(tmp_path)}{end}"])
    (problem,) = problems_of(asked)
    assert problem.startswith("distill.compare.0: ")
    with pytest.raises(UserError, match=message):
        raise UserError(problem)


def test_its_arguments_are_the_recipes_keys(tmp_path: Path) -> None:
    name = f"{write(tmp_path)}:Mine"
    assert problems_of(recipe({"name": name, "width": 3})) == []
    (problem,) = problems_of(recipe({"name": name, "widht": 3}))
    assert "distill.method.widht: unknown key" in problem
    assert "did you mean 'width'" in problem


def test_results_are_named_after_the_class(tmp_path: Path) -> None:
    name = f"{write(tmp_path)}:Mine"
    asked = recipe(name, compare=[{"name": name, "width": 2}, {"name": name, "label": "wide"}])
    assert [*asked.methods] == ["mine", "mine-2", "wide"]


def test_what_its_code_raises_refuses_it_in_words(tmp_path: Path) -> None:
    _, problems = probe(recipe(f"{write(tmp_path)}:Late"))
    (problem,) = problems
    assert "Late" in problem
    assert "KeyError" in problem


def save(folder: Path, name: str) -> torch.nn.Module:
    arguments = MappingProxyType({"width": 3})
    student, teachers = building.networks()
    method = find_method(name)(building.context(student, teachers), **arguments)
    description = model_files.artifacts.describe_distilled(
        {"name": "resnet8", "arguments": {}},
        method,
        {"name": name, **arguments},
        tuple("abcde"),
        building.PREPROCESSING,
        weights={"ce": 1.0, "kd": 0.0, "method": 1.0},
        bare=False,
        fingerprint="f",
        label="mine",
    )
    folder.mkdir()
    network = method.ship(student).eval()
    model_files.save(folder, "student", network, description)
    return network


def test_a_student_that_it_ships_is_rebuilt_where_it_is_trusted_and_unchanged(
    tmp_path: Path,
) -> None:
    name = f"{write(tmp_path)}:Ships"
    network, folder = save(tmp_path / "s", name), tmp_path / "s"
    described = read_json(folder / "student.json")
    assert described["method"]["code"] == described["distillation"]["code"]
    assert described["method"]["code"] == user_code.provenance(name)
    with pytest.raises(UserError, match="run again with --trust-code"):
        model_files.load_student(folder)
    user_code.trust(name)
    images = torch.randn(2, *building.SHAPE)
    assert torch.equal(model_files.load_student(folder).network(images), network(images))
    write(tmp_path, "2 * " + GOOD)
    with pytest.raises(UserError, match="now holds other code"):
        model_files.load_student(folder)


@pytest.mark.parametrize("code", ["lacks", None])
def test_code_that_a_file_names_is_not_imported_before_it_is_trusted(
    tmp_path: Path, code: str | None
) -> None:
    path = write(tmp_path)
    save(tmp_path / "s", f"{path}:Ships")
    described = read_json(tmp_path / "s/student.json")
    if code == "lacks":
        del described["method"]["code"]
    write_json(tmp_path / "s/student.json", described)
    path.write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')\n{path.read_text()}")
    with pytest.raises(UserError, match="--trust-code"):
        model_files.load_student(tmp_path / "s")
    user_code.trust("*")
    with pytest.raises(UserError, match=r"holds no SHA-256|now holds other code"):
        model_files.load_student(tmp_path / "s")
    assert not (tmp_path / "harmed").exists()


def test_the_command_passes_the_shipped_example(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "pipelines/own_method.py"
    assert main(["--test", f"{example}:Direction", "--set", "bias=true"]) == 0
    printed = capsys.readouterr().out
    assert "failed" not in printed
    assert printed.count("passed  ") >= 12


@pytest.mark.parametrize(
    ("term", "sentence"),
    [
        ("apart.square().mean()", "in torch.bfloat16; expected torch.float32"),
        ("apart.float().square().mean(1)", "expected a scalar"),
        ("apart.float().detach().square().mean()", "no gradient comes from apart"),
        ("apart.float().square().sum()", "differs from that of two processes"),
        ("(apart.float() * __import__('torch').rand(4)).square().mean()", "Method.draw"),
        ("apart.no_such()", "AttributeError"),
    ],
)
def test_the_command_says_which_promise_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], term: str, sentence: str
) -> None:
    assert main(["--test", f"{write(tmp_path, term)}:Mine"]) == 1
    printed = capsys.readouterr().out
    assert "failed  " in printed
    assert re.search(sentence, printed), printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test", "no_such.py:Mine"], "'no_such.py' not found"),
        (["--test", "simkdd"], "did you mean 'simkd'"),
        (["--test", "kd", "--set", "temprature=3"], "did you mean 'temperature'"),
    ],
)
def test_the_command_refuses_what_it_cannot_build(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    printed = "".join(capsys.readouterr())
    assert message in " ".join(printed.split())
