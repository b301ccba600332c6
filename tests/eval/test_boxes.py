"""Images with boxes in the arrangements of many tools: the same boxes are read from each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from compress.errors import UserError
from eval.data.boxes import boxes, has_boxes
from eval.transfer.options import recognise_dataset

NAMES = ("ant", "bee")
SIZE = (40, 30)  # width, height
# Of image i: label from 0, and corners half-open.
OBJECTS = [[(i % 2, (2 + i, 3, 20, 25))] + ([(1, (25, 5, 39, 12))] if i % 3 == 0 else [])
           for i in range(6)]  # fmt: skip
SPLIT = {"train": range(4), "test": range(4, 6)}
Arrange = Callable[[Path], None]


def image(folder: Path, i: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"photo_{i}.jpg"
    Image.new("RGB", SIZE, (40 * i, 0, 0)).save(path)
    return path


def xml(folder: Path, i: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in OBJECTS[i]
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
    name = f"<filename>photo_{i}.jpg</filename>"
    (folder / f"photo_{i}.xml").write_text(f"<annotation>{name}{size}{objects}</annotation>")


def coco(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": i, "file_name": f"photo_{i}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for i in numbers
    ]
    annotations = [
        {"image_id": i, "category_id": 7 + label, "bbox": [x0, y0, x1 - x0, y1 - y0], "id": 10 * i}
        for i in numbers
        for label, (x0, y0, x1, y1) in OBJECTS[i]
    ]
    categories = [{"id": 7 + label, "name": name} for label, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def yolo(folder: Path, i: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    lines = [
        f"{label} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} "
        f"{(y1 - y0) / height}"
        for label, (x0, y0, x1, y1) in OBJECTS[i]
    ]
    (folder / f"photo_{i}.txt").write_text("\n".join(lines) + "\n")


def voc_in_folders(root: Path) -> None:
    for i in range(6):
        image(root / "images", i), xml(root / "annotations", i)


def voc_flat(root: Path) -> None:
    for i in range(6):
        image(root, i), xml(root, i)


def voc_of_roboflow(root: Path) -> None:
    for split, numbers in SPLIT.items():
        for i in numbers:
            image(root / split, i), xml(root / split, i)


def coco_of_roboflow(root: Path) -> None:
    for split, numbers in SPLIT.items():
        coco(root / split / "_annotations.coco.json", numbers)
        for i in numbers:
            image(root / split, i)


def coco_of_the_original(root: Path) -> None:
    for split, numbers in (("train2017", SPLIT["train"]), ("val2017", SPLIT["test"])):
        coco(root / f"annotations/instances_{split}.json", numbers)
        (root / f"annotations/captions_{split}.json").write_text(
            '{"images": [], "annotations": [{"caption": "x"}], "categories": []}'
        )
        for i in numbers:
            image(root / split, i)


def coco_in_one_file(root: Path) -> None:
    coco(root / "result.json", range(6))
    for i in range(6):
        image(root / "images", i)


def yolo_by_kind(root: Path) -> None:
    for split, numbers in SPLIT.items():
        for i in numbers:
            image(root / "images" / split, i), yolo(root / "labels" / split, i)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": dict(enumerate(NAMES)), "nc": 2}))


def yolo_by_split(root: Path) -> None:
    for split, numbers in (("train", SPLIT["train"]), ("valid", SPLIT["test"])):
        for i in numbers:
            image(root / split / "images", i), yolo(root / split / "labels", i)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": [*NAMES]}))


def yolo_flat(root: Path) -> None:
    for i in range(6):
        image(root, i), yolo(root, i)
    (root / "classes.txt").write_text("\n".join(NAMES))


WITH_SPLITS: list[Arrange] = [
    voc_of_roboflow, coco_of_roboflow, coco_of_the_original, yolo_by_kind, yolo_by_split,
]  # fmt: skip
WITHOUT: list[Arrange] = [voc_in_folders, voc_flat, coco_in_one_file, yolo_flat]


@pytest.mark.parametrize("arrange", [*WITH_SPLITS, *WITHOUT])
def test_every_arrangement_is_recognised_and_has_the_same_boxes(
    arrange: Arrange, tmp_path: Path
) -> None:
    arrange(tmp_path)
    assert recognise_dataset("detection", tmp_path) == "boxes"
    data = boxes(tmp_path, root=str(tmp_path))
    assert data.class_names == NAMES
    read = {one.path.stem: one for one in (*data.train, *data.test)}
    assert sorted(read) == [f"photo_{i}" for i in range(6)]
    for i, objects in enumerate(OBJECTS):
        one = read[f"photo_{i}"]
        assert one.labels.tolist() == [label + 1 for label, _ in objects]
        for found, (_, corners) in zip(one.boxes.tolist(), objects, strict=True):
            assert found == pytest.approx(corners, abs=1e-4)
        assert (one.width, one.height) == SIZE


@pytest.mark.parametrize("arrange", WITH_SPLITS)
def test_splits_are_those_of_the_folders(arrange: Arrange, tmp_path: Path) -> None:
    arrange(tmp_path)
    data = boxes(tmp_path, root=str(tmp_path))
    assert {one.path.stem for one in data.test} == {"photo_4", "photo_5"}
    assert len(data.train) == 4


@pytest.mark.parametrize("arrange", WITHOUT)
def test_without_splits_a_share_is_drawn_the_same_way(arrange: Arrange, tmp_path: Path) -> None:
    arrange(tmp_path)
    first, again = (boxes(tmp_path, root=str(tmp_path), train_share=0.5) for _ in range(2))
    assert [one.path for one in first.train] == [one.path for one in again.train]
    assert len(first.train) == len(first.test) == 3
    assert not {one.path for one in first.train} & {one.path for one in first.test}


def test_the_split_to_be_judged_can_be_named(tmp_path: Path) -> None:
    voc_of_roboflow(tmp_path)
    image(tmp_path / "valid", 0), xml(tmp_path / "valid", 0)
    assert len(boxes(tmp_path, root=str(tmp_path)).test) == 2
    assert len(boxes(tmp_path, root=str(tmp_path), test="val").test) == 1
    with pytest.raises(UserError, match=r"--test nowhere: .* has the splits"):
        boxes(tmp_path, root=str(tmp_path), test="nowhere")


def _two_kinds(root: Path) -> None:
    voc_flat(root), coco(root / "all.json", range(6))


def _no_image(root: Path) -> None:
    voc_flat(root), (root / "photo_3.jpg").unlink()


def _twice(root: Path) -> None:
    xml(root / "boxes", 0), image(root / "a", 0), image(root / "b", 0)


def _bad_line(root: Path) -> None:
    yolo_flat(root), (root / "photo_2.txt").write_text("0 0.5 0.5\n")


def _class_too_many(root: Path) -> None:
    yolo_flat(root), (root / "photo_2.txt").write_text("2 0.5 0.5 0.1 0.1\n")


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (lambda root: None, "holds no annotations that are known; expected VOC's"),
        (_two_kinds, "holds annotations of COCO and VOC; give a folder with one kind"),
        (_no_image, "photo_3.xml is of the image 'photo_3', which is not below"),
        (_twice, "is both .* and .*; keep one"),
        (_bad_line, r"photo_2.txt: '0 0.5 0.5' is no line of YOLO"),
        (_class_too_many, r"photo_2.txt: class 2; there are 2, from 0 up"),
    ],
)
def test_what_is_wrong_is_named(arrange: Arrange, words: str, tmp_path: Path) -> None:
    arrange(tmp_path)
    with pytest.raises(UserError, match=words):
        boxes(tmp_path, root=str(tmp_path))


def test_a_folder_of_text_files_is_no_yolo(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert not has_boxes(tmp_path)
