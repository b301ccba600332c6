"""The command from recipe to report: every stage, skipping, redoing, resuming, refusing."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml

from compress import methods, pipeline
from compress.comparison import read_predictions
from compress.models import build
from compress.storage.files import read_json, read_tensors, write_json
from compress.storage.fingerprints import fingerprint_of
from compress.storage.integrity import record, seal
from tests.export.tracing import traced_exports
from tests.methods.throwaway import ThreeViews, TwoTeachers
from tests.processes import start
from tests.quick import quick_commands
from tests.waiting import wait_until

TRAIN = {"epochs": 4, "lr": 0.05, "batch_size": 16}
TINY: dict[str, Any] = {
    "data": {
        "name": "digits", "classes": 3, "train_images": 120, "test_images": 60, "augment": "crop",
    },
    "teacher": {"model": "resnet14", "train": {"epochs": 8, "lr": 0.02, "batch_size": 16}},
    "student": {"model": "resnet8"},
    "distill": {"method": "simkd", "train": TRAIN, "compare": ["none", "kd"]},
    "account": {"latency": {"batch_sizes": [1, 4], "rounds": 2, "warmup": 1}},
    # One of 60 images is more than the default allows, and rounding decides about one. What int8
    # may cost has its own tests: tests/export/test_export_stage.py.
    "export": {
        "int8": {"max_top1_drop": 100, "min_agreement_percent": 0, "max_difference": 100},
        "compile_latency": False,
    },
}  # fmt: skip
SCENES = {"name": "digit_scenes", "classes": 2, "train_images": 4, "test_images": 4}
TRANSFER = [
    {"task": "linear_probe", "data": {"name": "digit_scenes", "classes": 3}, "train": TRAIN},
    {"task": "detection", "data": SCENES, "train": {"epochs": 1, "lr": 0.01, "batch_size": 2}},
    {"task": "segmentation", "data": SCENES, "train": {"epochs": 1, "lr": 0.01, "batch_size": 2}},
]


def write(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def run(recipe: Path, out: Path, *options: str) -> int:
    with quick_commands():
        return _run(recipe, out, *options)


def _run(recipe: Path, out: Path, *options: str) -> int:
    return pipeline.main([str(recipe), "--out", str(out), "--workers", "0", *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and its finished run through every stage; copy it before changing it."""
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = write(folder, transfer=TRANSFER)
    with traced_exports():
        assert _run(recipe, folder / "run") == 0
    return recipe, folder / "run"


