"""Reading recipes: what is accepted, and that everything else is refused with its path."""

from pathlib import Path
from typing import Any

import pytest

from compress.errors import UserError
from compress.pipeline import STAGES
from compress.recipe import Recipe, apply_override, check_shape, parse_yaml, read_yaml
from compress.run.checks import check_recipe
from compress.run.schema import schema

PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


def raw(**changes: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "data": {"name": "digits"},
        "teacher": {"model": "resnet14", "train": {"epochs": 1, "lr": 0.1}},
        "student": {"model": "resnet8"},
        "distill": {"method": "simkd", "train": {"epochs": 1, "lr": 0.1}},
    }
    for path, value in changes.items():
        place = recipe
        *parents, last = path.split("__")
        for key in parents:
            place = place[key]
        place[last] = value
    return recipe


def problems(content: dict[str, Any]) -> list[str]:
    recipe, messages = check_shape(content)
    return messages if recipe is None else check_recipe(recipe, STAGES)


def test_scientific_notation_is_a_number() -> None:
    content = parse_yaml("a: 1e-4\nb: 5E3\nc: 1.5e-3\nd: 12\ne: 1e\nf: .5\ng: -2e2", "text")
    assert content == {"a": 1e-4, "b": 5e3, "c": 1.5e-3, "d": 12, "e": "1e", "f": 0.5, "g": -200}
    assert isinstance(content["d"], int)


def test_a_duplicate_key_is_refused_with_both_lines() -> None:
    with pytest.raises(UserError, match=r"r\.yaml, line 3: key 'a' stands twice \(first in line 1"):
        parse_yaml("a: 1\nb: 2\na: 3", "r.yaml")


def test_a_duplicate_key_deep_inside_is_refused() -> None:
    with pytest.raises(UserError, match=r"line 2: key 'c' stands twice"):
        parse_yaml("a:\n  b: [{c: 1, c: 2}]", "r.yaml")


@pytest.mark.parametrize("text", ["a: !!python/object:os.system x", "!mine {a: 1}", "a: !x [1]"])
def test_a_tag_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"tag .* is not accepted"):
        parse_yaml(text, "r.yaml")


def test_anchors_are_plain_yaml() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x", "r") == {"a": {"k": 1}, "b": {"k": 1}}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [1", "not readable as YAML"), (b"", "is empty"), (b"[1]", "is a list"),
     (b"\xff\xfe\x00PK", "not a text file")],
)  # fmt: skip
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_yaml(path)


def test_a_missing_recipe_says_where_it_looked() -> None:
    with pytest.raises(UserError, match=r"recipe 'nowhere.yaml' not found \(looked in /"):
        read_yaml(Path("nowhere.yaml"))


