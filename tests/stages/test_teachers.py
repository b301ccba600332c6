"""What the engine of a recipe does to teachers: cached, limited in views, in other arithmetic."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml

from compress import pipeline
from compress.data import ImageBatches, open_data
from compress.errors import UserError
from compress.recipe import Recipe
from compress.run.fields import step_fields
from compress.run.plan import make_plan
from compress.stages import inputs
from compress.stages import teacher as teacher_stage
from compress.stages.job import Job
from compress.storage.files import read_json, read_tensors, write_json
from compress.teacher import ensemble, inference
from tests.quick import quick_commands

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "classes": 3, "train_images": 96, "test_images": 60, "seed": 3},
    "teacher": {"model": "resnet14", "train": {"epochs": 6, "lr": 0.02, "batch_size": 16}},
    "student": {"model": "resnet8"},
    "distill": {
        "method": "kd",
        "train": {"epochs": 2, "lr": 0.05, "batch_size": 16},
    },
    "fuse": None,
    "account": None,
    "export": None,
}
CACHE = {"engine": {"compile": "never", "cache": {"max_gb": 1.0}}}


def run(folder: Path, out: str = "run", opts: tuple[str, ...] = (), **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    with quick_commands():
        assert pipeline.main([str(path), "--out", str(folder / out), "--workers", "0", *opts]) == 0
    return folder / out


def student(out: Path, label: str = "kd") -> dict[str, torch.Tensor]:
    return read_tensors(out / f"distill/{label}/student.safetensors")[0]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the teacher is shown, batch by batch."""
    seen: list[int] = []
    shows = inference.FastTeacher.__call__

    def counted(self: inference.FastTeacher, images: torch.Tensor) -> Any:
        seen.append(len(images))
        return shows(self, images)

    monkeypatch.setattr(inference.FastTeacher, "__call__", counted)
    return seen


def test_a_warm_cache_spares_the_teacher_and_changes_no_bit(
    tmp_path: Path, shown: list[int]
) -> None:
    data = {**RECIPE["data"], "augment": "none"}  # every view comes again: whole batches, in order
    plain = run(tmp_path, "plain", data=data)
    del shown[:]
    cold = run(tmp_path, "run", data=data, **CACHE)
    assert sum(shown) == 96, "the second epoch's targets are there"
    del shown[:]
    again = {**RECIPE["distill"], "compare": [{"name": "kd", "label": "again"}]}
    warm = run(tmp_path, "run", data=data, distill=again, **CACHE)
    assert not shown
    for label in ("kd", "again"):
        assert student(warm, label).keys() == student(plain).keys()
    first, second = student(cold), student(warm, "again")
    assert all(torch.equal(first[k], second[k]) for k in first)
    notes = "".join(read_json(warm / "distill/again/result.json")["measured"]["teaching"])
    assert "192 of 192 outputs were there" in notes


def test_a_cache_survives_and_says_where_it_cannot_serve(tmp_path: Path, shown: list[int]) -> None:
    distill = {**RECIPE["distill"], "compare": ["simkd"]}
    out = run(tmp_path, distill=distill, **CACHE)
    notes = read_json(out / "distill/simkd/result.json")["measured"]["teaching"]
    assert any("no teacher cache: the method reads the teacher's 'last_map'" in t for t in notes)
    assert [p.name for p in (out / "teacher_cache").glob("*/rows.bin")] == ["rows.bin"]
    assert not (out / "superseded").exists()


def test_few_views_are_met_again_and_again(tmp_path: Path, shown: list[int]) -> None:
    run(tmp_path, data={**RECIPE["data"], "views": 1}, **CACHE)
    assert sum(shown) == 96


