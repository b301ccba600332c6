"""Teachers that are files: an ONNX model, and outputs that were computed elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch import Tensor, nn

from compress import models, pipeline
from compress.data import Dataset, open_data
from compress.errors import UserError
from compress.methods import METHODS
from compress.methods.contract import View
from compress.methods.kd import KD
from compress.onnx import translate, write_model
from compress.recipe import check_shape
from compress.stages.logits_only import check_use
from compress.storage.files import read_json, read_tensors, write_tensors
from compress.sweep.schema import check_sweep, recipe_of
from compress.teacher.stored import read_outputs
from tests.quick import quick_commands

DATA = {"name": "digits", "classes": 3, "train_images": 96, "test_images": 60, "seed": 3}
RECIPE: dict[str, Any] = {
    "data": DATA,
    "student": {"model": "resnet8"},
    "distill": {"method": "kd", "train": {"epochs": 1, "lr": 0.005, "batch_size": 32}},
    "engine": {"compile": "never"},
    "fuse": None,
    "account": None,
    "export": None,
}
COMPARED: dict[str, Any] = {
    "distill": {**RECIPE["distill"], "compare": ["dkd"]},
    "account": {"latency": {"batch_sizes": [1], "rounds": 1, "warmup": 1}},
}


def pipe(folder: Path, *options: str, out: str = "run", **changes: Any) -> int:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    with quick_commands():
        return pipeline.main([str(path), "--out", str(folder / out), "--workers", "0", *options])


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, *options: str, **changes: Any) -> str:
    capsys.readouterr()
    assert pipe(folder, *options, out="refused", **changes) == 2
    assert not list((folder / "refused").glob("**/checkpoint*")), "something was trained"
    return " ".join("".join(capsys.readouterr()).split())


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_data(DATA)


@pytest.fixture(scope="module")
def network(data: Dataset) -> nn.Module:
    """A resnet8 that knows the digits; at its best after a few steps of all images."""
    torch.manual_seed(0)
    network = models.build("resnet8", num_classes=3)
    images, labels = _normalised(data, "train"), data.train.labels
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def _normalised(data: Dataset, split: str) -> Tensor:
    images = getattr(data, split)
    return data.preprocessing.normalise(images.fetch(torch.arange(len(images))))


def write_onnx(network: nn.Module, path: Path, size: int = 16, batch: int | None = None) -> Path:
    model = translate(
        network, input_shape=(3, size, size), output="logits", dynamic={0: "batch"}, opset=18
    )
    if batch is not None:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    write_model(model, path, {})
    return path


@torch.no_grad()
def outputs(network: nn.Module, data: Dataset) -> dict[str, Tensor]:
    return {
        "logits": network(_normalised(data, "train")),
        "test_logits": network(_normalised(data, "test")),
    }


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: np.asarray(one) for name, one in arrays.items()})
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    teachers: list[dict[str, Any]] = read_json(out / "teacher/result.json")["values"]["teachers"]
    return teachers


def student(out: Path, label: str = "kd") -> dict[str, Tensor]:
    return read_tensors(out / f"distill/{label}/student.safetensors")[0]


def test_students_learn_from_an_onnx_file_as_from_the_network_itself(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_onnx(network, tmp_path / "net.onnx")
    write_tensors(tmp_path / "net.safetensors", network.state_dict())
    named = {"model": "resnet8", "checkpoint": str(tmp_path / "net.safetensors")}
    assert pipe(tmp_path, teacher={"onnx": str(file)}, **COMPARED) == 0
    assert pipe(tmp_path, out="named", teacher=named, **COMPARED) == 0
    (row,), (expected,) = rows(tmp_path / "run"), rows(tmp_path / "named")
    assert row["top1_percent"] == expected["top1_percent"] > 60
    assert (row["model"], row["source"]) == ("net.onnx", str(file))
    for label in ("kd", "dkd"):
        own, other = student(tmp_path / "run", label), student(tmp_path / "named", label)
        for key, value in own.items():
            torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-3)
    first, *_ = read_json(tmp_path / "run/account/result.json")["values"]["networks"]
    assert first["size_bytes"] == file.stat().st_size
    weights = sum(p.numel() for p in network.parameters())
    assert first["parameters"] == pytest.approx(weights, rel=0.02)  # batch norms are folded
    assert "macs" not in first
    said = (tmp_path / "run/log.txt").read_text()
    assert "run by ONNX Runtime on the CPU" in said
    assert "MACs, activations and latency are not measured" in said


def test_a_replaced_file_is_another_teacher_and_an_equal_one_is_not(
    tmp_path: Path, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_onnx(network, tmp_path / "net.onnx")
    assert pipe(tmp_path, teacher={"onnx": str(file)}) == 0
    results = [tmp_path / "run" / name / "result.json" for name in ("teacher", "distill/kd")]
    before = [path.stat().st_mtime_ns for path in results]
    moved = file.rename(tmp_path / "moved.onnx")
    assert pipe(tmp_path, teacher={"onnx": str(moved)}) == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    changed = onnx.load(moved)
    changed.doc_string = "another"
    onnx.save(changed, moved)
    assert pipe(tmp_path, teacher={"onnx": str(moved)}) == 0
    assert all(a.stat().st_mtime_ns > b for a, b in zip(results, before, strict=True))


def test_a_fixed_batch_is_filled_and_a_cache_serves(
    tmp_path: Path, network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"onnx": str(write_onnx(network, tmp_path / "net.onnx"))}
    assert pipe(tmp_path, out="any", teacher=teacher) == 0
    teacher = {"onnx": str(write_onnx(network, tmp_path / "seven.onnx", batch=7))}
    changes: dict[str, Any] = {"engine": {"compile": "never", "cache": {"max_gb": 1.0}}}
    changes |= {"data": {**DATA, "views": 1}, "distill": {**COMPARED["distill"]}}
    assert pipe(tmp_path, teacher=teacher, **changes) == 0
    assert rows(tmp_path / "run")[0]["top1_percent"] == rows(tmp_path / "any")[0]["top1_percent"]
    notes = "".join(read_json(tmp_path / "run/distill/dkd/result.json")["measured"]["teaching"])
    assert "96 of 96 outputs were there" in notes, "those that the teacher gave for kd"


def test_it_reads_images_of_its_own_preprocessing_beside_another_teacher(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"image_size": 24}
    file = write_onnx(network, tmp_path / "net.onnx", size=24)
    stored = write_npz(tmp_path / "logits.npz", **outputs(network, data))
    teachers = [{"onnx": str(file), "preprocessing": own}, {"outputs": str(stored)}]
    distill = {**RECIPE["distill"], "method": "aveg", "compare": []}
    assert pipe(tmp_path, teacher=teachers, distill=distill) == 0
    first, second = rows(tmp_path / "run")
    assert first["preprocessing"]["image_size"] == 24
    assert second["top1_percent"] > 60
    assert student(tmp_path / "run", "aveg")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_stored_outputs_are_the_targets_of_the_image_without_augmentation(
    tmp_path: Path,
    network: nn.Module,
    data: Dataset,
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without augmentation they are what the network itself says."""
    file, tensors = tmp_path / f"logits{suffix}", outputs(network, data)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    tensors |= {"logits": tensors["logits"][order], "index": order}
    if suffix == ".npz":
        write_npz(file, **tensors)
    else:
        write_tensors(file, tensors)
    write_tensors(tmp_path / "net.safetensors", network.state_dict())
    named = {"model": "resnet8", "checkpoint": str(tmp_path / "net.safetensors")}
    plain = {**DATA, "augment": "none"}
    changes = COMPARED if suffix == ".npz" else {}
    assert pipe(tmp_path, data=plain, teacher={"outputs": str(file)}, **changes) == 0
    assert pipe(tmp_path, data=plain, out="named", teacher=named, **changes) == 0
    (row,), (expected,) = rows(tmp_path / "run"), rows(tmp_path / "named")
    assert row["top1_percent"] == expected["top1_percent"]
    assert row["train_top1_percent"] > 80
    for label in ("kd", "dkd") if changes else ("kd",):
        own, other = student(tmp_path / "run", label), student(tmp_path / "named", label)
        for key, value in own.items():
            torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-3)
    said = (tmp_path / "run/log.txt").read_text()
    assert "targets are of images without augmentation" in said
    if not changes:
        return
    first, *others = read_json(tmp_path / "run/account/result.json")["values"]["networks"]
    assert first["size_bytes"] == file.stat().st_size
    assert first["parameters"] is None
    assert "pruning_ratio_percent" not in others[-1]
    assert "there is no network to count" in said


