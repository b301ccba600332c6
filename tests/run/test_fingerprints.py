"""Fingerprints are those of the runs that users have: another one trains everything again.

The values were computed by the version before its fields were assembled in one place.
"""

from typing import Any

from compress.recipe import check_shape
from compress.recipe.schema import TransferPart
from compress.run.fields import recipe_fingerprint, step_fields, training_fields
from compress.run.plan import PlannedStep, RunPlan, make_plan, transfer_arguments
from compress.storage.fingerprints import fingerprint_of

RECIPE: dict[str, Any] = {
    "seed": 3,
    "trials": 2,
    "data": {"name": "digits", "train_images": 100},
    "teacher": {"model": "resnet14", "train": {"epochs": 1, "lr": 0.1}},
    "student": {"model": "resnet8"},
    "distill": {
        "method": "simkd",
        "train": {"epochs": 1, "lr": 0.1},
        "compare": ["none", {"name": "kd", "temperature": 2}],
    },
    "engine": {"teacher": "bfloat16", "cache": {"max_gb": 1}},
    "transfer": [
        {
            "task": "linear_probe",
            "data": "digit_scenes",
            "init": ["distilled", "alone", "teacher"],
            "seeds": 2,
            "solver": "lbfgs",
        },
        {
            "task": "linear_probe",
            "data": {"name": "digit_scenes", "classes": 3},
            "init": ["distilled", "scratch"],  # the default, where no student is trained alone
            "train": {"iterations": 5, "lr": 0.1},
        },
    ],
}
VERSIONS = {"teacher": 3, "distill": 4, "fuse": 1, "account": 1, "export": 3, "transfer": 3}
RESULTS = {
    "teacher": "825ab4114dcabf43",
    "distill/simkd": "2de932e0ff8e1df6",
    "distill/none": "6b8543ca72faba2c",
    "distill/kd": "11d2fe2c55e09dc2",
    "distill/simkd-trial1": "9075a574630b1fc1",
    "distill/none-trial1": "f343bc38a40e18d4",
    "distill/kd-trial1": "78321ce1a901902f",
    "fuse": "cf14b0c06c324c52",
    "account": "322dbef80a1ee14c",
    "export": "36afb3474cf74592",
    "transfer/linear_probe": "4439e38072610403",
    "transfer/linear_probe-2": "2ac47f82c9976e04",
}
FOLDERS = {
    "transfer/linear_probe": "6f1bbe316d7111fa",
    "transfer/linear_probe-2": "72f5ba1f450eefeb",
}


def test_steps_of_a_recipe() -> None:
    recipe, problems = check_shape(RECIPE)
    assert recipe is not None, problems
    results, folders, plan = {}, {}, make_plan(recipe)
    for planned in plan.steps:
        # With the main method's student as its own, as every export had before one was chosen.
        step = planned.for_student("simkd", None) if planned.chosen_from else planned
        version, inputs = VERSIONS[step.stage], {name: name for name in step.inputs}
        fields = step_fields(plan, step, version=version, images="images", inputs=inputs)
        results[step.name] = fingerprint_of(fields.result)
        if fields.folder != fields.result:
            folders[step.name] = fingerprint_of(fields.folder)
    assert results == RESULTS
    assert folders == FOLDERS
    assert recipe_fingerprint(recipe) == "b3c2b6272b806083"


def test_a_share_of_the_training_images_is_another_run() -> None:
    data = {"name": "digits", "train_share": 0.25}
    recipe, problems = check_shape({**RECIPE, "data": data})
    assert recipe is not None, problems
    plan = make_plan(recipe)
    fields = step_fields(plan, plan.steps[0], version=3).result
    assert fields["data"]["train_share"] == 0.25
    _, problems = check_shape({**RECIPE, "data": {**data, "train_images": 100}})
    assert problems == ["data: has both `train_images` and `train_share`; give one of them"]


def test_steps_of_a_transfer_command() -> None:
    train = {"epochs": 2, "lr": 0.05, "nesterov": False}
    part = TransferPart.model_validate({"task": "linear_probe", "data": "-", "train": train})
    arguments = transfer_arguments(
        part,
        data={"name": "digit_scenes"},
        own={"solver": "sgd"},
        main="kd",
        seeds=(0, 1),
        origins={"distilled": ("kd", "abc"), "scratch": ("kd", "def")},
    )
    step = PlannedStep("transfer/digit_scenes", arguments)
    fields = step_fields(RunPlan([step]), step, version=3)
    expected = {
        "task": "linear_probe",
        "version": 3,
        "data": {"name": "digit_scenes"},
        "train": {
            "epochs": 2,
            "lr": 0.05,
            "batch_size": 64,
            "optimizer": {"name": "sgd"},
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0005,
            "schedule": {"name": "multistep"},
            "accumulate": 1,
            "precision": "float32",
            "iterations": None,
        },
        "arguments": {"solver": "sgd"},
    }
    origins = [["distilled", "kd", "abc"], ["scratch", "kd", "def"]]
    assert fields.folder == expected
    assert fields.result == {**expected, "init": origins, "seeds": [0, 1]}
    assert training_fields(expected, init="distilled", origin="abc", seed=1) == {
        **expected,
        "training": {"init": "distilled", "origin": "abc", "seed": 1},
    }


def test_transfer_starts_from_the_student_alone_where_one_is_trained() -> None:
    """Of such an entry only the result is another one: the trainings in its folder are kept."""
    entry = {key: value for key, value in RECIPE["transfer"][1].items() if key != "init"}
    recipe = {**RECIPE, "transfer": [RECIPE["transfer"][0], entry]}
    with_alone, _ = check_shape(recipe)
    without, _ = check_shape({**recipe, "distill": {**recipe["distill"], "compare": ["kd"]}})
    assert with_alone is not None and without is not None
    assert with_alone.transfer[1].init == ["distilled", "alone", "scratch"]
    assert without.transfer[1].init == ["distilled", "scratch"]
    plan = make_plan(with_alone)
    fields = step_fields(plan, plan.steps[-1], version=3, images="images")
    assert fingerprint_of(fields.folder) == FOLDERS["transfer/linear_probe-2"]
