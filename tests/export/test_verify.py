"""`export.verify` accepts a whole bundle, and says of any other what is wrong with it."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

from compress.data import Preprocessing, evaluation_batches
from compress.models import user_code
from compress.onnx import quantize_onnx
from export.bundle.interfaces import FileInterface, read_interface
from export.bundle.manifest import write_manifest
from export.verify.command import main
from tests.export import bundles

QUICK = ["--threads", "1", "--images", "40", "--batch", "16"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_whole_bundle_is_in_order(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    code, found = report(capsys, str(whole), "--images", "20", "--batch", "8")
    assert (code, found["failures"]) == (0, [])
    assert torch.get_num_threads() == before
    assert set(found["opsets"].values()) == {18}
    asked = {(row["file"], row["batch"], row["threads"]) for row in found["rows"]}
    exact = [(row["file"], row["batch"]) for row in found["rows"] if row["exact"]]
    assert exact == [("student.int8.onnx", 8)]
    threads = {row["threads"] for row in found["rows"]}
    assert 1 in threads
    files = ("student.onnx", "student.int8.onnx")
    assert asked == {(f, b, t) for f in files for b in (1, 8) for t in threads}
    for row in found["rows"]:
        assert row["images"] == 20
        assert row["top1_agreement_percent"] == 100
        assert row["onnx_top1_percent"] == row["torch_top1_percent"] > 60
        assert 0 < row["mean_abs_difference"] <= row["max_abs_difference"] < 1e-3
    sizes = {(row["height"], row["width"]) for row in found["encoder"]}
    assert sizes == {(16, 16), (20, 24)}
    assert all(0 < row["max_abs"] < 1e-3 * row["scale"] for row in found["encoder"])


def test_the_tables_are_for_reading(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(whole), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "in order" in shown
    assert "student.int8.onnx" in shown


def test_a_bundle_that_takes_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = report(capsys, str(bundles.write(tmp_path / "raw", raw=True)), *QUICK)
    assert (code, found["failures"]) == (0, [])
    assert found["rows"][0]["onnx_top1_percent"] > 60


def test_images_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bundles.digits()
    for split, images in (("train", data.train), ("test", data.test)):
        for i in range(30):
            place = tmp_path / "data" / split / str(int(images.labels[i]))
            place.mkdir(parents=True, exist_ok=True)
            pixels = images.fetch(torch.tensor([i]))[0].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(place / f"{i}.png")
    own = Preprocessing(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=16)
    made = bundles.write(tmp_path / "bundle", preprocessing=own)
    bundles.listed(made, {"name": "image_folder", "image_size": 16})
    assert main([str(made), *QUICK]) == 2
    assert "say which with --data FOLDER" in capsys.readouterr().err
    code, found = report(capsys, str(made), *QUICK, "--data", str(tmp_path / "data"))
    assert code == 0
    assert found["rows"][0]["images"] == 30


def test_a_network_of_ones_own_is_verified_by_the_command_that_the_error_names(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(user_code, "_trusted", set())
    file = tmp_path / "own.py"
    file.write_text(
        "from compress.models import build\n"
        "def net(*, num_classes): return build('resnet8', num_classes=num_classes)\n"
    )
    name = f"{file}:net"
    described = json.loads((bundle / "student.json").read_text())
    described["architecture"] = {"name": name, "arguments": {}}
    described["code"] = user_code.provenance(name)
    (bundle / "student.json").write_text(json.dumps(described))
    bundles.listed(bundle)
    assert main([str(bundle), *QUICK]) == 2
    said = capsys.readouterr().err.strip()
    command = f"compress verify {bundle} --trust-code"
    assert f"'{name}'" in said and said.endswith(f"if you trust it: {command}")
    assert main([*shlex.split(command)[2:], *QUICK]) == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOILED: list[tuple[Callable[[Path], Any], list[str]]] = [
    (lambda b: flip(b / "student.onnx"), ["student.onnx was changed (its SHA-256"]),
    (lambda b: (b / "encoder.onnx").write_bytes(b"x"), ["encoder.onnx is truncated: it has 1 "]),
    (lambda b: (b / "labels.txt").unlink(), ["labels.txt is missing"]),
    (lambda b: (b / "notes.txt").write_text("x"), ["notes.txt is not listed"]),
    (lambda b: (b / "manifest.json").unlink(), ["is no bundle"]),
    (lambda b: (b / "manifest.json").write_text("{"), ["manifest.json is damaged"]),
    (lambda b: (b / "manifest.json").write_text('{"format": 2}'), ["has format 2"]),
    (lambda b: (b / "manifest.json").write_text('{"format": 1}'), ["manifest.json is damaged"]),
    (
        lambda b: (b / "labels.txt").rename(b / "names.txt"),
        ["labels.txt is missing", "names.txt is not listed"],
    ),
]


@pytest.mark.parametrize(("spoil", "sentences"), SPOILED)
def test_files_that_are_not_the_manifests(
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    sentences: list[str],
) -> None:
    spoil(bundle)
    assert main([str(bundle), *QUICK]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(sentences)
    for line, sentence in zip(lines, sentences, strict=True):
        assert sentence in line


def unknown_opset(bundle: Path) -> None:
    model = onnx.load(bundle / "student.onnx")
    model.opset_import[0].version = 99
    (bundle / "student.onnx").write_bytes(model.SerializeToString())


def say(bundle: Path, **changed: Any) -> None:
    path = bundle / "preprocess.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


WRONG: list[tuple[Callable[[Path], Any], dict[str, Any], list[str], str]] = [
    (unknown_opset, {}, [], "asks for opset 99"),
    (lambda b: (b / "student.onnx").unlink(), {}, [], "lists no student.onnx"),
    (lambda b: (b / "labels.txt").write_text("a\nb\n"), {}, [], "names other classes"),
    (lambda b: say(b, image_size=32), {}, [], "preprocess.json says image_size 32"),
    (lambda b: say(b, dtype="uint8"), {}, [], "preprocess.json says dtype 'uint8'"),
    (lambda b: None, {"image_size": 32}, [], "the data set is opened with"),
    (lambda b: None, {"classes": 5}, [], "classes are not the 10"),
    (lambda b: None, {"name": "digit"}, [], "did you mean 'digits'?"),
    (lambda b: None, {"colour": "grey"}, [], "data section is not this version's"),
    (lambda b: None, {}, ["--data", "."], "leave out --data"),
    (lambda b: None, {}, ["--threads", "0"], "--threads 0"),
    (lambda b: None, {}, ["--threads", "9999"], "this machine has"),
    (lambda b: None, {}, ["--images", "0"], "--images 0"),
    (lambda b: None, {}, ["--tolerance", "nan"], "--tolerance nan"),
]


@pytest.mark.parametrize(("spoil", "data", "arguments", "sentence"), WRONG)
def test_mistakes_are_one_sentence(
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    data: dict[str, Any],
    arguments: list[str],
    sentence: str,
) -> None:
    spoil(bundle)
    bundles.listed(bundle, {**bundles.DATA, **data})
    assert main([str(bundle), *QUICK, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_no_folder_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "not found" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["student.onnx", "student.int8.onnx"])
def test_another_network_in_a_file_exceeds_its_limit(
    bundle: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    preprocessing = bundles.digits().preprocessing
    bundles.write_onnx(bundle / name, bundles.confused(), raw=False, preprocessing=preprocessing)
    bundles.listed(bundle)
    code, found = report(capsys, str(bundle), *QUICK)
    assert code == 1
    assert len(found["failures"]) == (2 if name == "student.onnx" else 3)  # one of them exactly
    assert all(line.startswith(f"{name} at batch ") for line in found["failures"])
    wide = ["--tolerance", "100", "--max-top1-drop", "100"]
    wide += ["--min-agreement-percent", "0", "--max-difference", "100"]
    assert report(capsys, str(bundle), *QUICK, *wide)[0] == 0


def test_another_script_is_a_failure(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = bundle / "predict.py"
    script.write_text(script.read_text() + "\nprint('more')\n")
    bundles.listed(bundle)
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "made_by": "compress 99.0"}))
    code, found = report(capsys, str(bundle), *QUICK)
    assert code == 1
    (failure,) = found["failures"]
    assert "predict.py is not the one that compress" in failure
    assert "'compress 99.0' wrote the bundle" in failure


@pytest.fixture(scope="module")
def quantized(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an int8 file of 7-bit weights."""
    bundle = Path(shutil.copytree(whole, tmp_path_factory.mktemp("int8") / "bundle"))
    data = bundles.digits()
    ((images, _),) = evaluation_batches(data.train, 2000, data.preprocessing, bundles.CPU)
    quantize_onnx(bundle / "student.onnx", bundle / "student.int8.onnx", [images[:256].numpy()])
    return bundles.listed(bundle)


