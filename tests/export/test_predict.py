"""The bundle's own script: what it names, how it sees pixels, and that it runs alone."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import FileImages, Preprocessing
from export.bundle import predict
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
    assert "not finite" in told(capsys, [endless, file], 2)[0]["error"]


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


def test_orientation_tags_are_not_applied(bundle: Path) -> None:
    file = picture(bundle.parent / "a.png")
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(bundle.parent / "turned.png", exif=exif)
    predictor = loaded(bundle)
    turned = predictor.read(bundle.parent / "turned.png")
    np.testing.assert_array_equal(turned, predictor.read(file))


def test_converting_resizes_the_shorter_side(bundle: Path) -> None:
    file = bundle.parent / "wide.png"
    picture(file, (60, 31))
    expected = Preprocessing(SIZE, MEAN, STD, SIZE)
    reference = FileImages([file], torch.zeros(1), expected, bundle).fetch(torch.arange(1))
    found = loaded(bundle, convert=True).read(file).astype(int)
    assert np.abs(found - reference[0].permute(1, 2, 0).numpy()).max() <= 1


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