@pytest.fixture
def copied(done: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    recipe, out = done
    shutil.copytree(out, tmp_path / "run")
    shutil.copy(recipe, tmp_path / recipe.name)
    return tmp_path / recipe.name, tmp_path / "run"


def results(out: Path) -> dict[str, Any]:
    return {
        path.parent.relative_to(out).as_posix(): read_json(path)
        for path in sorted(out.rglob("result.json"))
        if "superseded" not in path.parts
    }


def test_every_stage_has_a_result(done: tuple[Path, Path]) -> None:
    assert set(results(done[1])) == {
        "teacher", "distill/simkd", "distill/none", "distill/kd", "fuse", "account", "export",
        "transfer/linear_probe", "transfer/detection", "transfer/segmentation",
    }  # fmt: skip
    assert all("seconds" in result["measured"] for result in results(done[1]).values())


def test_predictions_of_every_network_are_saved_and_equal_when_made_again(
    copied: tuple[Path, Path],
) -> None:
    recipe, out = copied
    found = results(out)
    of_teacher = found["teacher"]["values"]["teachers"][0]
    rows = {f"distill/{label}": found[f"distill/{label}"]["values"] for label in ("kd", "none")}
    for name, row in {"teacher/0": of_teacher, **rows}.items():
        saved = read_predictions(out / name / "predictions.npz")
        assert 100 * saved.correct.mean() == pytest.approx(row["top1_percent"])
        stage, _, file = f"{name}/predictions.npz".rpartition("/" if name != "teacher/0" else "/0/")
        assert f"0/{file}" in found[stage]["files"] or file in found[stage]["files"]
    before = (out / "distill/kd/predictions.npz").read_bytes()
    (out / "distill/kd/predictions.npz").unlink()
    assert run(recipe, out, "--until", "distill") == 0  # from the checkpoint: nothing is trained
    assert (out / "distill/kd/predictions.npz").read_bytes() == before
    assert results(out)["distill/kd"]["values"] == found["distill/kd"]["values"]


def test_a_module_that_learned_beside_banks_ships_merged(tmp_path: Path) -> None:
    """Fuse proves it from a checkpoint with banks, which nothing that ships has."""
    method = {"name": "norm_crd", "copies": 2, "negatives": 20, "weights": {"kd": 1.0}}
    distill = {"method": method, "train": {**TRAIN, "epochs": 2}}
    recipe = write(tmp_path, distill=distill, export={"int8": None, "compile_latency": False})
    with traced_exports():
        assert run(recipe, tmp_path / "run", "--until", "export") == 0
    found = results(tmp_path / "run")
    (row,) = found["fuse"]["values"]["students"]
    assert 0 < row["fused_max_abs"] <= 1e-3 and not row["not_folded"]
    counted = {n["label"]: n["parameters"] for n in found["account"]["values"]["networks"]}
    assert counted["norm_crd"] == counted["student"] < counted["teacher"]
    state, _ = read_tensors(tmp_path / "run/distill/norm_crd/student.safetensors")
    assert {key.split(".")[0] for key in state} == {"encoder", "classifier"}
    assert (tmp_path / "run/export/bundle/student.onnx").is_file()


def test_a_second_run_skips_everything(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert run(recipe, out) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 10
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}


def test_an_init_and_a_seed_more_train_nothing_else_anew(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    before, first = results(out), out / "transfer/linear_probe"
    outcomes = {p: p.stat().st_mtime_ns for p in first.glob("*/*/outcome.json")}
    probe = {**TRANSFER[0], "init": ["distilled", "alone", "scratch", "kd"], "seeds": 2}
    grown = write(recipe.parent, transfer=[probe, *TRANSFER[1:]])
    assert run(grown, out) == 0
    assert capsys.readouterr().out.count("done before, skipped") == 9
    after = {p: p.stat().st_mtime_ns for p in first.glob("*/*/outcome.json")}
    assert outcomes.items() < after.items() and len(after) == 8
    rows = results(out)["transfer/linear_probe"]["values"]["rows"]
    assert [row["init"] for row in rows] == ["distilled", "alone", "scratch", "kd"]

    # And back: the same result from the same trainings.
    assert run(write(recipe.parent, transfer=TRANSFER), out) == 0
    result = results(out)["transfer/linear_probe"]
    assert result["values"] == before["transfer/linear_probe"]["values"]
    assert after == {p: p.stat().st_mtime_ns for p in first.glob("*/*/outcome.json")}
    assert not (out / "superseded").exists()
    text = (out / "report.md").read_text()
    assert "transfer/detection/distilled/seed-0/distilled.png" in text
    assert "transfer/segmentation/scratch/seed-0/masks.png" in text


def test_the_numbers_agree_with_each_other(done: tuple[Path, Path]) -> None:
    stages = results(done[1])
    account = {n["label"]: n for n in stages["account"]["values"]["networks"]}
    simkd, teacher = account["simkd"], account["teacher"]
    assert simkd["pruning_ratio_percent"] == pytest.approx(
        100 * (1 - simkd["parameters"] / teacher["parameters"])
    )
    assert account["kd"]["parameters"] == account["student"]["parameters"]
    export = stages["export"]["values"]
    assert export["top1_agreement_percent"] == 100
    shipped = stages[f"distill/{export['student']}"]["values"]
    assert export["torch_top1_percent"] == shipped["top1_percent"]
    recommended = read_json(done[1] / "report.json")["values"]["recommendation"]
    assert export["student"] == recommended["label"] and export["remark"] is None
    for row in stages["fuse"]["values"]["students"]:
        assert row["fused_max_abs"] < 1e-4
    for task in TRANSFER:
        rows = stages[f"transfer/{task['task']}"]["values"]["rows"]
        assert [r["init"] for r in rows] == ["distilled", "alone", "scratch"]
        assert [r["matched_percent"] for r in rows] == [100, 100, 0]
        assert {r["against"]["reference"] for r in rows if r["against"]} == {"alone"}
        assert all(r["against"]["over_images"] for r in rows if r["against"])


def test_the_onnx_file_stands_alone(done: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(done[1] / "export/bundle/student.onnx", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    assert session.run(None, {"images": torch.zeros(3, 3, 16, 16).numpy()})[0].shape == (3, 3)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["0", "1", "2"]


def test_the_report_is_written_with_every_student(done: tuple[Path, Path]) -> None:
    text = (done[1] / "report.md").read_text()
    html = (done[1] / "report.html").read_text()
    for label in ("simkd", "kd", "none", "detection", "segmentation"):
        assert label in text
        assert label in html
    report = read_json(done[1] / "report.json")
    assert {"values", "measured"} <= set(report)


def test_a_student_that_reads_no_teacher_is_not_redone_for_another(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    digests = {name: _digest(out, name) for name in ("none", "kd")}
    longer = ("--set", "teacher.train.epochs=9", "--until", "distill")
    assert run(recipe, out, *longer) == 0
    printed = capsys.readouterr().out
    assert "teacher: redone (changed: teacher.0.train.epochs (8 -> 9))" in printed
    assert "distill/none: done before, skipped" in printed
    assert "distill/kd: redone (changed: inputs.teacher" in printed
    # Trained anew beside the other teacher, it is bit for bit the same network.
    assert run(recipe, out, *longer, "--fresh", "distill/none") == 0
    assert _digest(out, "none") == digests["none"]
    assert _digest(out, "kd") != digests["kd"]


def test_a_student_alone_of_an_earlier_version_is_not_trained_again(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    folder = out / "distill/none"
    fields = {**read_json(folder / "fields.json"), "inputs": {"teacher": "0123"}}
    write_json(folder / "fields.json", fields)
    result = read_json(folder / "result.json")
    result["files"]["fields.json"] = record(folder / "fields.json")
    write_json(folder / "result.json", seal({**result, "fingerprint": fingerprint_of(fields)}))
    assert run(recipe, out, "--until", "distill") == 0
    assert "distill/none: done before, skipped" in capsys.readouterr().out
    assert run(recipe, out, "--set", "distill.train.lr=0.04", "--until", "distill") == 0
    assert "distill/none: redone (changed: " in capsys.readouterr().out


def _digest(out: Path, label: str) -> str:
    digest: str = read_json(out / f"distill/{label}/result.json")["values"]["sha256"]
    return digest


def test_a_teacher_at_chance_ends_the_run_unless_that_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"model": "resnet14", "train": {"epochs": 1, "lr": 1e-9, "batch_size": 16}}
    recipe = write(tmp_path, teacher=teacher)
    assert run(recipe, tmp_path / "run", "--until", "teacher") == 2
    assert "`teacher: {allow_chance_level: true}` goes on with it" in _plain(
        capsys.readouterr().out
    )
    weights = (tmp_path / "run/teacher/0/checkpoint.safetensors").read_bytes()
    allowed = ("--set", "teacher.allow_chance_level=true", "--until", "teacher")
    assert run(recipe, tmp_path / "run", *allowed) == 0
    said = capsys.readouterr().out
    assert "the recipe allows that" in said
    assert "redone" not in said
    assert (tmp_path / "run/teacher/0/checkpoint.safetensors").read_bytes() == weights


def test_ten_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes: dict[str, Any] = {
        "seeds": 0,  # key of the recipe
        "data": {"name": "digits", "clases": 3},  # key of the data
        "teacher": {"model": "resnet15", "train": {"epochs": "8", "lr": 0.02}},  # name, type
        "student": {"model": "resnet8", "weight": "x"},  # key beside a model
        "distill": {
            "metod": "kd",  # key beside the method
            "method": {"name": "simkdd"},  # name
            "train": {"epochs": 4, "lr": 0.05, "optimizer": "sgdd"},  # name in a training
            "compare": ["none", {"name": "kd", "temperatur": 4}],  # argument of a method
        },
        "export": {"int8": {"max_top1_drop": -1}},  # value
    }
    assert run(write(tmp_path, **mistakes), tmp_path / "run") == 2
    said = _plain(capsys.readouterr().out)
    assert "has 10 problems" in said
    for words in (
        "seeds: unknown key",
        "data.clases: unknown key",
        "teacher.model: unknown model 'resnet15'",
        "teacher.train.epochs: input should be a valid integer",
        "student.weight: unknown key",
        "distill.metod: unknown key",
        "distill.method: unknown name 'simkdd'",
        "distill.train.optimizer: unknown optimiser 'sgdd'",
        "distill.compare.1.temperatur: unknown key",
        "export.int8.max_top1_drop: input should be",
    ):
        assert words in said


def test_a_changed_field_redoes_its_stage_and_what_follows(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    old = (out / "distill/simkd/student.safetensors").read_bytes()
    assert run(recipe, out, "--set", "distill.method.reduction=4", "--until", "export") == 0
    printed = capsys.readouterr().out
    assert "distill/simkd: redone (changed: method.reduction (None -> 4))" in printed
    assert "distill/kd: done before, skipped" in printed
    assert "fuse: redone (changed: inputs.distill/simkd" in printed
    kept = [p for p in (out / "superseded").iterdir() if p.name.endswith("distill-simkd")]
    assert (kept[0] / "student.safetensors").read_bytes() == old
    # Going back restores the old result instead of training again.
    assert run(recipe, out, "--until", "distill") == 0
    assert "what was done earlier fits again, restored" in capsys.readouterr().out
    assert (out / "distill/simkd/student.safetensors").read_bytes() == old


def test_removing_a_method_changes_no_other_bits(copied: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = copied
    alone = write(tmp_path / "alone", distill={**TINY["distill"], "compare": []})
    assert run(alone, tmp_path / "alone/run", "--until", "distill") == 0
    for name in ("teacher/0/teacher", "distill/simkd/student"):
        one, other = (
            (folder / f"{name}.safetensors").read_bytes()
            for folder in (out, tmp_path / "alone/run")
        )
        assert one == other, name


def test_fresh_redoes_one_stage_with_the_same_numbers(copied: tuple[Path, Path]) -> None:
    recipe, out = copied
    before = results(out)
    assert run(recipe, out, "--fresh", "distill/kd", "--until", "fuse") == 0
    after = results(out)
    assert after["distill/kd"]["values"] == before["distill/kd"]["values"]
    # The same result again: what follows from it still stands.
    assert [p.name for p in (out / "superseded").iterdir()] == ["001-distill-kd"]


def test_what_follows_is_redone_where_a_result_differs(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    path = out / "distill/kd/result.json"
    result = read_json(path)
    result["values"]["sha256"] = "other weights"
    path.write_text(json.dumps(seal(result)))
    assert run(recipe, out, "--until", "fuse") == 0
    printed = capsys.readouterr().out
    assert "distill/kd: done before, skipped" in printed
    assert "fuse: redone (changed: inputs.distill/kd" in printed


def test_a_recipe_may_insist_on_a_student_and_the_bundle_says_so(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    recommended = results(out)["export"]["values"]["student"]
    other = next(label for label in ("simkd", "none", "kd") if label != recommended)
    assert run(recipe, out, "--set", f"export.student={other}", "--until", "export") == 0
    assert "export: redone (changed: inputs.distill/" in capsys.readouterr().out
    export = results(out)["export"]["values"]
    assert export["student"] == other
    assert export["remark"].startswith(f"{other} was asked for; by the rule of the report")
    card = (out / "export/bundle/MODEL_CARD.md").read_text()
    assert f"**Not the recommended student**: {other} was asked for" in card
    assert run(recipe, out, "--set", "export.student=kb", "--check") == 2
    assert "export.student: no student 'kb'" in capsys.readouterr().out


def test_any_student_can_be_exported(done: tuple[Path, Path], tmp_path: Path) -> None:
    from export.__main__ import main

    out = tmp_path / "kd"
    with traced_exports():
        assert main([str(done[1]), "--student", "kd", "--no-int8", "--out", str(out)]) == 0
    assert (out / "student.onnx").is_file()
    assert main([str(done[1]), "--student", "kdd", "--out", str(tmp_path / "x")]) == 2


def test_an_export_replaces_no_file_unasked(done: tuple[Path, Path], tmp_path: Path) -> None:
    from export.__main__ import main

    out = tmp_path / "notes.yaml"
    out.write_text("mine")
    assert main([str(done[1]), "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    # What is no bundle is not replaced when asked either.
    assert main([str(done[1]), "--out", str(out), "--force"]) == 2
    assert out.read_text() == "mine"


def test_a_report_shows_no_result_of_an_earlier_recipe(copied: tuple[Path, Path]) -> None:
    recipe, out = copied
    changed = "teacher.train.epochs=9"
    assert run(recipe, out, "--set", changed, "--until", "teacher") == 0
    assert "simkd" not in json.dumps(read_json(out / "report.json")["values"])
    # The students are still there, and the report is whole again when the recipe is.
    assert (out / "distill/simkd/result.json").is_file()
    assert run(recipe, out, "--until", "teacher") == 0
    assert "simkd" in json.dumps(read_json(out / "report.json")["values"])


def test_a_teacher_inside_its_own_run_is_refused(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = copied
    given = f"teacher={{checkpoint: {out}/teacher/0/teacher.safetensors}}"
    assert run(recipe, out, "--set", given) == 2
    assert "inside this very run directory" in _plain(capsys.readouterr().out)
    assert (out / "teacher/0/teacher.safetensors").is_file()


def test_a_student_can_be_the_next_teacher(done: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = done[1] / "distill/simkd/student.safetensors"
    recipe = write(tmp_path, teacher={"checkpoint": str(checkpoint)})
    assert run(recipe, tmp_path / "run", "--until", "distill/simkd") == 0
    teacher = results(tmp_path / "run")["teacher"]["values"]["teachers"][0]
    expected = results(done[1])["distill/simkd"]["values"]["top1_percent"]
    assert teacher["top1_percent"] == expected


def test_a_weights_file_of_other_classes_is_refused_before_any_student_trains(
    done: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = done[1] / "teacher/0/teacher.safetensors"
    recipe = write(
        tmp_path, data={**TINY["data"], "classes": 4, "test_images": 40},
        teacher={"model": "resnet14", "checkpoint": str(checkpoint)},
    )  # fmt: skip
    assert run(recipe, tmp_path / "run") == 2
    assert "its file has 3 classes, the data have 4" in _plain(capsys.readouterr().out)


def test_local_weights_start_teacher_and_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a training script leaves them: wrapped, prefixed, and for other classes."""
    for name in ("resnet14", "resnet8"):
        state = build(name, num_classes=7, seed=5).state_dict()
        wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(wrapped, tmp_path / f"{name}.pth")
    train = TINY["teacher"]["train"]
    recipe = write(
        tmp_path,
        teacher={"model": "resnet14", "weights": str(tmp_path / "resnet14.pth"), "train": train},
        student={"model": "resnet8", "weights": str(tmp_path / "resnet8.pth")},
    )
    assert run(recipe, tmp_path / "run", "--until", "distill/simkd") == 0
    printed = _plain(capsys.readouterr().out)
    for name in ("resnet14", "resnet8"):
        assert f"{name}: classifier of 7 classes replaced by a new one of 3" in printed
    assert results(tmp_path / "run")["teacher"]["values"]["teachers"][0]["source"].endswith(
        "resnet14.pth, then trained"
    )


def test_a_teacher_at_chance_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, teacher={"model": "resnet14", "train": {"epochs": 1, "lr": 1e-9}})
    assert run(recipe, tmp_path / "run") == 2
    printed = _plain(capsys.readouterr().out)
    assert re.search(r"teacher is at chance: \d+\.\d+ % on 60 test images of 3 classes", printed)
    assert "Traceback" not in printed


def test_phases_views_and_copies_run_through_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, method in (("threeviews", ThreeViews), ("two", TwoTeachers)):
        monkeypatch.setitem(methods.METHODS, name, method)  # type: ignore[call-overload]
    teacher = TINY["teacher"]
    changed = {**TINY["distill"], "method": "threeviews", "compare": []}
    assert (
        run(write(tmp_path, "three", distill=changed), tmp_path / "three", "--until", "fuse") == 0
    )
    state, _ = read_tensors(tmp_path / "three/distill/threeviews/checkpoint.safetensors")
    assert (
        int(state["module.method.steps"]) == 4 * 8
    )  # four epochs of eight steps, none in the phase
    assert (tmp_path / "three/distill/threeviews/phase-warm-up/metrics.jsonl").is_file()

    changed = {**TINY["distill"], "method": "two", "compare": []}
    recipe = write(tmp_path, "two", teacher=[teacher, teacher], distill=changed)
    assert run(recipe, tmp_path / "two", "--until", "fuse") == 0
    rows = results(tmp_path / "two")["teacher"]["values"]["teachers"]
    assert [row["label"] for row in rows] == ["teacher 1", "teacher 2"]


def test_validation_selects_the_epoch(tmp_path: Path) -> None:
    recipe = write(tmp_path, data={**TINY["data"], "validation": 30})
    assert run(recipe, tmp_path / "run", "--until", "fuse") == 0
    rows = [
        json.loads(line)
        for line in (tmp_path / "run/distill/kd/metrics.jsonl").read_text().splitlines()
    ]
    best = max(rows, key=lambda row: row["validation_top1_percent"])
    values = results(tmp_path / "run")["distill/kd"]["values"]
    assert values["selected_epoch"] == best["epoch"]
    assert values["top1_percent"] == best["top1_percent"]


def test_trials_differ_and_share_the_teacher(tmp_path: Path) -> None:
    recipe = write(tmp_path, trials=2, distill={**TINY["distill"], "compare": []})
    assert run(recipe, tmp_path / "run", "--until", "distill") == 0
    one, two = (
        (tmp_path / f"run/distill/{name}/student.safetensors").read_bytes()
        for name in ("simkd", "simkd-trial1")
    )
    assert one != two
    assert len(list((tmp_path / "run/teacher").glob("[0-9]"))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--until", "distil"], "unknown stage 'distil'.*did you mean 'distill'"),
        (["--fresh", "train"], "unknown stage 'train'"),
        (["--device", "tpu"], "--device tpu cannot be used here"),
        (["--device", "meta"], "--device meta cannot be used here"),
        (["--set", "distill.train.lr=.inf"], "no finite number"),
        (["--set", "..=1"], "expected dotted.path=value"),
        (["--set", "student.model=torchvision:vit_b_16"], "cannot be used at 16 pixels"),
        (["--set", "distill.train.epochs=-1"], "distill.train.epochs: .*got -1"),
        (["--set", "seed=!!python/name:os.system"], "--set seed, line 1: YAML tag"),
    ],
)
def test_bad_options_get_one_message_and_exit_code_2(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path), tmp_path / "run", *options) == 2
    assert re.search(words, _plain(capsys.readouterr().out))
    assert not (tmp_path / "run").exists(), "nothing is made before the recipe is in order"


def test_check_prints_stages_taps_and_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path), tmp_path / "run", "--check") == 0
    assert "layer3" not in capsys.readouterr().out
    assert run(write(tmp_path), tmp_path / "run", "--check", "-v") == 0
    printed = capsys.readouterr().out
    for words in ("distill/simkd", "layer3", "64 x 4 x 4", "projector", "The recipe is in order."):
        assert words in printed
    assert not (tmp_path / "run").exists()


def test_taps_of_a_recipe_are_used_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path, student={"model": "resnet8", "taps": {"last_map": "layer2"}})
    assert run(recipe, tmp_path / "run", "--until", "fuse") == 0
    described = read_json(tmp_path / "run/distill/simkd/student.json")
    assert described["taps"]["last_map"]["path"] == "layer2"
    state, _ = read_tensors(tmp_path / "run/distill/simkd/student.safetensors")
    assert not any(name.startswith("encoder.layer3") for name in state)
    recipe = write(tmp_path, student={"model": "resnet8", "taps": {"stages": ["layer9"]}})
    capsys.readouterr()
    assert run(recipe, tmp_path / "other") == 2
    assert "no feature map at 'layer9'; did you mean 'layer" in _plain(capsys.readouterr().out)


def test_a_method_that_cannot_be_built_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"name": "simkd", "reduction": 1000}
    recipe = write(tmp_path, distill={**TINY["distill"], "method": method})
    assert run(recipe, tmp_path / "run") == 2
    assert "reduction is 1 to 64, got 1000" in _plain(capsys.readouterr().out)


def test_interrupt_ends_cleanly_and_the_run_continues(tmp_path: Path) -> None:
    teacher = {"model": "resnet8", "train": {"epochs": 3000, "lr": 0.05}}
    recipe, out = write(tmp_path, teacher=teacher), tmp_path / "run"
    arguments = ["-m", "compress.pipeline", str(recipe), "--out", str(out), "--until", "teacher"]
    metrics = out / "teacher/0/metrics.jsonl"
    with start(arguments, tmp_path / "output.txt") as command:
        wait_until(metrics.is_file, "an epoch")
        command.signal(signal.SIGINT)
        exit_code, printed = command.wait()
    assert exit_code == 130
    assert "run the same command again" in printed
    assert "Traceback" not in printed
    assert read_tensors(metrics.with_name("checkpoint.safetensors"))[0]


def _plain(text: str) -> str:
    """Terminal output as one line: long messages wrap."""
    return " ".join(text.split())
