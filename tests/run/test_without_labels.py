"""Recipes without labels: teachers of embeddings, students of embeddings, through every stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress import pipeline
from compress.engine.checkpoint import Checkpoint
from compress.methods import METHODS
from compress.models import build
from compress.pipeline import STAGES
from compress.recipe import check_shape
from compress.run.checks import check_recipe
from compress.storage.files import read_json
from tests.quick import quick_commands

TRAIN = {"epochs": 2, "lr": 0.02, "batch_size": 16}
RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "labels": False, "train_images": 100, "test_images": 60},
    "teacher": {"model": "resnet14", "checkpoint": "teacher.pth"},
    "student": {"model": "resnet8"},
    "distill": {"method": {"name": "dlkd", "labels": False}, "train": TRAIN, "compare": ["rkd"]},
    "account": {"latency": {"batch_sizes": [1], "rounds": 2, "warmup": 1}},
    "export": {"compile_latency": False},
    "transfer": [{"task": "knn", "data": {"name": "digit_scenes", "classes": 3}}],
}


@pytest.fixture(autouse=True)
def _teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(build("resnet14", num_classes=0, seed=3).state_dict(), tmp_path / "teacher.pth")
    monkeypatch.chdir(tmp_path)


def run(*options: str, **changes: Any) -> int:
    Path("free.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    with quick_commands():
        return pipeline.main(["free.yaml", "--out", "run", "--workers", "0", *options])


def values(stage: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(Path("run") / stage / "result.json")["values"]
    return content


def test_every_stage_runs_and_is_skipped_the_second_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run() == 0
    teacher = values("teacher")["teachers"][0]
    assert "mutual_knn_percent" not in teacher, "there is nothing to compare it with"
    assert 0 < teacher["knn_top1_percent"] <= 100
    for label in ("dlkd", "rkd"):
        student = values(f"distill/{label}")
        assert 0 < student["mutual_knn_percent"] <= 100 and 0 < student["knn_top1_percent"] <= 100
        assert student["weights"]["ce"] == student["weights"]["kd"] == 0
        assert "top1_percent" not in student
    exported = values("export")
    best = max(("rkd", "dlkd"), key=lambda label: values(f"distill/{label}")["mutual_knn_percent"])
    assert exported["student"] == best, "of the two the one with more common neighbours ships"
    report = read_json(Path("run/report.json"))["values"]
    shown = {row["label"]: row["mutual_knn_percent"] for row in report["networks"]}
    assert shown["teacher"] is None and shown["rkd"] == values("distill/rkd")["mutual_knn_percent"]
    assert "Mutual k-NN" in Path("run/report.md").read_text().split("## Results")[0]
    description = read_json(Path("run/distill/dlkd/student.json"))
    assert (description["num_classes"], description["class_names"]) == (0, [])
    assert description["embedding_width"] == 64
    capsys.readouterr()
    assert run() == 0
    assert capsys.readouterr().out.count("done before, skipped") == 7


def test_a_student_of_embeddings_teaches_the_next() -> None:
    assert run("--until", "distill") == 0
    Path("run").rename("first")
    teacher = {"checkpoint": "first/distill/dlkd/student.safetensors"}
    assert run("--until", "distill", teacher=teacher) == 0
    assert values("teacher")["teachers"][0]["model"] == "resnet8"


def test_the_whole_chain_runs_from_images_alone() -> None:
    moco = {"name": "moco", "queue_size": 64, "embedding_width": 16}
    train = {"epochs": 2, "lr": 0.03, "batch_size": 20, "weight_decay": 1e-4}
    teacher = {"model": "resnet14", "ssl": moco, "train": train}
    distill = {**RECIPE["distill"], "compare": []}
    assert run("--until", "distill", teacher=teacher, distill=distill) == 0
    row = values("teacher")["teachers"][0]
    assert row["epochs"] == 2 and row["source"] == "trained without labels (moco)"
    assert 0 < row["knn_top1_percent"] <= 100
    rows = Path("run/teacher/0/metrics.jsonl").read_text().splitlines()
    assert [*yaml.safe_load(rows[0])["terms"]] == ["contrast"]
    saved = read_json(Path("run/teacher/0/teacher.json"))
    assert saved["embedding_width"] == 64, "the encoder, without its head"
    assert values("distill/dlkd")["mutual_knn_percent"] > 0


def test_the_epoch_is_chosen_by_neighbours_on_the_validation_split() -> None:
    data = {**RECIPE["data"], "validation": 30}
    distill = {**RECIPE["distill"], "compare": []}
    assert run("--until", "distill", data=data, distill=distill) == 0
    lines = Path("run/distill/dlkd/metrics.jsonl").read_text().splitlines()
    rows = [yaml.safe_load(line) for line in lines]
    best = max(rows, key=lambda row: row["validation_mutual_knn_percent"])
    assert values("distill/dlkd")["mutual_knn_percent"] == best["mutual_knn_percent"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distill": {"method": "kd", "train": TRAIN}}, "kd reads a classifier or its logits"),
        ({"distill": {"method": "simkd", "train": TRAIN}}, "simkd reads a classifier"),
        ({"distill": {"method": "crd", "train": TRAIN}}, "crd reads labels"),
        ({"distill": {"method": "dlkd", "train": TRAIN}}, "dlkd reads labels"),
        ({"distill": {"method": "none", "train": TRAIN}}, "every weight is 0"),
        (
            {"distill": {"method": "sp", "train": TRAIN, "weights": {"ce": 1.0}}},
            "ce and kd weigh labels and logits, and data.labels is false",
        ),
        ({"data": {**RECIPE["data"], "classes": 3}}, "has `classes` and `labels: false`"),
        ({"teacher": {"model": "resnet14", "train": TRAIN}}, "teacher.train: learns from labels"),
        (
            {"teacher": {"model": "resnet14", "train": TRAIN, "ssl": {"name": "moco", "tau": 1}}},
            "teacher.ssl.tau: unknown key",
        ),
        (
            {"teacher": {"model": "resnet8", "train": TRAIN, "ssl": {"name": "moco", "groups": 0}}},
            "teacher.ssl: groups are at least 1, got 0",
        ),
        ({"teacher": {**RECIPE["teacher"], "ssl": "moco"}}, "has `ssl` and no `train`"),
        (
            {"data": {"name": "digits"}, "teacher": {**RECIPE["teacher"], "head": "fc"}},
            "teacher.head: used where data.labels is false only",
        ),
        (
            {"teacher": {**RECIPE["teacher"], "head": "layer9"}},
            "the network has no module 'layer9'",
        ),
    ],
)  # fmt: skip
def test_what_needs_labels_or_logits_is_refused_before_training(
    changes: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(**changes) == 2
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert not Path("run/teacher").exists()


def test_a_teacher_that_tells_no_images_apart_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = build("resnet14", num_classes=0).state_dict()
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, "teacher.pth")
    assert run() == 2
    assert "the same embedding" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_training_goes_on_to_the_same_student(
    capsys: pytest.CaptureFixture[str],
) -> None:
    distill = {**RECIPE["distill"], "compare": [], "train": {**TRAIN, "epochs": 3}}
    assert run("--until", "distill", distill=distill) == 0
    whole = values("distill/dlkd")
    Path("run").rename("whole")
    save = Checkpoint.save

    def stop(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        assert run("--until", "distill", distill=distill) == 130
    assert not Path("run/distill/dlkd/result.json").exists()
    capsys.readouterr()
    assert run("--until", "distill", distill=distill) == 0
    printed = capsys.readouterr().out
    assert "epoch 1/3" not in printed and "epoch 2/3" in printed
    assert values("distill/dlkd") == whole


# Methods on features; all others read labels, logits or a classifier.
FEATURES = ["ab", "at", "cc", "cocord", "dcd", "dlkd", "fitnet", "fkd", "fsp", "ft", "itrd", "lckt",
            "nst", "ofd", "pkt", "reviewkd", "rkd", "seed", "semckd", "sp", "vid"]  # fmt: skip


def test_every_method_on_features_learns_and_every_other_is_refused() -> None:
    data = {**RECIPE["data"], "train_images": 32, "test_images": 20}
    # The terms of those that are trained before the main training have no weight in it.
    weights = {"weights": {"method": 1.0}}
    arguments: dict[str, Any] = {"dlkd": {"labels": False}}
    arguments |= {"ft": {"paraphraser_epochs": 1}, "seed": {"queue_size": 32}}
    arguments |= {name: {"pretrain_epochs": 1, **weights} for name in ("ab", "fsp")}
    teacher, refused = {"model": "resnet14", "checkpoint": "teacher.pth"}, []
    for name in METHODS:
        method = {"name": name, **arguments.get(name, {})}
        distill = {"method": method, "train": {**TRAIN, "epochs": 1}}
        raw = {**RECIPE, "data": data, "teacher": teacher, "distill": distill}
        recipe, problems = check_shape(raw)
        assert recipe is not None, problems
        refused += [name] if check_recipe(recipe, STAGES) else []
    assert sorted({*METHODS} - {*refused}) == FEATURES
    parts = [{"name": name, **arguments.get(name, {})} for name in FEATURES]
    distill = {"method": parts[0], "compare": parts[1:], "train": {**TRAIN, "epochs": 1}}
    assert run("--until", "distill", data=data, distill=distill) == 0
    for name in FEATURES:
        assert 0 <= values(f"distill/{name}")["mutual_knn_percent"] <= 100
