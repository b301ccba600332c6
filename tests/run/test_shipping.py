"""Which student ships is known once the students are trained; it is what export stands for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.comparison import write_predictions
from compress.pipeline import STAGES
from compress.recipe import check_shape
from compress.run.directory import RunDirectory
from compress.run.executor import Progress
from compress.run.plan import PlannedStep, make_plan
from compress.stages.job import Outcome
from compress.storage.fingerprints import fingerprint_of

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "train_images": 20, "test_images": 10},
    "teacher": {"model": "resnet14", "train": {"epochs": 1, "lr": 0.1}},
    "student": {"model": "resnet8"},
    "distill": {
        "method": "simkd", "train": {"epochs": 1, "lr": 0.1}, "compare": ["none", "kd"],
    },
}  # fmt: skip
PARAMETERS = {"simkd": 90_000, "none": 80_000, "kd": 80_000}
LABELS = np.zeros(200, dtype=np.int32)


def finish(folder: Path, label: str, wrong: range) -> None:
    """The result of a student that is wrong on these of 200 images."""
    run, stage = RunDirectory(folder, "run"), f"distill/{label}"
    run.begin(stage, {})
    top1 = np.where(np.isin(np.arange(200), wrong), 1, 0)
    write_predictions(folder / stage / "predictions.npz", {"labels": LABELS, "top1": top1}, "same")
    percent = 100 - len(wrong) / 2
    values = {"label": label, "trial": 0, "top1_percent": percent, "test_images": 200}
    run.finish(stage, {}, Outcome(values, {}), ["predictions.npz"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """simkd and kd err on 10 images, the student alone on 40: kd is the smaller of the equals."""
    for label, wrong in {"simkd": range(10), "none": range(40), "kd": range(5, 15)}.items():
        finish(tmp_path, label, wrong)
    run = RunDirectory(tmp_path, "run")
    networks = [
        {"label": label, "role": "deployed", "parameters": p} for label, p in PARAMETERS.items()
    ]
    run.begin("account", {})
    run.finish("account", {}, Outcome({"networks": networks}, {}))
    return tmp_path


def resolved(folder: Path, missing: str = "", **section: Any) -> tuple[PlannedStep, str]:
    """The export step, and the fingerprint of its fields, with all results there but one."""
    recipe, problems = check_shape({**RECIPE, **({"export": section} if section else {})})
    assert recipe is not None, problems
    progress = Progress(make_plan(recipe), STAGES, RunDirectory(folder, "run"))
    for step in progress.plan.steps:
        if step.name == "export":
            fields = progress.fields(step).result
            return progress.resolve(step), fingerprint_of(fields)
        if (folder / step.name / "result.json").is_file() and step.name != missing:
            progress.note(step)
    raise AssertionError("no export")


def test_the_recommended_student_is_what_export_reads(folder: Path) -> None:
    step, fingerprint = resolved(folder)
    assert step.inputs == ("distill/kd",)
    assert step.arguments["label"] == "kd" and step.arguments["remark"] is None
    assert resolved(folder, student="kd")[1] == fingerprint  # the same bundle


def test_another_recommendation_is_another_export(folder: Path) -> None:
    _, before = resolved(folder)
    finish(folder, "kd", range(100))
    step, after = resolved(folder)
    assert step.inputs == ("distill/simkd",)  # the student alone errs on 30 images more
    assert before != after


def test_other_results_of_the_same_recommendation_change_nothing(folder: Path) -> None:
    before = resolved(folder)
    finish(folder, "none", range(60))
    assert resolved(folder) == before


def test_a_recipe_that_insists_says_what_is_recommended(folder: Path) -> None:
    step, fingerprint = resolved(folder, student="none")
    assert step.inputs == ("distill/none",)
    assert step.arguments["remark"] == (
        "none was asked for; by the rule of the report kd is recommended: top-1 95.00 % against "
        "80.00 % (higher, p < 0.001), 80,000 parameters against 80,000"
    )
    finish(folder, "kd", range(5, 14))
    assert resolved(folder, student="none")[1] != fingerprint  # the card has another sentence


def test_nothing_is_chosen_while_a_result_is_missing(folder: Path) -> None:
    step, fingerprint = resolved(folder, missing="distill/none")
    assert step.chosen_from and "label" not in step.arguments
    assert fingerprint not in {resolved(folder)[1], resolved(folder, student="kd")[1]}