def test_stored_outputs_resume_and_need_no_rows_of_test_images(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_npz(tmp_path / "logits.npz", logits=outputs(network, data)["logits"])
    teacher = {"outputs": str(file)}
    assert pipe(tmp_path, teacher=teacher) == 0
    assert "top1_percent" not in rows(tmp_path / "run")[0]
    assert "its accuracy is not known" in (tmp_path / "run/log.txt").read_text()
    results = [tmp_path / "run" / name / "result.json" for name in ("teacher", "distill/kd")]
    before = [path.stat().st_mtime_ns for path in results]
    assert pipe(tmp_path, teacher=teacher) == 0
    assert [path.stat().st_mtime_ns for path in results] == before
    write_npz(file, logits=outputs(network, data)["logits"] + 1)
    assert pipe(tmp_path, teacher=teacher) == 0
    assert all(a.stat().st_mtime_ns > b for a, b in zip(results, before, strict=True))


def test_check_shows_the_plan(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_onnx(network, tmp_path / "net.onnx")
    stored = write_npz(tmp_path / "logits.npz", **outputs(network, data))
    for teacher in ({"onnx": str(file)}, {"outputs": str(stored)}):
        capsys.readouterr()
        assert pipe(tmp_path, "--check", teacher=teacher) == 0
        assert "The recipe is in order." in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_sweep_reads_the_file_in_every_cell() -> None:
    sweep, problems = check_sweep(
        {
            "title": "files",
            "recipe": {
                **RECIPE,
                "teacher": {"train": {"epochs": 1, "lr": 0.1}},
                "distill": {"train": {"epochs": 1, "lr": 0.1}},
                "student": {},
            },
            "teachers": {"file": {"onnx": "net.onnx"}, "trained": {"model": "resnet14"}},
            "students": {"small": {"model": "resnet8"}},
            "pairs": [{"teacher": ["file", "trained"], "student": "small"}],
            "methods": [{"name": "aveg"}],
        }
    )
    assert sweep is not None, problems
    files = {"file": "runs/file/teacher.safetensors", "trained": "runs/trained/teacher.safetensors"}
    recipe = recipe_of(sweep, sweep.pairs[0], list(sweep.methods), files)
    assert recipe["teacher"] == [{"onnx": "net.onnx"}, {"checkpoint": files["trained"]}]


def test_stored_outputs_serve_no_method_that_turns_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned(KD):
        views = (View(), View(rotation=90))

    monkeypatch.setitem(METHODS, "turned", Turned)
    changes = {"distill": {**RECIPE["distill"], "method": "turned"}}
    for teacher, count in (({"outputs": "logits.npz"}, 1), ({"onnx": "net.onnx"}, 0)):
        recipe, _ = check_shape({**RECIPE, **changes, "teacher": teacher})
        assert recipe is not None
        problems = check_use(recipe, recipe.teacher[0], "teacher")
        assert len(problems) == count
        assert all("of which stored outputs have no rows" in problem for problem in problems)


def test_onnx_files_that_cannot_serve_are_refused_before_anything_is_trained(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(name: str, *options: str) -> str:
        teacher = {"onnx": str(tmp_path / name)}
        return refusal(capsys, tmp_path, *options, teacher=teacher)

    assert "missing.onnx' not found" in said("missing.onnx", "--check")
    write_onnx(network, tmp_path / "large.onnx", size=24)
    assert (
        "takes float32 (batch, 3, 24, 24) and gives float32 (batch, 3); expected are float32 (N, "
        "3, 16, 16) and float32 (N, 3)"
    ) in said("large.onnx", "--check")
    four = models.build("resnet8", num_classes=4).eval()
    write_onnx(four, tmp_path / "four.onnx")
    assert "gives float32 (batch, 4); expected are" in said("four.onnx", "--check")
    (tmp_path / "text.onnx").write_text("no model")
    assert "is no ONNX model, or damaged" in said("text.onnx", "--check")
    two = {"model": "resnet8", "train": {"epochs": 1, "lr": 0.1}}
    teachers = [two, {"onnx": str(tmp_path / "four.onnx")}]
    aveg = {**RECIPE["distill"], "method": "aveg"}
    changes = {"teacher": teachers, "distill": aveg, "data": {"name": "digits"}}
    assert "teacher.1.onnx:" in refusal(capsys, tmp_path, **changes)


def test_outputs_that_cannot_serve_are_refused_before_anything_is_trained(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.npz"
    whole = outputs(network, data)["logits"]

    def said(**arrays: Any) -> str:
        with pytest.raises(UserError) as refused:
            read = read_outputs(write_npz(file, **arrays), 3)
            read.of_training(96)
            read.of_split("", 60)
        return str(refused.value)

    assert "holds rows; a file of outputs holds `logits`" in said(rows=whole)
    index = [*range(1, 96), 7]
    first = "the first of them image 0"
    assert f"has no logits of 1 of 96 training images, {first}" in said(logits=whole, index=index)
    longer = torch.cat([whole, whole[:1]])
    assert "has a row of training image 96; the recipe has 96" in said(logits=longer)
    twice = [*range(96), 0]
    assert "has several rows of training image 0" in said(logits=longer, index=twice)
    assert "of float32; expected is a whole number" in said(logits=whole, index=whole[:, 0])
    assert "has 2 classes in `logits`, the data have 3" in said(logits=whole[:, :2])
    short = "has 5 rows of `test_logits`, the split has 60 images"
    assert short in said(logits=whole, test_logits=whole[:5])
    bad = whole.clone()
    bad[4, 1] = float("nan")
    assert "no finite logits in 1 rows of `logits`, the first of them row 4" in said(logits=bad)
    assert "(96,) of float32; expected are (images, classes)" in said(logits=whole[:, 0])
    pickled = np.array([None], dtype=object)
    assert "is damaged or no .npz" in said(logits=pickled)

    def ended(*options: str) -> str:
        return refusal(capsys, tmp_path, *options, teacher={"outputs": str(file)})

    write_npz(file, logits=whole[:90])
    assert (
        "teacher.outputs: "
        f"'{file}' has no logits of 6 of 96 training images, the first of them image 90; each needs"
    ) in ended()
    shuffled = whole[torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    write_npz(file, logits=shuffled)
    assert "training images, which is chance; check that their rows" in ended()
    file.write_bytes(b"PK no archive")
    assert "is damaged or no .npz" in ended("--check")


def test_methods_and_settings_that_need_a_network_are_refused(
    tmp_path: Path, network: nn.Module, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = {"onnx": str(write_onnx(network, tmp_path / "net.onnx"))}
    stored = {"outputs": str(write_npz(tmp_path / "logits.npz", **outputs(network, data)))}

    def said(teacher: Any, **changes: Any) -> str:
        return refusal(capsys, tmp_path, "--check", teacher=teacher, **changes)

    for method, taps in (("simkd", "last_map"), ("crd", "pooled"), ("at", "stages")):
        distill = {**RECIPE["distill"], "method": method}
        assert (
            f"distill: {method}: {method} reads {taps} of the teacher, and an ONNX file gives "
            "logits only"
        ) in said(teacher, distill=distill)
        assert "stored outputs give logits only" in said(stored, distill=distill)
    engine = {"compile": "never", "teacher": "int8"}
    assert "engine.teacher: int8 is arithmetic of networks" in said(teacher, engine=engine)
    assert "has both `onnx` and `train`" in said({**teacher, "train": {"epochs": 1, "lr": 0.1}})
    assert "has both `outputs` and `preprocessing`" in said({**stored, "preprocessing": {}})
    given = {**RECIPE, "teacher": {**teacher, "model": None, "train": None, "preprocessing": {}}}
    assert check_shape(given)[1] == []
    for changes in ({"task": "segmentation"}, {"data": {"name": "digits", "labels": False}}):
        recipe, _ = check_shape({**RECIPE, "teacher": teacher, **changes})
        assert recipe is not None
        (problem,) = check_use(recipe, recipe.teacher[0], "teacher")
        assert problem.startswith("teacher.onnx: gives logits of whole images; used where")
    assert "has preprocessing `own`" in said({**teacher, "preprocessing": "own"})
    probe = {"task": "linear_probe", "data": "digit_scenes", "init": ["teacher"]}
    assert "transfer.0.init: teacher is an ONNX file, which has no encoder" in said(
        teacher, transfer=[probe]
    )
