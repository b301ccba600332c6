"""The bundle's own script: what it names, how it sees pixels, and that it runs alone."""

import ast
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from compress.data import FileImages, Preprocessing
from export.bundle import predict, predict_command
from tests.export.toy_bundles import (
    LABELS,
    MEAN,
    SCRIPT,
    SIZE,
    STD,
    WEIGHTS,
    loaded,
    make,
    model,
    picture,
    seal,
    softmax,
    told,
)
from tests.waiting import HANG


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make(tmp_path / "bundle")


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_probabilities_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: bool, batch: int
) -> None:
    folder = make(tmp_path / "bundle", raw=raw)
    files = [picture(tmp_path / f"{n}.png", seed=n) for n in range(5)]
    records = told(capsys, [folder, *files, "--batch", batch, "--top", 99, "--threads", 1])
    assert [r["file"] for r in records] == [str(f) for f in files]
    for file, record in zip(files, records, strict=True):
        expected = softmax(file)
        found = record["predictions"]
        assert [p["index"] for p in found] == list(np.argsort(-expected))
        assert [p["class"] for p in found] == [LABELS[p["index"]] for p in found]
        shares = [p["probability"] for p in found]
        np.testing.assert_allclose(shares, np.sort(expected)[::-1], rtol=1e-5)


def test_large_logits_do_not_overflow_and_infinite_ones_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = picture(tmp_path / "a.png")
    steep = make(tmp_path / "steep", weights=WEIGHTS * 1e5)
    shares = [p["probability"] for p in told(capsys, [steep, file])[0]["predictions"]]
    assert shares[0] == pytest.approx(1) and sum(shares) == pytest.approx(1)
    endless = make(tmp_path / "endless", weights=np.full((3, 4), np.inf))
    assert "not finite" in told(capsys, [endless, file], 1)[0]["error"]


