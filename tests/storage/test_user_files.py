"""Files of a user's data set: what is opened at all, where names may lead, which pictures count."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from compress.data import open_data
from compress.data.image_files import FORMATS, read_rgb, upright_size
from compress.errors import UserError
from compress.storage.fingerprints import fingerprint_of_folder
from compress.storage.user_files import inside, read_listing, require_file
from tests.hostile.pictures import EPS, png


def coloured() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", [*FORMATS, "MPO"])  # several JPEGs in one, as telephones write
def test_usual_formats_are_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "image"
    coloured().save(path, form, **({"save_all": True} if form == "MPO" else {}))
    with Image.open(path) as image:
        expected = np.array(image.convert("RGB"))
    assert np.array_equal(read_rgb(path, upright=False).permute(1, 2, 0), expected)


@pytest.mark.parametrize("name", ["drawing.eps", "photograph.png"])
def test_no_image_starts_ghostscript(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: starts.append(given))
    (tmp_path / name).write_bytes(EPS)
    for read in (upright_size, lambda path: read_rgb(path, upright=True)):
        with pytest.raises(UserError, match=rf"{name} .* one of the formats PNG, JPEG, .*convert"):
            read(tmp_path / name)
    assert not starts


@pytest.mark.parametrize(("width", "height"), [(1, 2_000_000), (257, 1), (1, 65_000)])
def test_strips_are_refused_before_they_are_decoded(
    tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(png(width, height))
    with pytest.raises(UserError, match=rf"strip\.png has {width} x {height} pixels, .* 256 times"):
        read_rgb(path, upright=False)


def test_long_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "long.png").write_bytes(png(512, 2))
    assert read_rgb(tmp_path / "long.png", upright=False).shape == (3, 2, 512)


def folder_of_images(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            coloured().save(root / split / name / "1.png")
    return root


SPECIAL: list[tuple[Callable[[Path], Any], str]] = [
    (os.mkfifo, "is a named pipe"),
    (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    (lambda path: path.symlink_to("gone.png"), "not found"),
    (lambda path: path.symlink_to(path.name), "cannot be read"),
]


@pytest.mark.parametrize(("make", "words"), SPECIAL)
def test_an_image_folder_names_what_is_no_file(tmp_path: Path, make: Any, words: str) -> None:
    root = folder_of_images(tmp_path)
    make(root / "train/cat/2.png")
    with pytest.raises(UserError, match=rf"train/cat/2\.png {words}"):
        open_data({"name": "image_folder", "root": str(root)})


def test_a_folder_may_be_called_like_an_image(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path)
    (root / "train/cat/2.png").mkdir()
    coloured().save(root / "train/cat/2.png/1.png")
    data = open_data({"name": "image_folder", "root": str(root)})
    assert [path.parent.name for path in data.train.paths] == ["cat", "2.png", "dog"]  # type: ignore[attr-defined]


def test_a_class_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path)
    try:
        os.mkdir(os.fsencode(root / "train") + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(UserError, match=r"train has the folder 'caf.*, whose name is no UTF-8"):
        open_data({"name": "image_folder", "root": str(root)})


@pytest.mark.parametrize(("make", "words"), [*SPECIAL, (Path.mkdir, "is a folder")])
def test_only_files_are_opened(tmp_path: Path, make: Any, words: str) -> None:
    make(tmp_path / "list.txt")
    with pytest.raises(UserError, match=rf"list\.txt {words}"):
        read_listing(tmp_path / "list.txt")
    with pytest.raises(UserError, match=rf"list\.txt {words}.*; .*other names it"):
        require_file(tmp_path / "list.txt", tmp_path / "other")


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a" * 5000])
def test_impossible_names_are_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"aa? not found|a cannot be read|not found"):
        require_file(tmp_path / name)


@pytest.mark.parametrize(
    ("entry", "stays"),
    [
        ("1.png", True),
        ("deep/1.png", True),
        ("../other/1.png", True),
        ("..png", True),
        ("../../1.png", False),
        ("deep/../../../1.png", False),
        ("../../data-2/1.png", False),
        ("/etc/passwd", False),
    ],
)
def test_names_stay_in_the_data_set(
    tmp_path: Path, entry: str, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in (tmp_path / "data", Path("data")):
        monkeypatch.chdir(tmp_path)
        path = root / "images" / entry
        if stays:
            assert inside(root, path, entry, Path("list.txt")) == path
            continue
        with pytest.raises(UserError, match=r"^list\.txt names '.*', which is outside"):
            inside(root, path, entry, Path("list.txt"))


def test_a_link_inside_may_lead_anywhere(tmp_path: Path) -> None:
    folder_of_images(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / split).symlink_to(tmp_path / "elsewhere" / split)
    assert len(open_data({"name": "image_folder", "root": str(tmp_path / "data")}).train) == 2
    here, there = (fingerprint_of_folder(tmp_path / name) for name in ("data", "elsewhere"))
    assert here == there


def test_links_that_lead_up_add_nothing(tmp_path: Path) -> None:
    root = folder_of_images(tmp_path / "data")
    before = fingerprint_of_folder(root)
    for place in (".", "train", "train/cat"):  # three such links are thousands of ways
        for number in range(3):
            (root / place / f"up-{number}").symlink_to(root)
    assert fingerprint_of_folder(root) == before
    (root / "train/again").symlink_to(root / "train/cat")  # no loop: the same images once more
    linked = fingerprint_of_folder(root)
    (root / "train/again").unlink()
    shutil.copytree(root / "train/cat", root / "train/again", symlinks=True)
    assert before != linked == fingerprint_of_folder(root)


def test_links_that_multiply_a_folder_are_refused(tmp_path: Path) -> None:
    for level in range(20):
        (tmp_path / str(level)).mkdir()
        for name in ("left", "right"):
            (tmp_path / str(level) / name).symlink_to(tmp_path / str(level + 1))
    with pytest.raises(UserError, match=r"0: links lead to .* in more than 100 ways"):
        fingerprint_of_folder(tmp_path / "0")
