"""The export stage and `python -m export`, on an untrained student and real digits."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from PIL import Image

import export.bundle.int8_file
import export.bundle.int8_search
import export.bundle.writer
import export.stage
from compress.comparison import read_predictions
from compress.errors import UserError
from compress.model_files import Student, artifacts
from compress.models import build
from compress.onnx import open_session
from compress.onnx.qdq import largest_weight
from compress.onnx.tensorrt import list_unsuitable
from compress.recipe import Recipe
from compress.recipe.schema import Export
from compress.stages import dataset_of
from compress.stages.job import Job
from compress.storage.files import write_json
from compress.storage.integrity import seal
from compress.taps import discover
from export.__main__ import main
from export.bundle import predict
from export.bundle.manifest import check_manifest
from export.bundle.parity import Parity
from export.verify import command
from tests.export.networks import trained
from tests.export.test_snippet import block_of, run_snippet
from tests.export.toy_bundles import told
from tests.export.tracing import traced_exports

RECIPE = Recipe.model_validate(
    {
        "data": {"name": "digits", "test_images": 40},
        "teacher": {"model": "resnet20", "train": {"epochs": 1, "lr": 0.1}},
        "student": {"model": "resnet8"},
        "distill": {"method": "kd", "train": {"epochs": 1, "lr": 0.1}},
        "account": {"latency": {"batch_sizes": [1, 3], "rounds": 2}},
        # The network is not trained: its classes are close to each other.
        "export": {
            "int8": {
                "calibration_images": 32,
                "max_top1_drop": 50,
                "min_agreement_percent": 50,
            },
            "compile_latency": False,
        },
    }
)


LIMITS = ["--max-top1-drop", "50", "--min-agreement-percent", "50"]


def student() -> Student:
    """A described network as `load_student` gives it."""
    data = dataset_of(RECIPE)
    network = trained(build("resnet8", num_classes=10), size=16)
    description = artifacts.describe(
        {"name": "resnet8", "arguments": {}},
        discover(network, (3, 16, 16), "resnet8"),
        data.class_names,
        data.preprocessing,
        metrics={},
        fingerprint="0123abcd",
    )
    distillation = {"method": {"name": "kd"}, "weights": {"ce": 1, "kd": 0, "method": 1}}
    description |= {"method": None, "encoder_prefix": "", "distillation": distillation}
    return Student(network.eval(), description)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run directory with one trained student, `kd`."""
    folder = tmp_path / "run"
    (folder / "distill" / "kd").mkdir(parents=True)
    result = seal({"fingerprint": "0123abcd", "values": {}, "measured": {}})
    write_json(folder / "distill" / "kd" / "result.json", result)
    (folder / "resolved.yaml").write_text(yaml.safe_dump(RECIPE.model_dump(mode="json")))
    loaded = student()
    artifacts.save(folder / "distill" / "kd", "student", loaded.network, loaded.description)
    return folder


def job(run_folder: Path, recipe: Recipe = RECIPE) -> Job:
    """The job that the plan makes of the recipe's export section."""
    (run_folder / "export").mkdir()
    return Job(
        name="export",
        folder=run_folder / "export",
        run_folder=run_folder,
        recipe=recipe,
        arguments={"label": "kd", "students": ["distill/kd"]},
        device=torch.device("cpu"),
        workers=0,
        recipe_fingerprint="89abcdef",
    )


FILES = {
    "MODEL_CARD.md",
    "encoder.onnx",
    "labels.txt",
    "manifest.json",
    "predict.py",
    "preprocess.json",
    "student.int8.onnx",
    "student.json",
    "student.onnx",
    "student.safetensors",
}


