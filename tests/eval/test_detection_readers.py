"""COCO and PASCAL VOC readers: the same boxes from both, and damaged files refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.errors import UserError
from eval.detection.annotations import DetectionData
from eval.detection.coco import coco
from eval.detection.task import example
from eval.detection.voc import voc

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


def edit_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        path = root / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return path.name

    return damage


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


def remove(path: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).unlink()
        return Path(path).name

    return damage


XML = "Annotations/train_00000.xml"
JSON = "annotations/instances_train.json"
DAMAGES: list[tuple[Callable[..., DetectionData], Callable[[Path], str], str]] = [
    (coco, empty(JSON), "not JSON"),
    (coco, remove(JSON), "not found"),
    (coco, remove("train/train_00000.png"), "not found"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[50, 0, 30, 9])), "outside"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 9])), "empty"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=[5, 5])), "not a COCO"),
    (coco, edit_json(lambda c: c["annotations"][0].update(bbox=5)), "not a COCO"),
    (coco, edit_json(lambda c: c["annotations"][0].update(category_id=9)), "unknown class"),
    (coco, edit_json(lambda c: c["annotations"][0].update(image_id=99)), "not in its list"),
    (coco, edit_json(lambda c: c.pop("categories")), "not a COCO"),
    (coco, edit_json(lambda c: c.update(images=[], annotations=[])), "lists no image"),
    (voc, empty(XML), "not XML"),
    (voc, remove(XML), "not found"),
    (voc, remove("JPEGImages/train_00000.png"), "not found"),
    (voc, replace(XML, "<xmin>", "<xmin>9"), "outside"),
    (voc, replace(XML, "<xmin>", "<xmin>x"), "not a PASCAL VOC"),
    (voc, replace(XML, "xmax", "right"), "not a PASCAL VOC"),
    (voc, replace("Annotations/val_00000.xml", "<name>", "<name>no"), "class 'no"),
    (voc, empty("ImageSets/Main/train.txt"), "lists no image"),
    (voc, remove("ImageSets/Main/val.txt"), "not found"),
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


def test_unreadable_image_names_its_file(scenes: Write) -> None:
    root = scenes()
    (root / "train" / "train_00000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train_00000\.png cannot be read"):
        read(coco, root).train[0].pixels()


def test_image_of_another_size_than_annotated_is_refused(scenes: Write) -> None:
    root = scenes()
    edit_json(lambda c: c["images"][0].update(width=80))(root)
    with pytest.raises(UserError, match=r"train_00000\.png has 64 x 64.*80 x 64"):
        read(coco, root).train[0].pixels()


def test_box_one_pixel_outside_is_cut(scenes: Write) -> None:
    root = scenes()
    edit_json(lambda c: c["annotations"][0].update(image_id=1, bbox=[-1, 50, 20, 15]))(root)
    assert [0.0, 50.0, 19.0, 64.0] in read(coco, root).train[0].boxes.tolist()


def test_crowds_are_not_trained_on_but_difficult_objects_are(scenes: Write) -> None:
    root = scenes()
    edit_json(lambda c: [a.update(iscrowd=1) for a in c["annotations"]])(root)
    replace(XML, "<difficult>0", "<difficult>1")(root)
    crowd, difficult = read(coco, root), read(voc, root)
    assert crowd.train[0].ignored.all() and difficult.train[0].ignored.all()
    assert len(example(crowd, 0, mirrored=False)[1]["boxes"]) == 0
    assert len(example(difficult, 0, mirrored=False)[1]["boxes"]) > 0
