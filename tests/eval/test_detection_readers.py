"""COCO and PASCAL VOC readers: the same boxes from both, and damaged files refused by name."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from compress.errors import UserError
from eval.data import DetectionData, coco, voc
from eval.data.masks import decode_masks, encode_masks, encode_segment
from eval.detection.examples import example
from eval.detection.task import check_masks
from tests.hostile.datasets import ENTITIES

Write = Callable[..., Path]


def read(reader: Callable[..., DetectionData], root: Path) -> DetectionData:
    return reader(root, root=str(root))


def test_both_layouts_give_the_same_boxes_and_pixels(scenes: Write) -> None:
    root = scenes(train=8)
    ours, theirs = read(coco, root), read(voc, root)
    assert ours.class_names == theirs.class_names == ("0", "1", "2")
    for split in ("train", "test"):
        pairs = list(zip(getattr(ours, split), getattr(theirs, split), strict=True))
        assert pairs
        for first, second in pairs:
            assert torch.equal(first.boxes, second.boxes)
            assert torch.equal(first.labels, second.labels)
            assert torch.equal(first.pixels(), second.pixels())


def test_box_is_where_the_bright_pixels_are(scenes: Write) -> None:
    for image in read(coco, scenes()).train:
        brightness = image.pixels().float().mean(0)
        outside = torch.ones_like(brightness, dtype=torch.bool)
        inside_means = []
        for x0, y0, x1, y1 in image.boxes.int().tolist():
            outside[y0:y1, x0:x1] = False
            inside_means.append(brightness[y0:y1, x0:x1].mean())
        assert min(inside_means) > brightness[outside].mean() + 30


def test_mirroring_twice_gives_the_image_and_boxes_back(scenes: Write) -> None:
    data = read(coco, scenes())
    pixels, target = example(data, 0, mirrored=False)
    mirrored_pixels, mirrored = example(data, 0, mirrored=True)
    assert torch.equal(mirrored_pixels.flip(2), pixels)
    width = pixels.shape[2]
    for (x0, y0, x1, y1), row in zip(
        target["boxes"].tolist(), mirrored["boxes"].tolist(), strict=True
    ):
        assert row == [width - x1, y0, width - x0, y1]


def edit_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        path = root / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path.name

    return damage


def outline(segmentation: Any) -> Callable[[Path], str]:
    """The same outline for every object."""
    return edit_json(lambda c: [a.update(segmentation=segmentation) for a in c["annotations"]])


def replace(path: str, old: str, new: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))
        return Path(path).name

    return damage


def empty(path: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).write_text("")
        return Path(path).name

    return damage


def write(path: str, content: bytes) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).write_bytes(content)
        return Path(path).name

    return damage


def remove(path: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).unlink()
        return Path(path).name

    return damage


def pipe(path: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).unlink()
        os.mkfifo(root / path)
        return Path(path).name

    return damage


def outside(name: str) -> Callable[[Path], str]:
    """An image that is there and is what the first annotation says, but not in the data set."""

    def damage(root: Path) -> str:
        Image.new("RGB", (64, 64)).save(root.parent / "secret.png")
        target = name.format(root.parent)
        (root / "JPEGImages" / "train_00000.png").unlink()
        edit_json(lambda c: c["images"][0].update(file_name=target))(root)
        replace(XML, "<filename>train_00000.png", f"<filename>{target}")(root)
        return "which is outside"

    return damage


def deepened(path: str) -> Callable[[Path], str]:
    """16 bits per pixel."""

    def damage(root: Path) -> str:
        Image.new("I;16", (64, 64), 40_000).save(root / path)
        return Path(path).name

    return damage


def cut_short(path: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).write_bytes((root / path).read_bytes()[:-200])
        return Path(path).name

    return damage


# Before a box of the file, which is then not read.
BOX = "<bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox><bndbox>"
XML = "Annotations/train_00000.xml"
JSON = "annotations/instances_train.json"
DAMAGES: list[tuple[Callable[..., DetectionData], Callable[[Path], str], str]] = [
    (coco, empty(JSON), "not JSON"),
    (coco, remove(JSON), "not found"),
    (coco, remove("train/train_00000.png"), "not found"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[50, 0, 30, 9])), "outside"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[5, 5, -1, 9])), "empty"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[80, 5, 0, 9])), "outside"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[5, 5])), "not a COCO"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=5)), "not a COCO"),
    (coco, edit_json(lambda c: c["annotations"][0].update(category_id=9)), "unknown class"),
    (coco, edit_json(lambda c: c["annotations"][0].update(image_id=99)), "not in its list"),
    (coco, edit_json(lambda c: c.pop("categories")), "not a COCO"),
    (coco, edit_json(lambda c: c.update(images=["a"])), "not a COCO"),
    (coco, edit_json(lambda c: c["images"][0].pop("file_name")), "not a COCO"),
    (coco, outline([[1, 2, 3]]), "damaged segmentation for train_00000.png (a polygon of 3"),
    (coco, outline({"size": [9, 64], "counts": [576]}), "64 x 9 pixels in an image of 64 x 64"),
    (coco, outline({"size": [64, 64], "counts": [9]}), "9 pixels in an image of 4096"),
    (coco, outline({"counts": [9]}), "damaged segmentation"),
    (coco, outline(7), "damaged segmentation"),
    (coco, edit_json(lambda c: c.update(images=[], annotations=[])), "lists no image"),
    (coco, edit_json(lambda c: c["images"][0].update(width=math.inf)), "not a COCO"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[5, 5, 10**400, 9])), "not a COCO"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[5, 5, math.nan, 9])), "empty or"),
    (coco, write(JSON, b"[" * 100_000), "not JSON"),
    (coco, edit_json(lambda c: c.update(categories=[], annotations=[])), "lists no category"),
    (coco, edit_json(lambda c: c["categories"][1].update(id=c["categories"][0]["id"])), "one id"),
    (coco, edit_json(lambda c: c.update(annotations=[])), "training split"),
    (voc, empty(XML), "not XML"),
    (voc, remove(XML), "not found"),
    (voc, remove("JPEGImages/train_00000.png"), "not found"),
    (voc, replace(XML, "<xmin>", "<xmin>9"), "outside"),
    (voc, replace(XML, "<xmin>", "<xmin>x"), "not a PASCAL VOC"),
    (voc, replace(XML, "<bndbox>", BOX.format(0, 0)), "empty"),
    (voc, replace(XML, "<bndbox>", BOX.format(65, 65)), "empty"),
    (voc, replace(XML, "<bndbox>", BOX.format(50.00001, 49.0000101)), "empty"),
    (voc, deepened("JPEGImages/train_00000.png"), "more than 8 bits per channel (mode I;16)"),
    (coco, deepened("train/train_00000.png"), "more than 8 bits per channel (mode I;16)"),
    (coco, deepened("val/val_00000.png"), "more than 8 bits per channel (mode I;16)"),
    (coco, write("train/train_00000.png", b"no image"), "not a readable image"),
    (coco, cut_short("val/val_00003.png"), "not a readable image"),
    (voc, cut_short("JPEGImages/val_00003.png"), "not a readable image"),
    (voc, replace(XML, "xmax", "right"), "not a PASCAL VOC"),
    (voc, replace("Annotations/val_00000.xml", "<name>", "<name>no"), "class 'no"),
    (voc, empty("ImageSets/Main/train.txt"), "lists no image"),
    (voc, remove("ImageSets/Main/val.txt"), "not found"),
    (voc, write("ImageSets/Main/train.txt", b"caf\xe9\n"), "UTF-8"),
    (voc, write(XML, b'<?xml version="1.0" encoding="klingon"?><annotation/>'), "not XML"),
    (voc, write(XML, b"<annotation>\xff</annotation>"), "not XML"),
    (voc, replace(XML, "<width>64", "<width>inf"), "not a PASCAL VOC"),
    (voc, replace(XML, "<width>64", "<width>nan"), "not a PASCAL VOC"),
    (voc, replace(XML, "<name>", "<name/><name>"), "without a name"),
    (voc, write(XML, ENTITIES), "declares a document type"),
    (voc, write(XML, ENTITIES.decode().encode("utf-16")), "declares a document type"),
    (voc, replace(XML, "<width>64", "<width>1e308"), "train_00000.png has"),
    (coco, edit_json(lambda c: c["images"][0].update(width=2**70)), "train_00000.png has"),
    (voc, pipe(XML), "is a named pipe"),
    (voc, pipe("ImageSets/Main/train.txt"), "is a named pipe"),
    (voc, pipe("JPEGImages/train_00000.png"), "is a named pipe"),
    (coco, pipe(JSON), "is a named pipe"),
    (coco, pipe("train/train_00000.png"), "is a named pipe"),
    (voc, replace("ImageSets/Main/train.txt", "train_00000", "../../x"), "names '../../x', which"),
    (voc, replace("ImageSets/Main/train.txt", "train_00000", "/etc/x"), "names '/etc/x', which"),
    *(
        (reader, outside(n), "instances_train.json" if reader is coco else "train_00000.xml")
        for reader in (coco, voc)
        for n in ("../../secret.png", "{}/secret.png")
    ),
]


@pytest.mark.parametrize(("reader", "damage", "says"), DAMAGES)
def test_damaged_annotation_names_its_file(
    scenes: Write,
    reader: Callable[..., DetectionData],
    damage: Callable[[Path], str],
    says: str,
) -> None:
    root = scenes()
    name = damage(root)
    with pytest.raises(UserError) as raised:
        read(reader, root)
    assert name in str(raised.value) and says in str(raised.value)


def test_training_image_that_ends_early_is_named_when_it_is_read(scenes: Write) -> None:
    root = scenes()
    cut_short("train/train_00000.png")(root)
    with pytest.raises(UserError, match=r"train_00000\.png is not a readable image"):
        read(coco, root).train[0].pixels()


def test_image_of_another_size_than_annotated_is_refused(scenes: Write) -> None:
    root = scenes()
    edit_json(lambda c: c["images"][0].update(width=80))(root)
    with pytest.raises(UserError, match=r"train_00000\.png has 64 x 64.*80 x 64"):
        read(coco, root)


def lay_on_side(path: Path, *, after_pixels: bool) -> torch.Tensor:
    """Rewrite a PNG as a camera that lay on its side does, 8 pixels longer; its upright pixels."""
    with Image.open(path) as image:
        upright = ImageOps.expand(image, (0, 0, 0, 8), "red")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.rotate(90, expand=True).save(path, exif=exif)
    if after_pixels:
        content = path.read_bytes()
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        last = content.index(b"IEND") - 4
        path.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


@pytest.mark.parametrize("after_pixels", [False, True])
def test_annotations_are_of_the_image_that_exif_sets_upright(
    scenes: Write, after_pixels: bool
) -> None:
    root = scenes()
    upright = lay_on_side(root / "train" / "train_00000.png", after_pixels=after_pixels)
    with pytest.raises(UserError, match=r"train_00000\.png has 64 x 72.*64 x 64"):
        read(coco, root)
    edit_json(lambda c: c["images"][0].update(height=72))(root)
    assert torch.equal(read(coco, root).train[0].pixels(), upright)
    edit_json(lambda c: c["images"][0].update(height=64, width=72))(root)
    with pytest.raises(UserError, match=r"train_00000\.png has 64 x 72.*72 x 64"):
        read(coco, root).train[0].pixels()


def test_box_one_pixel_outside_is_cut(scenes: Write) -> None:
    root = scenes()
    edit_json(lambda c: c["annotations"][0].update(image_id=1, bbox=[-1, 50, 20, 15]))(root)
    assert [0.0, 50.0, 19.0, 64.0] in read(coco, root).train[0].boxes.tolist()


def test_union_of_year_folders_is_one_after_the_other(scenes: Write, tmp_path: Path) -> None:
    scenes("kit/VOC2007", train=3, test=2), scenes("kit/VOC2012", train=4, test=2, seed=1)
    root = str(tmp_path / "kit")
    names = ("0", "1", "2")
    years = [voc(tmp_path, root=f"{root}/VOC{y}", classes=names) for y in (2007, 2012)]
    union = voc(tmp_path, root=root, train=("VOC2007/train", "VOC2012/train"), test="VOC2007/val")
    assert [image.path for image in union.train] == [i.path for y in years for i in y.train]
    assert [image.path for image in union.test] == [i.path for i in years[0].test]
    assert union.class_names == names

    # Under the names of the originals' splits no split need be named.
    for year, old, new in (
        (2007, "train", "trainval"),
        (2012, "train", "trainval"),
        (2007, "val", "test"),
    ):
        lists = Path(root) / f"VOC{year}" / "ImageSets" / "Main"
        (lists / f"{old}.txt").rename(lists / f"{new}.txt")
    usual = voc(tmp_path, root=root)
    assert [len(usual.train), len(usual.test)] == [7, 2]
    assert [image.path for image in usual.train] == [image.path for image in union.train]


def test_kit_is_read_from_the_folder_above(scenes: Write, tmp_path: Path) -> None:
    scenes("above/VOCdevkit/VOC2007")
    splits = {"train": "VOC2007/train", "test": "VOC2007/val"}
    dataset = voc(tmp_path, root=str(tmp_path / "above"), **splits)
    kit = voc(tmp_path, root=str(tmp_path / "above" / "VOCdevkit"), **splits)
    assert [image.path for image in dataset.test] == [image.path for image in kit.test]


@pytest.mark.parametrize("tag", ["train_00001.png", "train_00000", "lost.jpg", ""])
def test_image_of_the_annotations_own_name_goes_before_its_tag(scenes: Write, tag: str) -> None:
    root = scenes()
    before = [image.path for image in read(voc, root).train]
    replace(XML, "<filename>train_00000.png", f"<filename>{tag}")(root)
    assert [image.path for image in read(voc, root).train] == before


def test_image_of_another_name_is_found_by_the_tag(scenes: Write) -> None:
    root = scenes()
    path = root / "JPEGImages" / "other.png"
    path.with_name("train_00000.png").rename(path)
    replace(XML, "<filename>train_00000.png", "<filename>other.png")(root)
    assert read(voc, root).train[0].path == path


def test_spaces_and_byte_order_marks_name_nothing_else(scenes: Write) -> None:
    root = scenes()
    before = read(voc, root)
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>", "<name> ", 1))
    for path in (root / "ImageSets" / "Main").iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    after = read(voc, root)
    assert after.class_names == before.class_names
    for first, second in zip(before.train + before.test, after.train + after.test, strict=True):
        assert first.path == second.path and torch.equal(first.labels, second.labels)


def outlined(content: dict[str, Any]) -> None:
    """Gives each object of a COCO file its box as outline: polygons and run lengths in turn."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        x, y, width, height = annotation["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        rows, columns = sizes[annotation["image_id"]]
        columnwise = torch.zeros(columns, rows, dtype=torch.int64)
        columnwise[x : x + width, y : y + height] = 1
        values, counts = columnwise.flatten().unique_consecutive(return_counts=True)
        lengths = counts.tolist() if values[0] == 0 else [0, *counts.tolist()]
        run_lengths = {"size": [rows, columns], "counts": lengths}
        annotation["segmentation"] = run_lengths if number % 2 else [corners]


