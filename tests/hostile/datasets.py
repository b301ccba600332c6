"""Small data sets in every layout, each made hostile in one place drawn from a generator."""

import json
import pickle
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.data import Preprocessing, open_data
from compress.data.dense.layouts import camvid, voc_segmentation
from compress.data.scenes import Scene
from eval.data import coco, stl10, tiny_imagenet, voc
from eval.data.scene_files import write_coco, write_voc
from tests.hostile.pictures import harmed, replace_by_hostile

SHOWN = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 8)
NAMES = ("cat", "dog")
SECRET = "secret.png"  # beside every data set, never to be read
# What stands in the place of a name in a listing.
OUTSIDE = (f"../../{SECRET}", f"../{SECRET}", "/etc/hostname", "x/../../../secret", "..")
_ENTRIES = (*OUTSIDE, "", "\0", "a" * 300, "a\x1b[31m", "\udce9", "%s", "~", "CON", "x" * 5000)
_VALUES = (
    *(None, True, -1, 0, 2**70, 1.5, 1e308, float("nan"), float("inf"), "", "7", [], {}, [[]]),
    *([1, 2], {"id": 1}, "\ud800", 10**30),
)
# Eight levels of ten: 10 GB of text, had it been expanded.
ENTITIES = (
    b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">'
    + b"".join(b'<!ENTITY b%d "%s">' % (n, b"&b%d;" % (n - 1) * 10) for n in range(1, 10))
    + b"]><annotation><filename>&b9;</filename></annotation>"
).replace(b"&b0;", b"&b;")


def _picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (value, 9, 9)).save(path, "PNG")


def _scenes() -> list[Scene]:
    mask = np.zeros((8, 12), np.uint8)
    mask[1:5, 2:9] = 1
    return [Scene(np.zeros((8, 12, 3), np.uint8), mask, ((2, 1, 9, 5),), (0,)) for _ in range(2)]


