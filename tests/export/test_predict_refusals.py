"""What the bundle's script refuses: each bad input in one sentence, the rest still done."""

import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.bundle import predict
from tests.export.toy_bundles import LABELS, SIZE, make, model, picture, seal
from tests.hostile.pictures import EPS


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make(tmp_path / "bundle")


def in_mode(path: Path, mode: str, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    picture(path.with_name("source.png"), size)
    with Image.open(path.with_name("source.png")) as image:
        image.convert(mode).save(path)


def see_through(path: Path) -> None:
    """A palette with one transparency for each entry, which Pillow warns of."""
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(path, transparency=b"\x80\x40")


def bomb(path: Path) -> None:
    """A PNG that announces 400 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT", b"IEND"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content)


def truncated(path: Path) -> None:
    picture(path, (200, 200))
    path.write_bytes(path.read_bytes()[:3000])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (SIZE, SIZE)).save(path, exif=exif)


# Name, how it is made, what is said, whether it is refused under --strict alone.
BAD = [
    ("none.png", lambda p: None, "not there", False),
    ("folder", Path.mkdir, "holds no images", False),
    ("pipe.png", os.mkfifo, "not a file", False),
    ("text.png", lambda p: p.write_text("no image"), "not an image", False),
    ("empty.png", lambda p: p.touch(), "not an image", False),
    ("drawing.eps", lambda p: p.write_bytes(EPS), "not an image of one of the formats PNG", False),
    ("photograph.png", lambda p: p.write_bytes(EPS), "formats PNG, JPEG, .*; convert it", False),
    ("cut.jpg", truncated, "truncated", False),
    ("bomb.png", bomb, "decompression bomb", False),
    ("deep.png", lambda p: in_mode(p, "I;16"), "more than 8 bits", True),
    ("float.tiff", lambda p: in_mode(p, "F"), "more than 8 bits", False),
    ("thin.png", lambda p: Image.new("RGB", (1, 2_000_000)).save(p), "too many|--strict", False),
    ("large.png", lambda p: picture(p, (40, 20)), "40 x 20 pixels.*9 x 9.*--strict", True),
    ("small.png", lambda p: picture(p, (4, 5)), "--strict", True),
    ("grey.png", lambda p: in_mode(p, "L"), "mode L .*--strict", True),
    ("bits.png", lambda p: in_mode(p, "1"), "mode 1 .*--strict", True),
    ("cmyk.jpg", lambda p: in_mode(p, "CMYK"), "mode CMYK .*--strict", True),
    ("alpha.png", lambda p: in_mode(p, "RGBA"), "mode RGBA .*--strict", True),
    ("palette.png", see_through, "mode P .*--strict", True),
    ("turned.png", turned, "stored turned .*--strict", True),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("name", "write", "message", "fits"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_image_is_one_sentence_and_the_rest_is_done(
    bundle: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    write: Any,
    message: str,
    fits: bool,
    strict: bool,
) -> None:
    good, bad = picture(bundle.parent / "good.png"), bundle.parent / name
    write(bad)
    arguments = [str(bundle), str(bad), str(good), "--json", *(["--strict"] * strict)]
    code = predict.main(arguments)
    out, err = capfd.readouterr()
    first, second = json.loads(out)
    assert len(second["predictions"]) == len(LABELS)
    if fits and not strict:
        assert (code, err, len(first["predictions"])) == (0, "", len(LABELS))
        return
    assert code == 1
    assert first.keys() == {"file", "error"}
    assert err == f"error: {first['error']}\n"
    said = message.split("|")[strict and "|" in message]
    assert re.search(said, err), err
    assert name in err


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def piped(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")


DAMAGE = [
    (lambda b: (b / "student.onnx").unlink(), "student.onnx is missing"),
    (lambda b: change(b / "student.onnx"), "student.onnx was changed"),
    (lambda b: os.truncate(b / "labels.txt", 5), "labels.txt has 5 bytes instead of 20"),
    (lambda b: (b / "numpy.py").write_text(""), "numpy.py is not listed"),
    (lambda b: change(b / "predict.py"), "predict.py was changed"),
    (lambda b: (b / "manifest.json").unlink(), "is not a bundle: it has no manifest.json"),
    (lambda b: os.truncate(b / "manifest.json", 50), "manifest.json is damaged"),
    (lambda b: (b / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    (piped, "manifest.json is damaged (it is not a file)"),
    (lambda b: (b / "manifest.json").write_text('{"format": 1}'), "manifest.json is damaged"),
    (
        lambda b: (b / "manifest.json").write_text('{"format": 1, "files": {"labels.txt": 3}}'),
        "labels.txt is not described",
    ),
    (
        lambda b: (b / "manifest.json").write_text('{"format": 1, "files": {"../a.png": {}}}'),
        "a.png is missing",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d[1] for d in DAMAGE])
def test_a_bundle_that_does_not_fit_its_manifest_is_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    file = picture(bundle.parent / "a.png")
    damage(bundle)
    assert predict.main([str(bundle), str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert message in err


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


UNFIT = [
    ("student.onnx", lambda p: os.truncate(p, 100), "cannot run"),
    ("student.onnx", lambda p: p.write_bytes(model(raw=True).SerializeToString()), "cannot run"),
    (
        "student.onnx",
        lambda p: p.write_bytes(model(raw=False, opset=9999).SerializeToString()),
        "opset",
    ),
    ("labels.txt", lambda p: p.write_text("red\n"), "gives (1, 4) for one image and 1 labels"),
    ("preprocess.json", lambda p: p.write_text('{"format": 2}'), "does not say format 1"),
    ("preprocess.json", lambda p: p.write_text('{"format": 1}'), "damaged: dtype is none of"),
    (
        "preprocess.json",
        lambda p: edit(p, image_size=10**6),
        "image_size is no whole number",
    ),
    ("preprocess.json", lambda p: edit(p, resize="1"), "resize is no whole number from 0 to 16384"),
]


@pytest.mark.parametrize(("name", "write", "message"), UNFIT)
def test_files_that_fit_the_manifest_and_still_cannot_be_used(
    bundle: Path, capfd: pytest.CaptureFixture[str], name: str, write: Any, message: str
) -> None:
    file = picture(bundle.parent / "a.png")
    write(bundle / name)
    seal(bundle)
    assert predict.main([str(bundle), str(file)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert message in err


def test_what_file_managers_leave_behind_is_no_damage(bundle: Path) -> None:
    (bundle / ".DS_Store").touch()
    (bundle / "__pycache__").mkdir()
    (bundle / "__pycache__" / "predict.pyc").touch()
    assert predict.main([str(bundle), str(picture(bundle.parent / "a.png"))]) == 0


def test_no_input_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (([], "a bundle's folder"), ([str(bundle)], "image files")):
        assert predict.main(arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert predict.main([str(bundle), "a.png", "--strict", "--convert"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    for wrong in ("--top", "--batch", "--threads", "--workers"):
        with pytest.raises(SystemExit) as stop:
            predict.main([str(bundle), wrong, "0"])
        assert stop.value.code == 2


def test_a_batch_that_cannot_be_run_costs_only_its_own_images(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(picture(bundle.parent / f"{n}.png", seed=n)) for n in range(5)]
    run = predict.Predictor.logits

    def limited(self: predict.Predictor, images: Any) -> Any:
        if len(images) > 1:
            raise MemoryError("no\nmemory")
        return run(self, images)

    monkeypatch.setattr(predict.Predictor, "logits", limited)
    assert predict.main([str(bundle), *files, "--batch", "2", "--json"]) == 1
    out, err = capsys.readouterr()
    records = json.loads(out)
    assert [r["file"] for r in records] == files
    assert ["error" in r for r in records] == [True, True, True, True, False]
    assert err.count("\n") == 4 and f"{files[0]} was not classified: no memory" in err