def test_the_stage_writes_a_bundle_and_its_numbers(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = export.stage.run(job(run_folder))
    values: dict[str, Any] = outcome.values
    bundle = run_folder / "export" / "bundle"
    assert {p.name for p in bundle.parent.iterdir()} == {"bundle", "predictions"}
    saved = read_predictions(bundle.parent / "predictions" / "student.int8.onnx.npz")
    assert 100 * saved.correct.mean() == pytest.approx(values["int8"]["onnx_top1_percent"])
    assert {p.name for p in bundle.iterdir()} == FILES
    assert set(check_manifest(bundle).files) == FILES - {"manifest.json"}
    assert values["student"] == "kd"
    assert values["size_bytes"] == (bundle / "student.onnx").stat().st_size
    assert values["images"] == 40
    assert values["top1_agreement_percent"] == 100
    assert values["max_abs_difference"] <= values["tolerance"] * values["logit_scale"]
    assert values["int8"]["size_bytes"] == (bundle / "student.int8.onnx").stat().st_size
    assert values["int8"]["size_bytes"] < 0.5 * values["size_bytes"]
    assert values["int8"]["max_abs_difference"] > values["max_abs_difference"]
    assert values["encoder"]["dynamic_size"]
    timed = outcome.measured
    assert set(timed["latency"]) == {"torch", "ONNX Runtime", "ONNX Runtime, int8"}
    assert set(timed["latency"]["torch"]) == {"1", "3"}
    assert timed["not_compiled"] == "not asked for"
    assert timed["protocol"]["threads"] == torch.get_num_threads()
    json.dumps([values, timed], allow_nan=False)
    # The product by itself: its own script on a picture, its own proof on the data.
    picture = run_folder / "digit.png"
    pixels = dataset_of(RECIPE).test.fetch_original(0).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(picture)
    assert predict.main([str(bundle), str(picture)]) == 0
    assert predict.main([str(bundle), str(picture), "--int8"]) == 0
    assert command.main([str(bundle), "--threads", "1", *LIMITS]) == 0
    assert described_files(bundle) == {
        "encoder.onnx": ("float32", "NCHW", "features"),
        "student.int8.onnx": ("float32", "NCHW", "logits"),
        "student.onnx": ("float32", "NCHW", "logits"),
    }
    # The card's own program says what predict.py says.
    capsys.readouterr()
    (expected,) = told(capsys, [bundle, picture, "--top", "1"])
    source = block_of((bundle / "MODEL_CARD.md").read_text())
    (bundle / "image.png").write_bytes(picture.read_bytes())
    label, probability = run_snippet(source, bundle, monkeypatch, capsys)
    best = expected["predictions"][0]
    assert (label, probability) == (best["class"], pytest.approx(best["probability"], rel=1e-5))


def described_files(bundle: Path) -> dict[str, tuple[str, str, str]]:
    """File -> type and layout of its input, name of its output; each is in the card, too."""
    manifest, card = check_manifest(bundle), (bundle / "MODEL_CARD.md").read_text()
    assert manifest.preparation is not None and manifest.preparation in card
    found = {}
    for name, interface in (manifest.interfaces or {}).items():
        ((given,), (result,)) = interface.inputs, interface.outputs
        assert f"| `{name}` | takes | `images` | {given.dtype} |" in card
        assert f"| `{name}` | gives | `{result.name}` |" in card
        assert given.shape[0] == result.shape[0] == "batch"
        assert len(given.range) == 3 and all(low < high for low, high in given.range)
        if result.name == "logits":
            assert "softmax" in result.values
        found[name] = (given.dtype, given.layout, result.name)
    return found


def test_raw_pixels_are_what_the_files_take(run_folder: Path) -> None:
    settings = RECIPE.export.model_copy(update={"raw_pixels": True})  # type: ignore[union-attr]
    recipe = RECIPE.model_copy(update={"export": settings, "account": None})
    outcome = export.stage.run(job(run_folder, recipe))
    assert outcome.measured == {}
    bundle = run_folder / "export" / "bundle"
    for name in ("student.onnx", "student.int8.onnx"):
        (given,) = open_session(bundle / name).get_inputs()
        assert (given.type, given.shape) == ("tensor(uint8)", ["batch", 16, 16, 3])
    described = json.loads((bundle / "preprocess.json").read_text())
    assert (described["dtype"], described["layout"]) == ("uint8", "NHWC")
    assert described_files(bundle) == {
        "encoder.onnx": ("float32", "NCHW", "features"),
        "student.int8.onnx": ("uint8", "NHWC", "logits"),
        "student.onnx": ("uint8", "NHWC", "logits"),
    }
    assert outcome.values["max_abs_difference"] < 1e-4
    assert command.main([str(bundle), "--threads", "1", *LIMITS]) == 0


def test_a_file_that_differs_is_refused_and_nothing_is_left(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export.bundle.writer.export_onnx

    def write_another(network: torch.nn.Module, path: Path, **described: Any) -> None:
        write(build("resnet8", num_classes=10, seed=1), path, **described)

    monkeypatch.setattr(export.bundle.writer, "export_onnx", write_another)
    with pytest.raises(UserError, match="differs from the trained network"):
        export.stage.run(job(run_folder))
    assert list((run_folder / "export").iterdir()) == []


def with_int8(**changes: Any) -> Recipe:
    """The recipe with other settings of the int8 file, nothing timed."""
    assert RECIPE.export is not None
    assert RECIPE.export.int8 is not None
    int8 = RECIPE.export.int8.model_copy(update=changes)
    export = RECIPE.export.model_copy(update={"int8": int8})
    return RECIPE.model_copy(update={"export": export, "account": None})


@pytest.fixture
def quick() -> Iterator[None]:
    with traced_exports():
        yield


@pytest.fixture
def wrong_int8(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier of every int8 file has weights of a quarter of their size."""
    quantize = export.bundle.int8_search.quantize_onnx

    def quantize_wrongly(source: Path, target: Path, *given: Any, **options: Any) -> Any:
        info = quantize(source, target, *given, **options)
        model = onnx.load(target)
        stored = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
        (last,) = (t for t in stored if len(t.dims) == 2)
        values = onnx.numpy_helper.to_array(last) // 4
        last.CopyFrom(onnx.numpy_helper.from_array(values, last.name))
        target.write_bytes(model.SerializeToString())
        return info

    monkeypatch.setattr(export.bundle.int8_search, "quantize_onnx", quantize_wrongly)


def test_an_int8_file_that_exceeds_a_limit_leaves_the_float_bundle(
    run_folder: Path, wrong_int8: None, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = export.stage.run(job(run_folder, with_int8()))
    bundle = run_folder / "export" / "bundle"
    assert {p.name for p in bundle.iterdir()} == FILES - {"student.int8.onnx"}
    assert outcome.values["int8"] is None
    reason = outcome.values["int8_refused"]
    for part in (
        "on this machine",
        "computed exactly",
        "(max_difference)",
        "40 images",
        "--no-int8",
    ):
        assert part in reason
    assert str(run_folder) not in reason
    assert check_manifest(bundle).int8 == {"refused": reason}
    assert reason in (bundle / "MODEL_CARD.md").read_text()
    shown = "".join(capsys.readouterr().out.split())
    assert "student.int8.onnx:leftoutofthebundle:onthismachine" in shown
    assert command.main([str(bundle), "--threads", "1"]) == 0


def test_the_command_says_by_its_code_that_int8_was_refused(
    run_folder: Path, tmp_path: Path, wrong_int8: None
) -> None:
    (run_folder / "resolved.yaml").write_text(yaml.safe_dump(with_int8().model_dump(mode="json")))
    assert main([str(run_folder), "--out", str(tmp_path / "b")]) == 1
    assert {p.name for p in (tmp_path / "b").iterdir()} == FILES - {"student.int8.onnx"}
    limits = ["--max-difference", "10", "--min-agreement-percent", "0", "--max-top1-drop", "100"]
    assert main([str(run_folder), "--out", str(tmp_path / "c"), *limits]) == 0
    assert {p.name for p in (tmp_path / "c").iterdir()} == FILES


def test_what_cannot_be_quantized_leaves_the_float_bundle(
    run_folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr("compress.onnx.qdq.quantize_static", fail)
    outcome = export.stage.run(job(run_folder, with_int8()))
    reason = outcome.values["int8_refused"]
    assert "cannot quantize student.onnx: no such operator" in reason
    assert (run_folder / "export" / "bundle" / "student.onnx").is_file()


@pytest.mark.parametrize("search", [False, True])
def test_no_failure_of_the_int8_file_costs_the_float_bundle(
    run_folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch, search: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel\nfailed")

    monkeypatch.setattr("export.bundle.int8_search.quantize_with", fail)
    monkeypatch.setattr("export.bundle.int8_file.quantize_with", fail)
    outcome = export.stage.run(job(run_folder, with_int8(search=search, flavour="tensorrt")))
    bundle = run_folder / "export" / "bundle"
    assert outcome.values["int8_refused"] == (
        "it could not be made (RuntimeError: a kernel failed)"
    )
    assert {p.name for p in bundle.iterdir()} == FILES - {"student.int8.onnx"}


def test_a_drop_that_the_images_cannot_decide_is_stated_wherever_the_file_is(
    run_folder: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compare = export.bundle.int8_file.compare_file

    def one_image_lost(*given: Any, **options: Any) -> Any:
        found = compare(*given, **options)
        assert isinstance(found, Parity) and found.images == 40
        lower = found.torch_top1_percent - 2.5
        return replace(found, onnx_top1_percent=lower, discordant_images=1)

    monkeypatch.setattr("export.bundle.int8_file.compare_file", one_image_lost)
    limits = {"max_top1_drop": 1.0, "max_difference": 100.0, "min_agreement_percent": 0.0}
    outcome = export.stage.run(job(run_folder, with_int8(**limits)))
    bundle = run_folder / "export" / "bundle"
    assert {p.name for p in bundle.iterdir()} == FILES
    words = "-2.50 points on 40 images, standard error 2.5"
    int8 = outcome.values["int8"]
    assert int8["drop_words"] == words
    assert int8["gate"]["drop_standard_error"] == pytest.approx(2.47, abs=0.01)
    remark = int8["gate"]["remark"]
    assert "on this machine and computed exactly, 40 images: int8 costs 2.50 points" in remark
    label = check_manifest(bundle).int8 or {}
    assert (label["accuracy"], label["remark"]) == (words, remark)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert words in card and remark in card and "are within the limits" not in card
    assert "".join(remark.split()) in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("full_range", [False, True])
def test_where_the_int8_file_is_right_stands_beside_it(
    run_folder: Path, quick: None, full_range: bool
) -> None:
    # What the kernels of a CPU without VNNI make of it is not the matter here.
    loose = {"max_difference": 100.0, "max_top1_drop": 100.0, "min_agreement_percent": 0.0}
    outcome = export.stage.run(job(run_folder, with_int8(full_range=full_range, **loose)))
    bundle = run_folder / "export" / "bundle"
    assert outcome.values["int8"]["full_range"] is full_range
    largest = largest_weight(onnx.load(bundle / "student.int8.onnx").graph)
    assert largest == (127 if full_range else 64)
    label = check_manifest(bundle).int8 or {}
    assert label["full_range"] is full_range
    for text in (label["note"], (bundle / "MODEL_CARD.md").read_text()):
        assert ("right only on CPUs with VNNI or ARM dot product" in text) is full_range


def test_the_flavour_for_tensorrt_is_searched_gated_verified_and_labelled(
    run_folder: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("export.bundle.int8_search._SEGMENTS", 2)
    settings = with_int8(flavour="tensorrt", search=True)
    outcome = export.stage.run(job(run_folder, settings))
    bundle = run_folder / "export" / "bundle"
    assert list_unsuitable(onnx.load(bundle / "student.int8.onnx").graph) == []
    assert 0 < outcome.values["int8"]["gate"]["exact"]["difference"] < 0.1
    label = check_manifest(bundle).int8 or {}
    assert label["flavour"] == "tensorrt"
    search = outcome.values["int8_search"]
    trial = search["trials"][search["chosen"]]
    assert label["search"] == search
    assert outcome.values["int8"]["calibration"] == trial["calibration"]
    assert outcome.values["int8"]["leave_out"] == trial["leave_out"]
    rows = (bundle / "MODEL_CARD.md").read_text().splitlines()
    (row,) = (line for line in rows if line.endswith("| chosen |"))
    assert row.startswith(f"| {trial['calibration']} | ")
    for text in (label["flavour_note"], (bundle / "MODEL_CARD.md").read_text()):
        assert "TensorRT itself was not run" in text
    assert command.main([str(bundle), "--threads", "1", *LIMITS]) == 0
    assert "TensorRT itself was not run" in " ".join(capsys.readouterr().out.split())


def test_class_names_that_are_no_line_are_refused(run_folder: Path) -> None:
    for name in ("two\nlines", "ends\n", "", "not text \udcff"):
        loaded = student()
        loaded.description["class_names"][3] = name
        asked = export.stage.bundle_request("kd", student(), run_folder, RECIPE, Export(int8=None))
        asked = replace(asked, student=loaded)
        with pytest.raises(UserError, match=r"labels\.txt"):
            export.bundle.writer.write_bundle(asked, run_folder / "b")


def test_the_command_writes_the_main_students_bundle(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small"
    arguments = [str(run_folder), "--out", str(path)]
    assert main([*arguments, "--no-int8", "--license", "apache-2.0"]) == 0
    assert {p.name for p in path.iterdir()} == FILES - {"student.int8.onnx"}
    assert 'license: "apache-2.0"' in (path / "MODEL_CARD.md").read_text()
    assert f"bundle: {path}" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "replace it with --force" in capsys.readouterr().err
    assert main([*arguments, "--no-int8", "--force"]) == 0
    assert {p.name for p in path.parent.iterdir()} == {"small", "run"}, "nothing is left beside it"
    assert (path / "student.safetensors").stat().st_mode & 0o444 == 0o444


def test_force_replaces_nothing_but_a_bundle(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "webapp"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "my extension"}')
    beside = tmp_path / "web.new"
    beside.mkdir()
    own = tmp_path / "own"
    command = [str(run_folder), "--no-int8", "--force", "--out"]
    assert main([*command, str(foreign)]) == 2
    assert "is no whole bundle" in capsys.readouterr().err
    assert main([*command, str(own)]) == 0
    (own / ".notes").write_text("mine")
    assert main([*command, str(own)]) == 2
    assert "holds more than a bundle (.notes)" in capsys.readouterr().err
    link = tmp_path / "link"
    link.symlink_to(own)
    assert main([*command, str(link)]) == 2
    assert (own / ".notes").read_text() == "mine"
    assert beside.is_dir()


def test_a_student_of_other_data_is_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = RECIPE.data.model_dump(mode="json", exclude={"root"})
    fields = run_folder / "distill" / "kd" / "fields.json"
    fields.write_text(json.dumps({"data": {**described, "classes": 5}}))
    assert main([str(run_folder)]) == 2
    assert "data.classes (5 -> None)" in capsys.readouterr().err
    fields.write_text(json.dumps({"data": described}))
    changed = {**RECIPE.model_dump(mode="json")}
    changed["data"] = {**changed["data"], "classes": 5}
    fields.unlink()
    (run_folder / "resolved.yaml").write_text(yaml.safe_dump(changed))
    assert main([str(run_folder)]) == 2
    assert "5 classes are not the 10" in capsys.readouterr().err


def test_an_interrupted_student_is_bundled_as_its_checkpoint_has_it(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder / "distill" / "kd"
    (folder / "result.json").rename(folder / "checkpoint.safetensors")
    loaded = student()
    loaded.description["interrupted"] = {"after_epoch": 7, "weights_of_epoch": 5}
    monkeypatch.setattr(artifacts, "load_unfinished", lambda asked: loaded)
    assert main([str(run_folder), "--out", str(tmp_path / "b"), "--no-int8"]) == 0
    card = (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert "interrupted after epoch 7" in card
    assert "numbers are of epoch 5" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "kb"], "did you mean 'kd'?"),
        (["--out", "no/such/folder/x"], "does not exist"),
        (["--out", "."], "not this folder"),
        (["--calibration", "median"], "calibration"),
        (["--leave-out", "middle"], "leave_out"),
        (["--license", "mit\nfoo: 1"], "license"),
    ],
)
def test_mistakes_are_one_sentence(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(run_folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err