def test_outlines_become_masks_that_fill_their_boxes(scenes: Write) -> None:
    root = scenes()
    edit_json(outlined)(root)
    images = read(coco, root).train
    assert sum(len(image.boxes) for image in images) > 2
    for image in images:
        masks = image.masks()
        assert masks.shape == (len(image.boxes), 64, 64)
        for mask, (x0, y0, x1, y1) in zip(masks, image.boxes.int().tolist(), strict=True):
            expected = torch.zeros(64, 64, dtype=torch.uint8)
            expected[y0:y1, x0:x1] = 1
            assert torch.equal(mask, expected)


def test_masks_are_mirrored_with_their_image(scenes: Write) -> None:
    root = scenes()
    edit_json(outlined)(root)
    data = read(coco, root)
    plain = example(data, 0, mirrored=False, masks=True)[1]["masks"]
    assert torch.equal(example(data, 0, mirrored=True, masks=True)[1]["masks"].flip(2), plain)


def test_boxes_alone_are_refused_for_masks(scenes: Write) -> None:
    with pytest.raises(UserError, match=r"train_00000\.png has boxes without outlines"):
        check_masks(read(coco, scenes()))


SQUARE = [5, 5, 20, 5, 20, 20, 5, 20]


@pytest.mark.parametrize(
    "segmentation",
    [
        "abcdef",
        ["abcdef"],
        [list("abcdef")],
        [SQUARE, [None, *SQUARE[1:]]],
        [[True, *SQUARE[1:]]],
        [[math.nan, *SQUARE[1:]]],
        [[math.inf, *SQUARE[1:]]],
        [[1e12, *SQUARE[1:]]],
        [[10**400, *SQUARE[1:]]],
        [SQUARE[:7]],
        [[x + 100 for x in SQUARE]],
        [[x - 100 for x in SQUARE]],
        [{"size": [64, 64], "counts": [4096]}],
        {"size": [64, 64], "counts": [-4, 4100]},
        {"size": [64, 64], "counts": [4096.0]},
        {"size": [64, 64], "counts": ["4096"]},
        {"size": [64, 64], "counts": None},
        {"size": 64, "counts": [4096]},
        {"size": [64.0, 64.0], "counts": [4096]},
        {"size": [64, 64], "counts": "abcdef"},
        {"size": [64, 64], "counts": "\u00e9"},
        {"size": [64, 64], "counts": "o" * 100},
        {"size": [64, 64], "counts": ""},
    ],
    ids=lambda segmentation: str(segmentation)[:40],
)
def test_outline_that_cannot_be_drawn_is_refused(scenes: Write, segmentation: Any) -> None:
    root = scenes()
    outline(segmentation)(root)
    with pytest.raises(UserError, match=r"instances_train\.json has a damaged segmentation for"):
        read(coco, root)


