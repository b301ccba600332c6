"""Recipes that no one meant: whatever a file holds, there is a recipe or a list of problems."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from compress import pipeline
from compress.errors import UserError
from compress.pipeline import STAGES
from compress.recipe import apply_override, parse_yaml, read_yaml
from compress.recipe.command_line import list_problems
from compress.run import place_checks
from compress.run.checks import check_values
from compress.run.probe import probe
from compress.sweep import command
from compress.text import printable
from eval.transfer.options import _read
from tests.mutations import mutations
from tests.recipe.test_recipe import PIPELINES, raw
from tests.run.test_pipeline import TINY, TRANSFER
from tests.sweep.test_sweep import small

SOURCES = {path.stem: read_yaml(path) for path in PIPELINES}
SOURCES["tiny"] = {**TINY, "transfer": TRANSFER}
_EACH = 10


def _outcome(path: Path) -> str:
    """What the command says of a recipe's file before it builds anything."""
    try:
        recipe, problems = check_values(read_yaml(path), STAGES)
    except UserError as error:
        return str(error)
    assert (recipe is None) <= bool(problems)
    return list_problems(path, problems) if problems else ""


@pytest.mark.parametrize("name", SOURCES)
def test_any_mutation_is_a_recipe_or_a_list_of_problems(name: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for number, (kind, content) in enumerate(mutations(SOURCES[name], _EACH, seed=0)):
        path.write_bytes(content)
        message = _outcome(path)
        what = f"mutation {number} ({kind}): {message[:300]}"
        assert len(message.encode("utf-8", "surrogatepass")) < 200_000, what
        for line in message.split("\n")[1:]:
            assert printable(line) == line and line.startswith("  "), what


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x]\nb: [" + "*a, " * 200_000 + "]", "more than 262,144 characters"),
        ("a: &x [*x]", "nested more than 50 deep"),
        ("a: " + "[" * 100_000, "nested more than 50 deep"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ("data: !!map [1]", "tag 'tag:yaml.org,2002:map' is not accepted"),
        ("a: !!set {b}", "tag 'tag:yaml.org,2002:set' is not accepted"),
        ("a: !!binary aGk=", "tag .* is not accepted"),
        ("a: " + "9" * 5000, "line 1: .* is no number that can be read"),
        ("a: 0x" + "f" * 5000, "more than 100 digits"),
        ("a: 0b_", "is no number"),
        ("a: .nan", "no finite number"),
        ('a: "\\0"', "is no character"),
        ('a: "\\ud800"', "is no character"),
        ("2020: 1", "key 2020 is no text"),
        ("? [1]\n: 2", r"key \[1\] is no text"),
        ("a: *" + "b" * 100_000, "found undefined alias"),
    ],
    ids=range(16),
)
def test_yaml_that_is_no_recipe_is_refused_in_a_sentence(text: str, words: str) -> None:
    for give in (lambda: parse_yaml(text, "r"), lambda: apply_override({}, f"b={text}")):
        with pytest.raises(UserError, match=words) as refused:
            give()
        assert len(str(refused.value)) < 5000


def test_a_bomb_of_aliases_is_refused() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(12)]
    with pytest.raises(UserError, match="with its aliases written out"):
        parse_yaml("\n".join(levels), "r")


def test_dates_merge_keys_and_the_like_are_text() -> None:
    content = parse_yaml("a: 2020-01-01\nb: 2020-01-01 10:00:00\nc: =\n<<: {d: 1}", "r")
    assert content == {"a": "2020-01-01", "b": "2020-01-01 10:00:00", "c": "=", "<<": {"d": 1}}
    given = raw(distill__method={"name": "simkd", "reduction": content["a"]})
    (problem,) = check_values(given, STAGES)[1]
    assert problem.endswith("got '2020-01-01'")
    assert _read(["2020-01-01"], int, "width") == "2020-01-01"


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (1 << 19))
    (tmp_path / "other").write_bytes("seed: 0".encode("utf-16"))
    refusals = {"": "is a folder", "pipe": "no ordinary file", "large": "bytes", "other": "UTF-8"}
    for name, words in refusals.items():
        with pytest.raises(UserError, match=words):
            read_yaml(tmp_path / name)
    (tmp_path / "marked").write_bytes("seed: 0".encode("utf-8-sig"))
    assert read_yaml(tmp_path / "marked") == {"seed": 0}


@pytest.mark.parametrize("given", ["a." * 2000 + "b=1", "transfer." + "9" * 5000 + ".task=kd"])
def test_an_absurd_override_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="--set"):
        apply_override(raw(transfer=[{}]), given)


def _problems(**changes: Any) -> list[str]:
    return check_values(raw(**changes), STAGES)[1]


