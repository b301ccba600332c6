"""Recipes of students that segment: through every stage, resumed, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from compress import pipeline
from compress.engine.checkpoint import Checkpoint, trained_state
from compress.model_files.artifacts import load_student
from compress.pipeline import STAGES
from compress.recipe import check_shape
from compress.run.checks import check_recipe
from compress.run.probe import probe
from compress.storage.files import read_json
from export.bundle import predict
from export.verify.command import verify_bundle
from tests.quick import quick_commands

TRAIN = {"epochs": 2, "lr": 0.05, "batch_size": 8, "schedule": "poly"}
RECIPE: dict[str, Any] = {
    "task": "segmentation",
    "data": {"name": "digit_scenes", "digits": 2, "scenes": 40, "test_scenes": 10},
    "teacher": {
        "model": {"name": "pspnet", "encoder": "resnet14", "width": 8},
        "checkpoint": "teacher.safetensors",
    },
    "student": {"model": {"name": "pspnet", "encoder": "resnet8", "width": 8}},
    "distill": {"method": {"name": "kd", "temperature": 1}, "train": TRAIN, "compare": ["none"]},
    "account": {"latency": {"batch_sizes": [1], "rounds": 2, "warmup": 1}},
    "export": {"compile_latency": False, "int8": {"max_miou_drop": 50.0}},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that are better than one class everywhere."""
    folder = tmp_path_factory.mktemp("teacher")
    train = {**TRAIN, "epochs": 6, "lr": 0.1}
    model = {"model": RECIPE["teacher"]["model"], "train": train}
    data = {**RECIPE["data"], "scenes": 120}
    recipe = {**RECIPE, "teacher": model, "data": data}
    (folder / "teacher.yaml").write_text(yaml.safe_dump(recipe))
    place = str(folder / "run")
    with quick_commands():
        code = pipeline.main(
            [str(folder / "teacher.yaml"), "--out", place, "--until", "teacher", "--workers", "0"]
        )
    assert code == 0
    return folder / "run" / "teacher" / "0" / "teacher.safetensors"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "teacher.safetensors").write_bytes(teacher.read_bytes())
    monkeypatch.chdir(tmp_path)