def scale_weights(path: Path, factor: int) -> None:
    """Multiply the int8 weights of the layer with the largest by `factor`."""
    model = onnx.load(path)
    stored = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    tensor = max((t for t in stored if len(t.dims) == 4), key=lambda t: t.dims[0])
    values = onnx.numpy_helper.to_array(tensor).astype(int) * factor
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(values.clip(-127, 127).astype("int8"), tensor.name)
    )
    path.write_bytes(model.SerializeToString())


def test_int8_is_judged_by_its_weights_and_its_logits(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = report(capsys, str(quantized), *QUICK)
    assert (code, found["failures"]) == (0, [])
    bundle = Path(shutil.copytree(quantized, tmp_path / "bundle"))
    scale_weights(bundle / "student.int8.onnx", 2)
    bundles.listed(bundle)
    # Top-1 alone would say nothing of it.
    code, found = report(capsys, str(bundle), *QUICK, "--max-top1-drop", "100")
    assert code == 1
    assert found["failures"][0].startswith("student.int8.onnx: its weights go up to 127")
    assert any(", computed exactly: " in line for line in found["failures"])
    assert any("(max_difference)" in line for line in found["failures"])


def test_full_range_weights_are_accepted_where_they_are_labelled(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(quantized, tmp_path / "bundle"))
    scale_weights(bundle / "student.int8.onnx", 2)
    label = {"full_range": True, "note": "full range weights"}
    bundles.listed(bundle, int8=label)
    wide = ["--max-top1-drop", "100", "--min-agreement-percent", "0", "--max-difference", "100"]
    code, found = report(capsys, str(bundle), *QUICK, *wide)
    assert (code, found["failures"], found["int8"]) == (0, [], label)
    assert main([str(bundle), *QUICK, *wide]) == 0
    assert "right only on CPUs with VNNI" in capsys.readouterr().out


def test_a_file_of_another_flavour_than_its_label_is_a_failure(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(quantized, tmp_path / "bundle"))
    for flavour, part in (("tensorrt", "of another type than int8"), ("tensort", "did you mean")):
        bundles.listed(bundle, int8={"full_range": False, "flavour": flavour})
        code, found = report(capsys, str(bundle), *QUICK)
        (failure,) = found["failures"]
        assert code == 1
        assert part in failure


def test_inputs_and_outputs_that_are_not_as_described_are_a_failure(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess = json.loads((bundle / "preprocess.json").read_text())
    names = ("student.onnx", "student.int8.onnx", "encoder.onnx")
    interfaces = {name: read_interface(bundle / name, preprocess) for name in names}
    write_manifest(bundle, **described(interfaces))
    assert report(capsys, str(bundle), *QUICK)[1]["failures"] == []
    interfaces["encoder.onnx"] = interfaces["student.onnx"]
    write_manifest(bundle, **described(interfaces))
    code, found = report(capsys, str(bundle), *QUICK)
    (failure,) = found["failures"]
    assert code == 1
    assert failure.startswith("encoder.onnx: its inputs and outputs are not those")


def described(interfaces: dict[str, FileInterface]) -> dict[str, Any]:
    """What `write_manifest` needs, with the given inputs and outputs of files."""
    made = {"student": "none", "fingerprint": "0123abcd", "data": bundles.DATA, "opset": 18}
    return {**made, "interfaces": interfaces}