def _json_value(content: Any, draw: random.Random) -> None:
    """Put something else in the place of one value of a nested JSON."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        keys: Iterable[Any] = part if isinstance(part, dict) else range(len(part))
        for key in keys:
            places.append((part, key))
            if isinstance(part[key], (dict, list)):
                walk(part[key])

    walk(content)
    part, key = draw.choice(places)
    if isinstance(part, dict) and draw.random() < 0.15:
        del part[key]
    else:
        part[key] = draw.choice((*_VALUES, *_ENTRIES) if key != "file_name" else _ENTRIES)


def _harm_text(path: Path, draw: random.Random) -> str:
    """A listing, JSON or XML with another entry, damaged bytes, or something else altogether."""
    kind = draw.choice(("entry", "entry", "bytes", "garbage", "deep", "file"))
    content = path.read_bytes()
    if kind == "bytes":
        path.write_bytes(harmed(content, draw))
    elif kind == "garbage":
        path.write_bytes(draw.choice((b"", draw.randbytes(200), b"\xff\xfe\0", b"\0" * 50)))
    elif kind == "deep":
        path.write_bytes(draw.choice((b"[", b"<a>", b'{"a":')) * 50_000)
    elif kind == "file":
        return f"{path.suffix[1:]} {replace_by_hostile(path, draw)}"
    elif path.suffix == ".json":
        tree = json.loads(content)
        _json_value(tree, draw)
        path.write_text(json.dumps(tree))
    elif path.suffix == ".xml":
        value = draw.choice(("9" * 400, "nan", "-3", "1e308", "&b;", "<x/>", *OUTSIDE)).encode()
        spots = [m.span() for m in re.finditer(rb"(?<=>)[^<>]+(?=<)", content)]
        first, last = draw.choice(spots)
        path.write_bytes(draw.choice((content[:first] + value + content[last:], ENTITIES)))
    else:
        entry = draw.choice(_ENTRIES).encode("utf-8", "surrogateescape")
        path.write_bytes(re.sub(rb"^[^\s]+", lambda _: entry, content, count=1))
    return f"{path.suffix[1:]} {kind}"


def _harm_one(paths: Iterable[Path], draw: random.Random) -> str:
    path = draw.choice(sorted(paths))
    if path.suffix in (".txt", ".json", ".xml"):
        return _harm_text(path, draw)
    return f"image {replace_by_hostile(path, draw)}"


def _files(root: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in root.glob(pattern)]


def image_folders(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for split in ("train", "test"):
        for name in NAMES:
            for number in range(2):
                _picture(root / split / name / f"{number}.png", number)
    kind = _harm_one(_files(root, "*/*/*.png"), draw)
    if draw.random() < 0.1:
        (root / "train" / "loop").symlink_to(root)

    def read() -> list[Path]:
        data = open_data({"name": "image_folder", "root": str(root), "image_size": 8})
        for images in (data.train, data.test):
            images.fetch(torch.arange(len(images)))
        return [*data.train.paths, *data.test.paths]  # type: ignore[attr-defined]

    return kind, read


def voc_boxes(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for split in ("train", "val"):
        write_voc(root, split, _scenes(), NAMES)
    kind = _harm_one(_files(root, "ImageSets/Main/*", "Annotations/*", "JPEGImages/*"), draw)
    return kind, lambda: _detected(voc(root, root=str(root)))


def coco_boxes(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for split in ("train", "val"):
        write_coco(root, split, _scenes(), NAMES)
    lists = _files(root, "annotations/*")
    kind = _harm_one([*lists, *(lists if draw.random() < 0.8 else _files(root, "*/*.png"))], draw)
    return kind, lambda: _detected(coco(root, root=str(root)))


def _detected(data: Any) -> list[Path]:
    images = [*data.train, *data.test]
    for image in images:
        image.pixels()
        if image.segments:
            image.masks()
    return [image.path for image in images]


def voc_masks(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for split in ("train", "val"):
        write_voc(root, split, _scenes(), NAMES)
    kind = _harm_one(
        _files(root, "ImageSets/Segmentation/*", "SegmentationClass/*", "JPEGImages/*"), draw
    )
    return kind, lambda: _masked(voc_segmentation(root=str(root)))


def mask_pairs(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for split in ("train", "val"):
        _picture(root / split / "one.png")
        _picture(root / f"{split}annot" / "one.png")
        Image.new("L", (12, 8), 3).save(root / f"{split}annot" / "one.png")
    kind = _harm_one(_files(root, "*/*.png"), draw)
    return kind, lambda: _masked(camvid(root=str(root)))


def _masked(data: Any) -> list[Path]:
    items = [*data.train, *data.test]
    for item in items:
        item.pixels(), item.classes()
    return [path for item in items for path in (item.image, item.mask)]


def tiny(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for name in NAMES:
        _picture(root / "train" / name / "images" / f"{name}.JPEG")
        _picture(root / "val" / "images" / f"{name}.JPEG")
    lines = [f"{name}.JPEG\t{name}\t0\t0\t9\t9" for name in NAMES]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    lists = _files(root, "val/*.txt")
    kind = _harm_one([*_files(root, "*/*/*.JPEG", "*/*/*/*.JPEG"), *lists * 4], draw)

    def read() -> list[Path]:
        data = tiny_imagenet(root, root=str(root))(SHOWN, 0)
        for images in (data.train, data.test):
            images.fetch(torch.arange(len(images)))
        return [*data.train.paths, *data.test.paths]  # type: ignore[attr-defined]

    return kind, read


def stl(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    for split in ("train", "test"):
        (root / f"{split}_X.bin").write_bytes(bytes(2 * 3 * 96 * 96))
        (root / f"{split}_y.bin").write_bytes(b"\1\2")
    (root / "class_names.txt").write_text("cat\ndog\n")
    path = draw.choice(sorted(root.iterdir()))
    kind = draw.choice(("bytes", "file"))
    if kind == "bytes":
        path.write_bytes(harmed(path.read_bytes()[:200], draw))
    else:
        kind = replace_by_hostile(path, draw)

    def read() -> list[Path]:
        stl10(root, root=str(root))(SHOWN, 0)
        return []

    return f"{path.suffix[1:]} {kind}", read


class Attack:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def cifar(root: Path, draw: random.Random) -> tuple[str, Callable[[], list[Path]]]:
    content: dict[bytes, Any] = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}
    files = {"train": content, "test": content, "meta": {b"fine_label_names": [b"cat", b"dog"]}}
    name = draw.choice(sorted(files))
    kind = draw.choice(("value", "value", "value", "bytes", "file", "attack"))
    if kind == "value":
        own = dict(files[name])
        arrays = (np.zeros(3), np.array([None]), np.zeros((2, 3072), "S1"), Attack, bytes(6144))
        numbers = ([2**70], [-1, 0], [0.5, 1], [[0], [1]], [float("nan")] * 2, {1: 2}, "\udce9")
        own[draw.choice(sorted(own))] = draw.choice((*arrays, *numbers, *_VALUES, b"\xff"))
        files[name] = own
    for file, whole in files.items():
        (root / file).write_bytes(pickle.dumps(whole, protocol=draw.choice((2, 3, 4))))
    if kind == "attack":
        evil = {b"data": Attack(root.parent / "harmed"), b"fine_label_names": 3}
        (root / name).write_bytes(pickle.dumps(evil))
    elif kind == "bytes":
        (root / name).write_bytes(harmed((root / name).read_bytes(), draw))
    elif kind == "file":
        kind = f"{replace_by_hostile(root / name, draw)}"

    def read() -> list[Path]:
        data = open_data({"name": "cifar100", "root": str(root)})
        assert int(data.train.labels.max()) < len(data.class_names)
        return []

    return f"pickle {kind}", read


Tensors = dict[str, Tensor]
LAYOUTS: dict[str, Callable[[Path, random.Random], tuple[str, Callable[[], list[Path]]]]] = {
    "image_folder": image_folders,
    "voc": voc_boxes,
    "coco": coco_boxes,
    "voc_segmentation": voc_masks,
    "camvid": mask_pairs,
    "tiny_imagenet": tiny,
    "stl10": stl,
    "cifar100": cifar,
}