def run(*options: str, **changes: Any) -> int:
    Path("dense.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    with quick_commands():
        return pipeline.main(["dense.yaml", "--out", "run", "--workers", "0", *options])


def values(stage: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(Path("run") / stage / "result.json")["values"]
    return content


def test_every_stage_runs_verifies_and_is_skipped_the_second_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run() == 0
    row = values("teacher")["teachers"][0]
    assert 33 < row["miou_percent"] <= 100
    assert row["model"] == "pspnet"
    for label in ("kd", "none"):
        student = values(f"distill/{label}")
        assert 0 < student["miou_percent"] <= 100
        assert "top1_percent" not in student
        assert {"ce", "auxiliary"} <= {
            *yaml.safe_load(Path(f"run/distill/{label}/metrics.jsonl").read_text().split("\n")[0])[
                "terms"
            ]
        }
        with np.load(f"run/distill/{label}/predictions.npz") as saved:
            assert saved["confusion"].shape == (10, 3, 3)
    state = load_student(Path("run/distill/kd"))
    assert not [key for key in state.network.state_dict() if "auxiliary" in key]
    assert values("fuse")["students"][0]["folded_max_abs"] < 1e-3
    bundle = Path("run/export/bundle")
    report = verify_bundle(bundle, threads=[1])
    assert report["failures"] == []
    assert {row["file"] for row in report["rows"]} == {"student.onnx", "student.int8.onnx"}
    capsys.readouterr()
    assert run() == 0
    assert capsys.readouterr().out.count("done before, skipped") == 6


def test_a_bundle_writes_masks_of_photos_of_any_size(capsys: pytest.CaptureFixture[str]) -> None:
    distill = {**RECIPE["distill"], "compare": []}
    assert run(distill=distill, export={**RECIPE["export"], "raw_pixels": True}) == 0
    pixels = torch.randint(0, 256, (40, 70, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save("photo.png")
    capsys.readouterr()
    arguments = ["run/export/bundle", "photo.png", "--masks", "masks", "--overlays", "overlays"]
    assert predict.main(arguments) == 0
    assert "background" in capsys.readouterr().out
    with Image.open("masks/photo.png") as opened:
        mask = np.asarray(opened)
    assert mask.shape == (40, 70)
    assert mask.max() < 3
    with Image.open("overlays/photo.png") as opened:
        assert opened.size == (70, 40)
    network = load_student(Path("run/distill/kd")).network
    from compress.data import Preprocessing
    from compress.tasks import Segmentation

    own = read_json(Path("run/distill/kd/student.json"))["preprocessing"]
    images = Preprocessing.from_dict(own).normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        expected = Segmentation().classes(network, images, (40, 70))[0].numpy()
    assert (mask == expected).mean() > 0.999
    assert predict.main(["run/export/bundle", "photo.png", "--embed", "x.npz"]) == 2


def test_an_interrupted_training_goes_on_to_the_same_student(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an adversary, whose optimiser's state is part of it."""
    distill = {"method": "skd", "train": {**TRAIN, "epochs": 3}}
    assert run("--until", "distill", distill=distill) == 0
    whole = trained_state(Path("run/distill/skd"))
    Path("run").rename("whole")
    save = Checkpoint.save

    def stop(self: Checkpoint, history: Any, keep_best: Any) -> None:
        save(self, history, keep_best)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        assert run("--until", "distill", distill=distill) == 130
    assert run("--until", "distill", distill=distill) == 0
    again = trained_state(Path("run/distill/skd"))
    assert any(key.startswith("method.discriminator.") for key in whole)
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_students_in_lockstep_are_those_that_train_alone() -> None:
    distill = {**RECIPE["distill"], "compare": ["cwd"]}
    assert run("--until", "distill", distill=distill, engine={"teacher": "bfloat16"}) == 0
    Path("run").rename("alone")
    engine = {"share_teacher": True, "teacher": "bfloat16"}
    assert run("--until", "distill", distill=distill, engine=engine) == 0
    for label in ("kd", "cwd"):
        alone, beside = (trained_state(Path(run, "distill", label)) for run in ("alone", "run"))
        assert all(torch.equal(alone[key], beside[key]) for key in alone)


def test_windows_and_validation_are_judged() -> None:
    data = {**RECIPE["data"], "validation": 8, "window": 48, "scales": [0.5, 1.5], "flip": False}
    distill = {**RECIPE["distill"], "compare": []}
    assert run("--until", "distill", data=data, distill=distill) == 0
    rows = [
        yaml.safe_load(line)
        for line in Path("run/distill/kd/metrics.jsonl").read_text().splitlines()
    ]
    assert all(0 < row["validation_miou_percent"] <= 100 for row in rows)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"name": "digits"}}, "task segmentation takes camvid, cityscapes, digit_scenes"),
        ({"task": "classification"}, "digit_scenes has masks, which `task: segmentation` learns"),
        (
            {"distill": {"method": "simkd", "train": TRAIN}},
            "simkd relates whole images, not pixels; for segmentation there are none, kd",
        ),
        ({"data": {**RECIPE["data"], "augment": "crop_flip"}}, "would leave masks as they are"),
        ({"data": {**RECIPE["data"], "labels": False}}, "segmentation learns from masks"),
        ({"data": {**RECIPE["data"], "classes": 2}}, "masks have the classes that they have"),
        ({"data": {**RECIPE["data"], "scales": [2.0, 1.0]}}, "has `scales` that descend"),
        ({"student": {"model": "resnet8"}}, "does not give logits of shape (images, classes, h"),
        (
            {"student": {"model": {"name": "pspnet", "encoder": "resnet9"}}},
            "unknown model 'resnet9'",
        ),
        (
            {
                "task": "classification",
                "data": {"name": "digits"},
                "distill": {"method": "cwd", "train": TRAIN},
            },
            "cwd is for `task: segmentation`",
        ),
        (
            {"transfer": [{"task": "knn", "data": {"name": "digit_scenes", "classes": 3}}]},
            "transfer: takes encoders of students that classify or embed",
        ),
        (
            {"distill": {"method": "skd", "train": {**TRAIN, "accumulate": 2}}},
            "skd relates the images of a batch",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    changes: dict[str, Any], sentence: str
) -> None:
    raw = {**RECIPE, **changes}
    recipe, problems = check_shape(yaml.safe_load(yaml.safe_dump(raw)))
    if recipe is not None:
        problems = check_recipe(recipe, STAGES)
    if recipe is not None and not problems:
        problems = probe(recipe)[1]
    assert any(sentence in problem for problem in problems), problems


def test_images_of_several_sizes_go_through_every_stage() -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for number in range(count):
            height, width = (40, 56) if number % 2 else (48, 40)
            mask = np.kron(draw.integers(0, 2, (height // 8, width // 8)), np.ones((8, 8)))
            photo = np.stack([mask * 200, mask * 0 + 60, mask * 90], 2) + draw.integers(0, 9)
            for folder, values in ((split, photo), (f"{split}annot", mask)):
                Path("own", folder).mkdir(parents=True, exist_ok=True)
                place = Path("own", folder, f"{number}.png")
                Image.fromarray(values.astype(np.uint8)).save(place)
    data = {"name": "mask_folders", "root": "own", "class_names": ["dark", "light"]}
    train = {**TRAIN, "epochs": 3, "batch_size": 4}
    changes: dict[str, Any] = {
        "data": {**data, "image_size": 32},
        "teacher": {"model": RECIPE["teacher"]["model"], "train": {**train, "epochs": 8}},
        "distill": {"method": "none", "train": train},
    }
    assert run(**changes) == 0
    report = verify_bundle(Path("run/export/bundle"), data=Path("own"), threads=[1])
    assert report["failures"] == []