def test_run_lengths_as_text_give_their_mask_back() -> None:
    drawn = torch.rand(8, 64, 48, generator=torch.Generator().manual_seed(0))
    masks = torch.stack([drawn[i] > i / 7 for i in range(8)])  # from full to empty
    masks[3] = False
    masks[3, 7:60, 5:40] = True
    texts = [{**m, "counts": m["counts"].decode()} for m in encode_masks(masks)]
    lengths = [encode_segment(text, (64, 48)) for text in texts]
    assert torch.equal(decode_masks(lengths, (64, 48)), masks.to(torch.uint8))


@pytest.mark.parametrize(
    "box",
    [[5, 5, 0, 9], [5, 5, 9, 0], [-1, 5, 1, 20], [5, 64, 9, 1], [50, 5, 1e-7, 20], [0, 5, 1e-7, 9]],
)
def test_box_without_width_or_height_is_left_out_and_counted(
    scenes: Write, box: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    root = scenes()
    whole = read(coco, root).train

    def flatten(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = box
        content["annotations"][0].pop("segmentation", None)

    edit_json(flatten)(root)
    capsys.readouterr()
    left = read(coco, root).train
    assert sum(len(i.boxes) for i in left) == sum(len(i.boxes) for i in whole) - 1
    said = capsys.readouterr().out
    assert said.count("instances_train.json") == 1 and said.endswith("no height: 1.\n")


@pytest.mark.parametrize("reader", [coco, voc])
@pytest.mark.parametrize(("split", "role"), [("train", "training"), ("val", "test")])
def test_split_without_any_object_is_named(
    scenes: Write, reader: Callable[..., DetectionData], split: str, role: str
) -> None:
    root = scenes()
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    for xml in (root / "Annotations").glob(f"{split}_*.xml"):
        xml.write_text(re.sub(r"(?s)<object>.*</object>", "", xml.read_text()))
    with pytest.raises(UserError, match=rf"^The {role} split .*{split}.* has no object"):
        read(reader, root)


def test_run_lengths_that_cannot_be_drawn_name_the_image(scenes: Write) -> None:
    root = scenes()
    rubbish = {"size": [64, 64], "counts": "zzzzzz~~~~"}
    edit_json(lambda c: [a.update(segmentation=rubbish) for a in c["annotations"]])(root)
    with pytest.raises(UserError, match=r"train_00000\.png"):
        read(coco, root).train[0].masks()


def test_crowds_are_not_trained_on_but_difficult_objects_are(scenes: Write) -> None:
    root = scenes()
    edit_json(lambda c: [a.update(iscrowd=int(a["image_id"] == 1)) for a in c["annotations"]])(root)
    replace(XML, "<difficult>0", "<difficult>1")(root)
    crowd, difficult = read(coco, root), read(voc, root)
    assert crowd.train[0].ignored.all() and difficult.train[0].ignored.all()
    assert len(example(crowd, 0, mirrored=False)[1]["boxes"]) == 0
    assert len(example(difficult, 0, mirrored=False)[1]["boxes"]) > 0