@pytest.mark.parametrize("key", ["", "two words", "<<", "\x1b", "x" * 10_000])
def test_an_unknown_key_may_be_anything(key: str) -> None:
    for content in (raw() | {key: 1}, raw(distill__train={"epochs": 1, "lr": 0.1, key: 1})):
        (problem,) = check_values(content, STAGES)[1]
        assert "unknown key; accepted here: " in problem and len(problem) < 1000
    assert "unknown key" in "".join(_problems(distill__method={"name": "simkd", key: 1}))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"trials": 10**9}, "trials"),
        ({"seed": 2**40}, "seed"),
        ({"data__seed": 2**31}, "data.seed"),
        ({"data__image_size": 10**9}, "data.image_size"),
        ({"distill__train__epochs": 10**30}, "distill.train.epochs"),
        ({"distill__train__batch_size": 10**12}, "distill.train.batch_size"),
        ({"distill__train__lr": 1e308}, "distill.train.lr"),
        ({"distill__train__lr": 10**99}, "distill.train.lr"),
        ({"distill__train__weight_decay": 1e308}, "distill.train.weight_decay"),
        ({"distill__kd_temperature": 1e308}, "distill.kd_temperature"),
        ({"distill__weights": {"kd": 1e308}}, "distill.weights.kd"),
        ({"distill__compare": ["kd"] * 1000}, "distill.compare"),
        ({"distill__method": {"name": "simkd", "reduction": 2**31}}, "distill.method.reduction"),
        ({"account": {"latency": {"rounds": 10**9}}}, "account.latency.rounds"),
        (
            {"distill__train__schedule": {"name": "multistep", "gamma": 1e308}},
            "distill.train.schedule",
        ),
        (
            {"distill__train__schedule": {"name": "poly", "power": -400.0}},
            "distill.train.schedule",
        ),
        ({"transfer": [{"task": "neighbours", "data": "digit_scenes", "seeds": 2**31}]},
         "transfer.0.seeds"),
    ],
)  # fmt: skip
def test_what_would_fail_late_is_told_at_once(changes: dict[str, Any], path: str) -> None:
    (problem,) = _problems(**changes)
    assert problem.startswith(f"{path}: ") and len(problem) < 400


def test_a_sweep_has_the_same_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    methods = [{"name": "kd", "trials": 10**9}, {"name": "none", "label": "a b"}]
    path.write_text(yaml.safe_dump(small(methods=methods, paper={"": [1.0]})))
    assert command.main([str(path), "--check"]) == 2
    printed = capsys.readouterr().out
    assert "methods.0.trials: " in printed and "methods.1.label: " in printed


def test_names_are_looked_up_although_other_parts_have_the_wrong_shape() -> None:
    transfer = [{"task": "detect", "data": "voc", "train": {"epochs": 1, "lr": 0.1}}]
    content = raw(
        student__model="resnet9",
        teacher__train={"epochs": "ten", "lr": 0.1, "schedule": "step"},
        distill__metod=1,
        distill__method={"name": "simdk"},
        distill__compare=[5, "nome"],
        account=3,
        transfer=[7, *transfer],
    )
    del content["data"]
    recipe, problems = check_values(content, STAGES)
    assert recipe is None
    paths = [problem.partition(":")[0] for problem in problems]
    assert sorted(paths) == [
        "account", "data", "distill.compare.0", "distill.compare.1", "distill.method",
        "distill.metod", "student.model", "teacher.train.epochs", "teacher.train.schedule",
        "transfer.0", "transfer.1.task",
    ]  # fmt: skip


def test_published_weights_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"model": "torchvision:resnet18", "weights": "IMAGENET1K_V2"}
    (problem,) = _problems(student=named)
    assert problem.startswith("student.weights: 'IMAGENET1K_V2' not found")
    assert "published for it: IMAGENET1K_V1, DEFAULT; did you mean 'IMAGENET1K_V1'?" in problem
    assert _problems(student=named | {"weights": "DEFAULT"}) == []


def test_files_and_folders_are_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for place in ("train/cat", "train/do\ng", "test/cat"):
        (root / place).mkdir(parents=True)
    (tmp_path / "teacher.safetensors").write_bytes(b"no tensors")
    (tmp_path / "bare.safetensors").write_bytes(b"no tensors")
    (tmp_path / "teacher.json").write_text("{")
    problems = _problems(
        data={"name": "image_folder", "root": str(root), "classes": 3},
        teacher=[
            {"checkpoint": str(tmp_path / "teacher.safetensors")},
            {"checkpoint": str(tmp_path / "bare.safetensors")},
        ],
        engine={"cache": {"folder": str(tmp_path / "teacher.json" / "x")}},
    )
    joined = "\n".join(problems)
    assert "data.classes: asks for 3, the data set has 2" in joined
    assert r"data: class name 'do\ng' is no line of text for labels.txt" in joined
    assert "teacher.0.checkpoint: " in joined and "is damaged" in joined
    assert "teacher.1.checkpoint: " in joined and "has no .json beside it" in joined
    assert "engine.cache.folder: " in joined
    (problem,) = _problems(data={"name": "image_folder", "root": str(tmp_path / "none")})
    assert "data.root: folder" in problem and "not found" in problem
    assert _problems(data={"name": "digits", "classes": 11}) != []


def test_a_file_of_another_network_is_told_before_a_teacher_is_trained(tmp_path: Path) -> None:
    from compress import models
    from compress.storage.files import write_tensors

    write_tensors(tmp_path / "w.safetensors", models.build("vgg8", num_classes=10).state_dict())
    path = str(tmp_path / "w.safetensors")
    recipe, problems = check_values(raw(student={"model": "resnet8", "weights": path}), STAGES)
    assert recipe is not None and problems == []
    (problem,) = probe(recipe)[1]
    assert problem.startswith("student: ") and "of another architecture" in problem


def test_batches_that_no_memory_holds_are_told_with_all_other_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(place_checks, "memory_of", lambda device: 2**30)
    latency = {"batch_sizes": [1, 64, 10_000_000]}
    changes = {"account": {"latency": latency}, "trackers": ["tensorbord"]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
    assert pipeline.main([str(tmp_path / "r.yaml"), "--check", "--device", "cpu"]) == 2
    printed = capsys.readouterr().out
    assert "account.latency.batch_sizes: a batch of 10,000,000 cannot be timed" in printed
    assert "163,840,000,000 bytes (10000000 x 16 x 16 x 16, float32)" in printed
    assert "trackers.0: unknown name 'tensorbord'" in printed
    assert "2 problems" in printed