def test_a_minimal_recipe_is_in_order() -> None:
    assert problems(raw()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distil": 1}, "distil: unknown key; accepted here: seed, .*did you mean 'distill'"),
        ({"teacher__trian": {}}, r"teacher.*trian: unknown key.*did you mean 'train'"),
        ({"distill__train__epochs": -3}, r"distill.train.epochs: .*greater than 0, got -3"),
        ({"distill__train__epochs": "ten"}, r"distill.train.epochs: .*integer, got 'ten'"),
        ({"distill__train__epochs": True}, r"distill.train.epochs: .*integer, got True"),
        ({"distill__train__lr": "0.1"}, r"distill.train.lr: .*number, got '0.1'"),
        ({"data__classes": 1}, r"data.classes: .*greater than or equal to 2"),
        ({"data__name": "digit"}, "data: unknown name 'digit'.*did you mean 'digits'"),
        ({"data__root": "x"}, "data.root: unknown key; accepted here: labels, classes"),
        ({"data__augment": "flip"}, "data.augment: .*'crop_flip'.*got 'flip'"),
        ({"student__model": "resnet9"}, "student.model: unknown model 'resnet9'.*'resnet8'"),
        ({"student__model": "torchvision:resnet19"}, "student.model: torchvision has no .*resnet"),
        ({"student__model": "hub:resnet"}, "student.model: unknown kind of model 'hub:resnet'"),
        ({"distill__method": "simdk"}, "distill.method: unknown name 'simdk'.*'simkd'"),
        ({"distill__method": {"name": "simkd", "reduce": 2}}, "reduce: unknown.*'reduction'"),
        ({"distill__method": {"name": "simkd", "reduction": "2"}}, "reduction: .*integer"),
        ({"distill__protocol": "sim"}, "distill.protocol: unknown protocol 'sim'"),
        ({"distill__compare": ["kd", "nonne"]}, "distill.compare.1: unknown name 'nonne'.*'none'"),
        ({"distill__train__schedule": "step"}, "distill.train.schedule: unknown name 'step'"),
        ({"distill__train__schedule": {"name": "multistep", "milestones": [2]}}, "fractions"),
        ({"distill__train__optimizer": "adam"}, "unknown optimiser 'adam'.*'adamw'"),
        ({"teacher": {"model": "resnet8"}}, "teacher.*has no weights"),
        ({"teacher": {"train": {"epochs": 1, "lr": 1.0}}}, "teacher.*names no model"),
        ({"teacher__checkpoint": "no.pth"}, r"teacher.checkpoint: 'no.pth' not found \(looked"),
        ({"distill__weights": {"ce": 0, "method": 0}}, "distill.method: every weight is 0"),
        ({"distill__compare": [{"name": "kd", "weights": {"ce": 1, "kd": 1}}]}, "the soft term"),
        ({"distill__compare": [{"name": "kd", "label": "a-trial1"}]}, "label 'a-trial1' is taken"),
        ({"distill__compare": [{"name": "kd", "label": "student"}]}, "label 'student' is taken"),
        ({"transfer": [{"task": "detect", "data": "coco",
           "train": {"epochs": 1, "lr": 0.1}}]}, "transfer.0.task: unknown task 'detect'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_path(changes: dict[str, Any], words: str) -> None:
    import re

    messages = problems(raw(**changes))
    assert any(re.search(words, line) for line in messages), messages


def test_all_mistakes_are_reported_together() -> None:
    messages = problems(raw(student__model="resnet9", data__name="digit", distill__method="kdd"))
    assert len(messages) == 3


def test_one_teacher_or_a_list_of_them() -> None:
    one = raw()["teacher"]
    for given in (one, [one], [one, one]):
        recipe, _ = check_shape(raw(teacher=given))
        assert recipe is not None
        assert isinstance(recipe.teacher, list)


def test_overrides_reach_into_sections_lists_and_short_forms() -> None:
    content = raw(transfer=[{"train": {"epochs": 3}}], distill__compare=["kd"])
    for assignment in (
        "distill.train.epochs=7",
        "data.classes=5",
        "distill.method.reduction=4",
        "distill.compare.0.temperature=3",
        "transfer.0.train.epochs=1",
        "account.latency.rounds=2",
    ):
        apply_override(content, assignment)
    assert content["distill"]["train"]["epochs"] == 7
    assert content["distill"]["method"] == {"name": "simkd", "reduction": 4}
    assert content["distill"]["compare"] == [{"name": "kd", "temperature": 3}]
    assert content["transfer"][0]["train"]["epochs"] == 1
    assert content["account"] == {"latency": {"rounds": 2}}


def test_an_override_at_an_alias_changes_that_place_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: &x {k: 1}\nb: *x\nc: [*x]")
    content = read_yaml(path)
    apply_override(content, "b.k=2")
    assert content == {"a": {"k": 1}, "b": {"k": 2}, "c": [{"k": 1}]}


@pytest.mark.parametrize("given", ["epochs", "=3", "seed.x=1", "transfer.4.task=x"])
def test_an_impossible_override_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"--set"):
        apply_override(raw(seed=0, transfer=[{}]), given)


def test_labels_are_unique_and_the_shipped_method_comes_first() -> None:
    recipe = Recipe.model_validate(
        raw(
            distill__compare=[
                "none",
                {"name": "simkd", "reduction": 4},
                {"name": "kd", "label": "x"},
            ]
        )
    )
    assert list(recipe.methods) == ["simkd", "none", "simkd-2", "x"]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_in_order(path: Path) -> None:
    # Where data lie is the user's to say.
    assert [p for p in problems(read_yaml(path)) if ".data.root: folder" not in p] == []


def test_the_schema_holds_every_method_with_its_arguments() -> None:
    parts = schema(STAGES)["named_parts"]
    assert parts["method"]["simkd"]["properties"]["reduction"]["default"] == 2
    assert "temperature" in parts["method"]["kd"]["properties"]
    assert {"detection", "segmentation", "linear_probe"} <= set(parts["transfer"])
