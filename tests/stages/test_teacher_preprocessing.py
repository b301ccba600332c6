"""Teachers of one ensemble that read images of different sizes and normalisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from compress import pipeline
from compress.comparison.predictions import PREDICTIONS, read_predictions
from compress.data import Preprocessing, conversion
from compress.distill import Distillation
from compress.errors import UserError
from compress.model_files.published import own_preprocessing
from compress.recipe import Recipe
from compress.recipe.schema import TeacherPart
from compress.run.fields import recipe_fingerprint
from compress.run.part_checks import check_parts
from compress.run.stages import StageTable
from compress.stages.teacher import requested_preprocessing
from compress.storage.files import read_json, read_tensors
from compress.teacher import inference
from tests.methods import building

TRAIN = {"epochs": 4, "lr": 0.05, "batch_size": 16}
OWN = {"image_size": 24, "mean": [0.2, 0.3, 0.4], "std": [0.5, 0.4, 0.3]}
RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "classes": 3, "train_images": 96, "test_images": 60, "views": 2},
    "teacher": [
        {"model": "resnet8", "train": TRAIN},
        {"model": "resnet14", "train": TRAIN, "preprocessing": OWN},
    ],
    "student": {"model": "resnet8"},
    "distill": {
        "method": {"name": "crd", "negatives": 8},
        "compare": ["aveg"],
        "train": {"epochs": 2, "lr": 0.05, "batch_size": 16},
    },
    "engine": {"compile": "never", "cache": {"max_gb": 1.0}},
    "fuse": None,
    "account": {"latency": {"batch_sizes": [1], "rounds": 1, "warmup": 1}},
    "export": None,
}


def run(folder: Path, out: str, **changes: Any) -> Path:
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    assert pipeline.main([str(path), "--out", str(folder / out), "--workers", "0"]) == 0
    return folder / out


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("preprocessing"), "cached")


def test_each_teacher_is_described_and_accounted_as_it_reads(cached: Path) -> None:
    rows = read_json(cached / "teacher/result.json")["values"]["teachers"]
    assert "preprocessing" not in rows[0]
    assert rows[1]["preprocessing"]["image_size"] == 24
    described = read_json(cached / "teacher/1/teacher.json")
    assert described["input_shape"] == [3, 24, 24]
    assert described["preprocessing"]["mean"] == OWN["mean"]
    assert described["taps"]["last_map"]["height"] == 6
    assert read_json(cached / "distill/crd/student.json")["input_shape"] == [3, 16, 16]
    first, second, *_ = read_json(cached / "account/result.json")["values"]["networks"]
    assert "input_shape" not in first
    assert second["input_shape"] == [3, 24, 24]


def test_saved_predictions_are_of_the_images_that_each_teacher_reads(cached: Path) -> None:
    rows = read_json(cached / "teacher/result.json")["values"]["teachers"]
    saved = [read_predictions(cached / f"teacher/{i}/{PREDICTIONS}") for i in range(2)]
    shares = [100 * float(one.correct.mean()) for one in saved]
    assert shares == pytest.approx([row["top1_percent"] for row in rows])


def test_each_keeps_its_cache_which_changes_nothing_but_rounding(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        read_json(path)["identity"] for path in (cached / "teacher_cache").glob("*/cache.json")
    ]
    assert len(known) == 4, "one of each teacher for each of the two methods' taps"
    sizes = [identity["preprocessing"]["image_size"] for identity in known]
    assert sorted(sizes) == [16, 16, 24, 24]
    for identity in known:
        assert ("converted from" in identity) == (identity["preprocessing"]["image_size"] == 24)
    teachers = [
        {"checkpoint": str(cached / f"teacher/{i}/teacher.safetensors"), "preprocessing": "own"}
        for i in range(2)
    ]
    shows, seen = inference.FastTeacher.__call__, set()

    def noted(self: inference.FastTeacher, images: torch.Tensor) -> Any:
        seen.add(tuple(images.shape[1:]))
        return shows(self, images)

    monkeypatch.setattr(inference.FastTeacher, "__call__", noted)
    engine = {"compile": "never", "share_teacher": True}
    other = run(tmp_path, "shared", teacher=teachers, engine=engine)
    assert seen == {(3, 16, 16), (3, 24, 24)}
    for label in ("crd", "aveg"):
        one, two = (
            read_tensors(out / f"distill/{label}/student.safetensors")[0] for out in (cached, other)
        )
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    accuracies = [
        [
            row["top1_percent"]
            for row in read_json(out / "teacher/result.json")["values"]["teachers"]
        ]
        for out in (cached, other)
    ]
    assert accuracies[0] == accuracies[1]


def test_a_recipe_without_it_keeps_its_fingerprint_and_another_size_changes_it() -> None:
    plain = [{"model": "resnet8", "train": TRAIN}]
    recipes = [
        Recipe.model_validate({**RECIPE, "teacher": teachers})
        for teachers in (plain, [{**plain[0], "preprocessing": None}], RECIPE["teacher"][1:])
    ]
    assert not {"preprocessing", "seed"} & recipes[0].teacher[0].model_dump().keys()
    assert recipes[2].teacher[0].model_dump()["preprocessing"] == OWN
    first, second, third = map(recipe_fingerprint, recipes)
    assert first == second != third


def test_a_module_shows_each_teacher_its_own_images() -> None:
    student, teachers = building.networks(teachers=2)
    own = Preprocessing(24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    convert = conversion(building.PREPROCESSING, own)
    assert convert is not None
    method = building.METHODS["aveg"](building.context(student, teachers))
    weights = method.protocols["simkd"]
    task = building.Classification()
    module = Distillation(
        student, teachers, method, weights, task, kd_temperature=4.0, inputs=[None, convert]
    )
    images = building.first_batch(module).images[0]
    shown = module._teacher_views(building.first_batch(module))
    for network, (taps,), seen in zip(teachers, shown, (images, convert(images)), strict=True):
        assert taps is not None
        torch.testing.assert_close(taps.tensor("logits"), network(seen))


def test_own_is_what_the_publisher_says() -> None:
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = own_preprocessing("torchvision:resnet18", None, "DEFAULT")
    assert found == Preprocessing(224, *imagenet, resize=256)
    pytest.importorskip("timm")
    found = own_preprocessing("timm:resnet10t", None, "DEFAULT")
    assert found is not None
    assert (found.mean, found.std, found.image_size) == (*imagenet, 176)


def test_where_nobody_says_it_is_refused_before_anything_runs() -> None:
    part = {"model": "resnet8", "train": TRAIN, "preprocessing": "own"}
    with pytest.raises(UserError, match=r"nobody does of resnet8; give image_size, mean and std"):
        requested_preprocessing(TeacherPart.model_validate(part), building.PREPROCESSING)
    recipe = Recipe.model_validate({**RECIPE, "teacher": [RECIPE["teacher"][0], part]})
    (problem,) = check_parts(recipe, StageTable({}))
    assert problem.startswith("teacher.1.preprocessing: `own` is what")