def test_one_line_for_each_image(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundle.parent / "a.png"
    Image.new("RGB", (SIZE, SIZE), (255, 0, 0)).save(file)
    assert predict.main([str(bundle), "--top", "2", str(file)]) == 0
    out, err = capsys.readouterr()
    red, grey = 100 * softmax(file)[[0, 3]]
    assert out == f"{file}: red {red:.2f} %, grey {grey:.2f} %\n"
    assert err == ""


def test_int8_uses_its_own_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = picture(bundle.parent / "a.png")
    assert predict.main([str(bundle), "--int8", str(file)]) == 2
    assert "no student.int8.onnx" in capsys.readouterr().err
    other = model(raw=False, weights=-WEIGHTS).SerializeToString()
    (bundle / "student.int8.onnx").write_bytes(other)
    seal(bundle)
    usual, turned = told(capsys, [bundle, file]), told(capsys, [bundle, file, "--int8"])
    order = [[p["index"] for p in r[0]["predictions"]] for r in (usual, turned)]
    assert order[0] == order[1][::-1]


def test_folders_are_searched_in_order(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bundle.parent / "images"
    (root / "b" / "c.png").mkdir(parents=True)
    for name in ("b/2.PNG", "b/c.png/1.bmp", "a.tiff", "b/1.webp"):
        picture(root / name)
    (root / "notes.txt").write_text("no image")
    last = picture(bundle.parent / "z.jpg")
    records = told(capsys, [bundle, root, last])
    names = [os.path.relpath(r["file"], root) for r in records[:-1]]
    assert names == ["a.tiff", "b/1.webp", "b/2.PNG", "b/c.png/1.bmp"]
    assert records[-1]["file"] == str(last)


def test_without_a_resize_pixels_are_those_of_training(tmp_path: Path) -> None:
    plain, raw = loaded(make(tmp_path / "a")), loaded(make(tmp_path / "b", raw=True))
    files = [picture(tmp_path / f"{n}.{s}", seed=n) for n, s in enumerate(("png", "jpg", "bmp"))]
    ours = Preprocessing(SIZE, MEAN, STD)
    reference = FileImages(files, torch.zeros(3), ours, tmp_path).fetch(torch.arange(3))
    images = [plain.read(f) for f in files]
    expected = ours.normalise(reference).numpy()
    found = plain.prepare(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    pixels = raw.prepare(images)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, reference.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(plain.logits(images), raw.logits(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resize", [SIZE, 11, 14, 6])
def test_a_resize_is_off_by_one_grey_level_at_most(tmp_path: Path, resize: int) -> None:
    sizes = [(40, 40), (61, 37), (37, 62), (resize, resize + 4), (33, 9), (8, 21), (5, 5)]
    files = [picture(tmp_path / f"{n}.png", size, seed=n) for n, size in enumerate(sizes)]
    ours = Preprocessing(SIZE, MEAN, STD, resize)
    reference = FileImages(files, torch.zeros(len(files)), ours, tmp_path)
    expected = reference.fetch(torch.arange(len(files))).permute(0, 2, 3, 1).numpy()
    predictor = loaded(make(tmp_path / "bundle", resize=resize))
    found = np.stack([predictor.read(f) for f in files])
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


# EXIF's orientation: how the stored rows and columns are to be shown, as its standard says.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photos_are_set_upright(bundle: Path, orientation: int, suffix: str) -> None:
    file = bundle.parent / f"turned.{suffix}"
    with Image.open(picture(bundle.parent / "a.png", (SIZE + 5, SIZE + 2))) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(file, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(file) as image:
        # Pillow itself sets a TIFF upright.
        stored = np.asarray(image.convert("RGB"))
    shown = stored if suffix == "tiff" else UPRIGHT[orientation](stored)
    assert shown.shape[0] > shown.shape[1] if orientation > 4 else shown.shape[0] < shown.shape[1]
    Image.fromarray(np.ascontiguousarray(shown)).save(bundle.parent / "upright.png")
    found = loaded(bundle).read(file)
    np.testing.assert_array_equal(found, loaded(bundle).read(bundle.parent / "upright.png"))


def test_damaged_exif_says_nothing_of_the_pixels(bundle: Path) -> None:
    file = picture(bundle.parent / "a.png")
    with Image.open(file) as image:
        image.save(bundle.parent / "odd.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    predictor = loaded(bundle)
    np.testing.assert_array_equal(predictor.read(bundle.parent / "odd.png"), predictor.read(file))


def test_of_16_bits_the_upper_8_are_taken(bundle: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), np.uint16)
    for suffix in ("png", "tiff"):
        file = bundle.parent / f"deep.{suffix}"
        Image.fromarray(values).save(file)
        found = loaded(bundle).read(file)
        np.testing.assert_array_equal(found, np.repeat((values // 256)[..., None], 3, 2))


def test_a_photo_is_resized_by_its_shorter_side(bundle: Path) -> None:
    file = bundle.parent / "wide.png"
    picture(file, (60, 31))
    expected = Preprocessing(SIZE, MEAN, STD, SIZE)
    reference = FileImages([file], torch.zeros(1), expected, bundle).fetch(torch.arange(1))
    found = loaded(bundle).read(file).astype(int)
    assert np.abs(found - reference[0].permute(1, 2, 0).numpy()).max() <= 1


def test_json_lines_come_one_by_one(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [picture(bundle.parent / f"{n}.png", seed=n) for n in range(3)]
    expected = told(capsys, [bundle, *files])
    assert predict.main([str(bundle), *map(str, files), "--jsonl"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
    with pytest.raises(SystemExit):
        predict.main([str(bundle), *map(str, files), "--jsonl", "--json"])


def test_a_csv_has_a_line_for_each_image(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [picture(tmp_path / f"{n}, ä.png", seed=n) for n in range(3)]
    files.insert(1, tmp_path / "none.png")
    records = told(capsys, [bundle, *files], 1)
    table = tmp_path / "t.csv"
    command = [str(bundle), *map(str, files), "--csv", str(table), "--top", "2"]
    for _ in range(2):  # its own table may be made anew
        assert predict.main(command) == 1
        assert capsys.readouterr().out == f"{table}: 4 images, 1 of them with an error\n"
    with table.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [*rows[0]] == ["file", "class", "probability", "class_2", "probability_2", "error"]
    for row, record in zip(rows, records, strict=True):
        assert (row["file"], row["error"]) == (record["file"], record.get("error", ""))
        best = record.get("predictions", [{"class": "", "probability": ""}] * 2)
        assert (row["class"], row["class_2"]) == (best[0]["class"], best[1]["class"])
        assert "error" in record or float(row["probability"]) == pytest.approx(
            best[0]["probability"], rel=1e-5
        )
    assert not list(tmp_path.glob("*.partial"))


def test_a_csv_writes_over_no_other_file(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, table = picture(tmp_path / "a.png"), tmp_path / "mine.csv"
    table.write_text("file,owner\n")
    for place, message in ((table, "rename it"), (tmp_path / "no" / "t.csv", "cannot be written")):
        assert predict.main([str(bundle), str(file), "--csv", str(place)]) == 2
        assert message in capsys.readouterr().err
    assert table.read_text() == "file,owner\n"


@pytest.mark.parametrize("workers", [1, 3])
def test_few_images_are_read_ahead(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    predictor = loaded(bundle)
    lock, read, done = threading.Lock(), [0], 0

    def reading(self: predict.Predictor, path: str) -> Any:
        with lock:
            read[0] += 1
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    monkeypatch.setattr(predict.Predictor, "read", reading)
    found = [{"file": f"{n}.png"} for n in range(50)]
    for record in predict.classify(predictor, found, batch=4, top=1, workers=workers):
        assert record["file"] == f"{done}.png"
        done += 1
        assert read[0] <= done + 4 + max(4, 2 * workers), "of this batch, and ahead of it"
    assert (done, read[0]) == (50, 50)


def test_providers_by_short_names(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = picture(bundle.parent / "a.png")
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: known)
    expected = told(capsys, [bundle, file])
    assert told(capsys, [bundle, file, "--provider", "CPU"]) == expected
    # ONNX Runtime takes the CPU without a word where CUDA does not start; a stand-in for that.
    session = onnxruntime.InferenceSession

    def on_cpu(path: str, options: Any, providers: list[str]) -> Any:
        assert providers == known
        return session(path, options, providers=providers[1:])

    monkeypatch.setattr("onnxruntime.InferenceSession", on_cpu)
    for name, message in (("cuda", "could not start it here"), ("coreml", "it has cuda, cpu")):
        assert predict.main([str(bundle), str(file), "--provider", name]) == 2
        assert message in capsys.readouterr().err


def test_a_run_directory_stands_for_its_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    bundle, file = make(tmp_path / "run" / "export" / "bundle"), picture(tmp_path / "a.png")
    assert told(capsys, [tmp_path / "run", file]) == told(capsys, [bundle, file])


def test_the_command_runs_no_code_of_the_bundle(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = picture(bundle.parent / "a.png")
    (bundle / "predict.py").write_text("raise SystemExit('foreign code')")
    seal(bundle)
    assert predict_command.main([str(bundle), str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{file}: ")
    with pytest.raises(SystemExit):
        predict_command.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: compress predict ")


@pytest.mark.parametrize("segments", [False, True])
def test_what_cannot_be_prepared_is_told_as_it_is(bundle: Path, segments: bool) -> None:
    predictor = loaded(bundle)
    if segments:
        predictor.bundle.preprocess["any_size"] = True
    wanted = r"\(height, width, 3\), all of one size" if segments else r"\(9, 9, 3\)"
    images = [np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, 8, 3), np.uint8)]
    for wrong in (images, [images[0].astype(np.float32)], [images[0][..., 0]], []):
        with pytest.raises(ValueError, match=f"expected uint8 images {wanted}"):
            predictor.prepare(wrong)


def test_odd_names_are_printed_and_kept(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a\xff\nb\x1b[2J \xc3\xa4.png")
    file = bundle.parent / name
    shutil.copy(picture(bundle.parent / "plain.png"), os.fsencode(file))
    assert told(capsys, [bundle, file])[0]["file"] == str(file)
    assert predict.main([str(bundle), str(file)]) == 0
    out = capsys.readouterr().out
    assert r"a\udcff\nb\x1b[2J ä.png: " in out and out.count("\n") == 1
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    predict._write(str(file), stream)
    stream.flush()
    assert stream.buffer.getvalue().endswith(rb"\xe4.png" + b"\n")  # type: ignore[attr-defined]


def test_progress_is_for_terminals(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(picture(bundle.parent / f"{n}.png")) for n in range(3)]
    arguments = [str(bundle), *files, "--batch", "2"]
    assert predict.main(arguments) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert predict.main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == quiet.out
    assert "\r0 of 3 images" in shown.err and "\r2 of 3 images" in shown.err
    assert shown.err.endswith(" \r") and "\n" not in shown.err


def test_an_interrupt_is_quiet(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict.Predictor, "read", interrupted)
    assert predict.main([str(bundle), "a.png"]) == 130
    assert capsys.readouterr() == ("", "")


def script(folder: Path, *arguments: str, options: str = "-I") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options.split(), str(folder / "predict.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG)


def test_the_copy_in_a_bundle_is_a_script(bundle: Path) -> None:
    file = picture(bundle.parent / "a.png")
    done = script(bundle, str(file), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    best = json.loads(done.stdout)[0]["predictions"][0]
    assert best["probability"] == pytest.approx(softmax(file).max(), rel=1e-5)
    assert sorted(p.name for p in bundle.iterdir()) == sorted(
        ["manifest.json", "student.onnx", "labels.txt", "preprocess.json", "predict.py"]
    )


def test_help_and_refusals_need_no_package(bundle: Path) -> None:
    alone = "-I -S"  # without site-packages
    shown = script(bundle, "--help", options=alone)
    assert shown.returncode == 0 and "beside this script" in " ".join(shown.stdout.split())
    assert "give image files" in script(bundle, options=alone).stderr
    missing = script(bundle, "a.png", options=alone)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert "pip install numpy pillow onnxruntime" in missing.stderr


@pytest.mark.parametrize(("target", "code", "said"), [("pipe", 141, 0), ("/dev/full", 2, 1)])
def test_a_reader_that_leaves_is_no_error(bundle: Path, target: str, code: int, said: int) -> None:
    file = picture(bundle.parent / "a.png")
    if target == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    command = [sys.executable, "-I", str(bundle / "predict.py"), str(file)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=HANG)
    os.close(writer)
    assert done.returncode == code
    assert done.stderr.count("\n") == said


def test_the_script_imports_nothing_but_its_three_packages() -> None:
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            names.add(node.module.split(".")[0])
    assert names - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}