def test_with_views_an_image_has_no_others() -> None:
    data = open_data(RECIPE["data"])

    def seen(views: int | None) -> list[set[int]]:
        batches = ImageBatches(
            data.train,
            data.preprocessing,
            batch_size=96,
            augment=["crop_flip", "crop_flip"],
            seed=0,
            device=torch.device("cpu"),
            views=views,
            views_seed=5,
        )
        views_of: list[set[int]] = [set() for _ in range(96)]
        for epoch in range(30):
            batch = next(batches.epoch(epoch))
            assert batch.view_numbers[0].max() < batches.views_per_image
            for ids in batch.view_ids:
                for index, view in zip(batch.index.tolist(), ids.tolist(), strict=True):
                    views_of[index].add(view)
        return views_of

    assert {len(views) for views in seen(3)} == {3}
    assert min(len(views) for views in seen(None)) > 20
    assert seen(3) == seen(3)
    assert len({tuple(sorted(views)) for views in seen(3)}) > 90, "each image has its own"


@pytest.mark.parametrize("arithmetic", ["bfloat16", "int8"])
def test_other_arithmetic_is_measured_and_told(tmp_path: Path, arithmetic: str) -> None:
    engine = {"teacher": arithmetic, "compile": "never", "cache": {"max_gb": 1.0}}
    out = run(tmp_path, engine=engine)
    notes = read_json(out / "distill/kd/result.json")["measured"]["teaching"]
    assert any(f"{arithmetic} against float32 on 60 images: logits" in t for t in notes), notes
    assert any("int8 with 7-bit weights" in t for t in notes) == (arithmetic == "int8")
    (cache,) = (out / "teacher_cache").glob("*/cache.json")
    known = "int8, 7-bit weights" if arithmetic == "int8" else arithmetic
    assert read_json(cache)["identity"]["arithmetic"] == [known, "cpu"]


def targets(recipe: Recipe) -> dict[str, str]:
    """What of the targets the result of a student depends on."""
    plan = make_plan(recipe)
    (step,) = [step for step in plan.steps if step.name == "distill/kd"]
    fields: dict[str, str] = step_fields(plan, step, version=1).result["targets"]
    return fields


def test_targets_of_8_bit_weights_are_not_taken_for_those_of_7() -> None:
    recipe = Recipe.model_validate({**RECIPE, "engine": {"teacher": "int8"}})
    assert targets(recipe)["engine.teacher"] == "int8, 7-bit weights"
    plain = Recipe.model_validate(RECIPE)
    assert targets(plain)["engine.teacher"] == "float32"


@pytest.mark.parametrize(("parts", "rows"), [(1, 16), (3, 5)])
def test_teachers_are_made_fast_for_the_rows_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int, rows: int
) -> None:
    rows_given: list[int | None] = []
    freezes = inference.make_fast

    def noted(*given: Any, rows: int | None = None, **options: Any) -> Any:
        rows_given.append(rows)
        return freezes(*given, rows=rows, **options)

    monkeypatch.setattr(ensemble, "make_fast", noted)
    train = {"epochs": 1, "lr": 0.05, "batch_size": 16, "accumulate": parts}
    run(
        tmp_path,
        teacher={"model": "resnet14", "train": {"epochs": 4, "lr": 0.05, "batch_size": 16}},
        distill={"method": "kd", "train": train},
    )
    assert rows_given == [rows]


def test_an_old_teachers_other_normalisation_is_told(tmp_path: Path) -> None:
    # Apart from its run, which vouches for the bytes of its files.
    old = tmp_path / "apart"
    copytree(run(tmp_path, "old", opts=("--until", "teacher")) / "teacher/0", old)
    teacher = {"checkpoint": str(old / "teacher.safetensors")}
    same = run(tmp_path, "same", opts=("--until", "teacher"), teacher=teacher)
    assert "learned from images of" not in (same / "log.txt").read_text()
    content = read_json(old / "teacher.json")
    content["preprocessing"]["std"] = [0.3, 0.2, 0.1]
    write_json(old / "teacher.json", content)
    other = run(tmp_path, "other", opts=("--until", "teacher"), teacher=teacher)
    said = "teacher.safetensors learned from images of std [0.3, 0.2, 0.1]"
    assert (other / "log.txt").read_text().count(said) == 1


