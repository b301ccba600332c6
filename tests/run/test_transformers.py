"""Recipes with transformers as teacher and student: trained, fused, counted and exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress import pipeline
from compress.model_files.artifacts import load_student
from compress.reporting import plots
from compress.storage.files import read_json
from tests.quick import NOT_DRAWN, quick_commands

pytest.importorskip("timm")

_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = {"name": "timm:vit_tiny_patch16_224", **_VIT}
DEIT = {"name": "timm:deit_tiny_distilled_patch16_224", **_VIT}
SWIN = {
    "name": "timm:swin_tiny_patch4_window7_224", "img_size": 16, "patch_size": 2,
    "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
}  # fmt: skip
CONVNEXT = {
    "name": "timm:convnext_atto", "depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24], "patch_size": 1
}  # fmt: skip
CNN_TRAIN = {"epochs": 6, "lr": 0.05, "batch_size": 16}
VIT_TRAIN = {**CNN_TRAIN, "lr": 0.005, "optimizer": "adamw"}
RECIPE: dict[str, Any] = {
    "data": {
        "name": "digits", "classes": 3, "train_images": 120, "test_images": 60, "augment": "none",
    },
    "teacher": {"model": "resnet8", "train": {**CNN_TRAIN, "epochs": 8}},
    "account": {"latency": {"batch_sizes": [1], "rounds": 2, "warmup": 1}},
    "export": {
        "int8": {"max_top1_drop": 100, "min_agreement_percent": 0, "max_difference": 100},
        "compile_latency": False,
    },
}  # fmt: skip


def run(folder: Path, *options: str, **parts: Any) -> int:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, **parts}))
    return pipeline.main([str(recipe), "--out", str(folder / "run"), "--workers", "0", *options])


def values(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "run" / stage / "result.json")["values"]
    return found


def test_a_distilled_deit_through_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "render", lambda *_, **__: NOT_DRAWN)
    distill = {"method": "deit", "train": VIT_TRAIN}
    assert run(tmp_path, student={"model": DEIT}, distill=distill) == 0
    assert values(tmp_path, "distill/deit")["top1_percent"] > 50
    (fused,) = values(tmp_path, "fuse")["students"]
    assert max(fused["fused_max_abs"], fused["folded_max_abs"]) < 1e-5

    counted = {one["label"]: one for one in values(tmp_path, "account")["networks"]}
    assert counted["deit"]["uncounted_operators"] == {"scaled_dot_product_attention": 2}
    blocks = 2 * 18 * 16 * 16 * (3 + 1 + 4 + 4)  # 18 tokens of width 16
    assert counted["deit"]["macs"] == 16 * 16 * 3 * 16 + blocks + 2 * 16 * 3
    exported = values(tmp_path, "export")
    assert exported["max_abs_difference"] < 1e-4
    assert exported["int8"] is not None

    # The description is all that it takes to build the student again.
    student = load_student(tmp_path / "run/distill/deit")
    assert student.description["taps"]["heads"] == ["head", "head_dist"]
    images = torch.randn(2, 3, 16, 16)
    network = student.network
    tokens = network.forward_features(images)  # type: ignore[operator]
    heads = network.head(tokens[:, 0]), network.head_dist(tokens[:, 1])  # type: ignore[operator]
    torch.testing.assert_close(network(images), (heads[0] + heads[1]) / 2)


@pytest.mark.parametrize(
    ("teacher", "student", "method"),
    [(VIT, "resnet8", "kd"), ("resnet8", VIT, "kd"), ("resnet8", SWIN, "simkd")],
    ids=["ViT to CNN", "CNN to ViT", "CNN to Swin"],
)
def test_students_and_teachers_of_other_kinds(
    teacher: Any, student: Any, method: str, tmp_path: Path
) -> None:
    of_teacher = {**(CNN_TRAIN if teacher == "resnet8" else VIT_TRAIN), "epochs": 10}
    train = CNN_TRAIN if student == "resnet8" else VIT_TRAIN
    parts = {
        "teacher": {"model": teacher, "train": of_teacher},
        "student": {"model": student},
        "distill": {"method": method, "train": train, "compare": ["at"]},
    }
    with quick_commands():
        assert run(tmp_path, "--until", "account", **parts) == 0
    rows = values(tmp_path, "fuse")["students"]
    assert max(max(one["fused_max_abs"], one["folded_max_abs"]) for one in rows) < 1e-4
    counted = {one["label"]: one for one in values(tmp_path, "account")["networks"]}
    assert bool(counted[method]["uncounted_operators"]) == (student != "resnet8")


def test_a_convnext_is_an_encoder_for_transfer(tmp_path: Path) -> None:
    scenes = {"name": "digit_scenes", "classes": 3}
    probe = {"task": "linear_probe", "data": scenes, "train": {**CNN_TRAIN, "epochs": 1}}
    parts = {
        "student": {"model": CONVNEXT},
        "distill": {"method": "kd", "train": VIT_TRAIN},
        "transfer": [{**probe, "init": ["distilled"]}],
        "export": None,
    }
    with quick_commands():
        assert run(tmp_path, **parts) == 0
    assert read_json(tmp_path / "run/transfer/linear_probe/result.json")["values"]


def test_what_a_student_lacks_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def problem(student: Any, method: str) -> str:
        distill = {"method": method, "train": VIT_TRAIN}
        assert run(tmp_path, "--check", student={"model": student}, distill=distill) == 2
        return " ".join(capsys.readouterr().out.split())

    assert "the student's output is not the mean of two heads" in problem(VIT, "deit")
    assert "end in global average pooling and a linear layer; the student" in problem(VIT, "simkd")
    assert "the student normalises in between ('head.norm')" in problem(CONVNEXT, "norm")
