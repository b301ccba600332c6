"""`compress check`: what a recipe finds and needs on this machine."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from compress import pipeline
from compress.recipe.schema import Recipe
from compress.run import world
from compress.run.checks import check_values
from compress.run.rehearsal import Rehearsed, rehearse
from compress.text import duration
from tests.quick import quick_commands

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "classes": 3, "train_images": 90, "test_images": 30},
    "teacher": {"model": "resnet14", "train": {"epochs": 2, "lr": 0.1, "batch_size": 16}},
    "student": {"model": "resnet8"},
    "distill": {
        "method": {"name": "simkd"},
        "train": {"epochs": 3, "lr": 0.1, "batch_size": 30},
        "compare": ["none", "ab"],
    },
    "account": None,
    "export": None,
}


def recipe_of(**changes: Any) -> Recipe:
    recipe, problems = check_values({**RECIPE, **changes}, pipeline.STAGES)
    assert recipe is not None and not problems, problems
    return recipe


def check(folder: Path, *options: str, **changes: Any) -> int:
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    with quick_commands():
        return pipeline.check([str(path), "--device", "cpu", "--workers", "0", *options])


def test_a_few_steps_of_every_training_are_timed() -> None:
    timed = {
        one.name: one for one in rehearse(recipe_of(), pipeline.STAGES, torch.device("cpu"), 0)
    }
    assert {name: one.steps for name, one in timed.items()} == {
        "teacher": 2 * (90 // 16),
        "distill/simkd": 3 * 3,
        "distill/none": 3 * 3,
        "distill/ab": 3 * 3,
    }
    assert all(0 < one.step_seconds < 30 for one in timed.values())


@pytest.mark.parametrize("batch", [90, 60])
def test_a_training_of_one_step_is_timed_by_it(batch: int) -> None:
    train = {"epochs": 1, "lr": 0.1, "batch_size": batch}
    recipe = recipe_of(distill={"method": "kd", "train": train})
    *_, last = rehearse(recipe, pipeline.STAGES, torch.device("cpu"), 0)
    assert last.steps == 1
    assert last.step_seconds > 0


def test_every_teacher_of_several_is_timed() -> None:
    recipe = recipe_of(
        teacher=[RECIPE["teacher"], RECIPE["teacher"]],
        distill={**RECIPE["distill"], "method": "aveg", "compare": []},
    )
    names = [one.name for one in rehearse(recipe, pipeline.STAGES, torch.device("cpu"), 0)]
    assert names == ["teacher 1", "teacher 2", "distill/aveg"]


def test_the_time_is_the_sum_over_trainings_and_trials() -> None:
    recipe = recipe_of(trials=3)
    trainings = [Rehearsed("teacher", 0.5, 100), Rehearsed("distill/kd", 0.1, 1000)]
    *rows, (name, total) = world.describe_time(recipe, lambda: iter(trainings))
    assert [row[0] for row in rows] == ["teacher", "distill/kd"]
    assert rows[1][1] == "1,000 steps of 100 ms: 2 min for each trial"
    assert (name, total[:12]) == ("time", "about 6 min ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5340, "89 min"), (12000, "3 h 20 min")),
        *((47.9 * 3600, "47 h 54 min"), (75 * 3600, "3 days 3 h")),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_folder_of_photos_is_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in {"cat": 12, "dog": 5}.items():
        (folder := tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (i, 0, 0)).save(folder / f"{i}.png")
    data = {"name": "image_folder", "root": str(tmp_path / "photos"), "image_size": 16}
    train = {"epochs": 1, "lr": 0.1, "batch_size": 4}
    teacher = {"model": "resnet14", "train": train}
    assert (
        check(tmp_path, data=data, teacher=teacher, distill={"method": "kd", "train": train}) == 0
    )
    said = capsys.readouterr().out
    assert "14 training images, 3 test images" in said
    assert "2 (cat, dog), 4 (dog) to 10 (cat) training images" in said
    assert "files of 40 x 30 (median of 14 looked at), read as 16 x 16" in said
    assert re.search(r"teacher +resnet14, trained for 1 epochs: 0\.17 M parameters", said)
    assert re.search(r"distill/kd +3 steps of [\d,]+ ms", said)
    assert re.search(r"disk +about 0\.0\d GB .* GB free", said)
    assert re.search(r"memory +\d+\.\d GB", said)
    assert said.endswith("The recipe is in order.\n")
    assert not (tmp_path / "runs").exists()


def test_missing_data_are_a_problem_among_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"name": "image_folder", "root": str(tmp_path / "photos"), "image_size": 16}
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/dog").mkdir()
    assert check(tmp_path, data=data, student={"model": "resnet9"}) == 2
    said = capsys.readouterr().out
    assert "2 problems" in said
    assert "holds no images" in said
    assert "resnet9" in said


def test_without_timing_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, "--no-timing") == 0
    assert " ms" not in capsys.readouterr().out