def test_an_int8_teacher_on_a_gpu_is_refused_before_anything_is_opened() -> None:
    recipe = Recipe.model_validate({**RECIPE, "engine": {"teacher": "int8"}})
    job = Job(
        name="teacher",
        folder=Path(),
        run_folder=Path(),
        recipe=recipe,
        arguments={},
        device=torch.device("cuda"),
        workers=0,
        recipe_fingerprint="",
    )
    with pytest.raises(UserError, match="int8 runs on the CPU alone"):
        teacher_stage.run(job)


def test_a_compiled_run_learns_the_same(tmp_path: Path, compiled: list[str]) -> None:
    # Every kernel is translated and compiled: networks of two convolutions.
    own = {"model": "tests.compat.tiny:tiny"}
    train = {"epochs": 6, "lr": 0.1, "batch_size": 16}
    trained = run(tmp_path, "teacher", ("--until", "teacher"), teacher={**own, "train": train})
    teacher = {"checkpoint": str(trained / "teacher/0/teacher.safetensors")}
    losses = []
    for wish in ("never", "always"):
        # Few and small steps: rounding grows from step to step.
        train = {"epochs": 1, "lr": 0.005, "batch_size": 16}
        out = run(
            tmp_path,
            wish,
            teacher=teacher,
            student=own,
            distill={"method": "kd", "train": train},
            engine={"compile": wish},
        )
        line = (out / "distill/kd/metrics.jsonl").read_text().splitlines()[0]
        losses.append(yaml.safe_load(line)["loss"])
        assert "runs uncompiled" not in (out / "log.txt").read_text()
        assert len(compiled) == (0 if wish == "never" else 2), "student and teacher"
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch.compile was asked for."""
    compiled_types: list[str] = []
    compiles = torch.compile

    def noted(model: Any, **options: Any) -> Any:
        compiled_types.append(type(model).__name__)
        return compiles(model, **options)

    monkeypatch.setattr(torch, "compile", noted)
    return compiled_types


def test_parts_and_bfloat16_learn_about_the_same(tmp_path: Path) -> None:
    found = {}
    for name, changes in {
        "plain": {},
        "parts": {"accumulate": 2},
        "bfloat16": {"precision": "bfloat16"},
        "float16": {"precision": "float16"},
    }.items():
        train = {**RECIPE["distill"]["train"], "epochs": 1, **changes}
        teacher = tmp_path / "plain/teacher/0/teacher.safetensors"
        known = {"teacher": {"checkpoint": str(teacher)}} if teacher.exists() else {}
        out = run(tmp_path, name, distill={**RECIPE["distill"], "train": train}, **known)
        lines = (out / "distill/kd/metrics.jsonl").read_text().splitlines()
        found[name] = yaml.safe_load(lines[0])["loss"]
    for name, loss in found.items():
        assert loss == pytest.approx(found["plain"], rel=0.1), name


def test_turned_views_have_caches_of_their_own(
    tmp_path: Path, shown: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What belongs to one turn is never taken for another: the results are those of no cache."""
    sizes: list[int] = []
    monkeypatch.setattr(inputs, "compile_forward", lambda *_, rows, **__: sizes.append(rows()))
    method = {"name": "dlkd", "hidden_ratio": 0.1}
    more = {
        "data": {**RECIPE["data"], "augment": "none"},
        "distill": {**RECIPE["distill"], "method": method, "compare": []},
    }
    plain = run(tmp_path, "plain", **more)
    del shown[:]
    cached = run(tmp_path, "run", **more, **CACHE)
    assert sum(shown) == 4 * 96, "the second epoch's targets are there"
    first, second = student(plain, "dlkd"), student(cached, "dlkd")
    assert all(torch.equal(first[k], second[k]) for k in first)
    folders = [*(cached / "teacher_cache").glob("*/cache.json")]
    known = [read_json(path)["identity"] for path in folders]
    assert sorted(i.get("rotation", 0) for i in known) == [0, 90, 180, 270]
    assert sizes == [64, 64], "the student would be compiled for four turns of 16 images"
