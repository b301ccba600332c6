"""Scenes: the same bits for the same seed, boxes that fit, digits that are not shared."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data.scenes import compose
from compress.errors import UserError
from compress.seeding import generator
from eval.data.scenes import write_scenes

Write = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_writes_the_same_bytes(scenes: Write) -> None:
    first, second, other = scenes("first"), scenes("second"), scenes("other", seed=1)
    assert contents(first) == contents(second)
    assert contents(first) != contents(other)


def test_global_generator_is_neither_read_nor_moved(scenes: Write) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = scenes("first")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert contents(first) == contents(scenes("second"))


def test_more_scenes_leave_the_first_ones_as_they_were(scenes: Write) -> None:
    few, many = scenes("few", train=3), scenes("many", train=6)
    for index in range(3):
        name = f"train/train_{index:05d}.png"
        assert (few / name).read_bytes() == (many / name).read_bytes()


def test_unfinished_writing_is_begun_again(scenes: Write, tmp_path: Path) -> None:
    (tmp_path / "scenes.partial" / "train").mkdir(parents=True)
    (tmp_path / "scenes.partial" / "train" / "half.png").touch()
    folder = scenes("scenes")
    assert not (folder / "train" / "half.png").exists()
    assert not (tmp_path / "scenes.partial").exists()


def test_boxes_are_the_extents_of_the_masks(scenes: Write) -> None:
    folder = scenes()
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    assert content["annotations"]
    for annotation in content["annotations"]:
        mask = np.asarray(
            Image.open(folder / "SegmentationClass" / f"{stems[annotation['image_id']]}.png")
        )
        x, y, width, height = annotation["bbox"]
        inside = mask[y : y + height, x : x + width] == annotation["category_id"]
        rows, columns = inside.any(1), inside.any(0)
        assert rows[0] and rows[-1] and columns[0] and columns[-1]
        assert inside.sum() == annotation["area"]


def test_every_mask_pixel_lies_in_a_box_of_its_class() -> None:
    ink = torch.zeros(1, 8, 8)
    ink[:, 1:7, 2:5] = 1
    for index in range(20):
        scene = compose([ink, ink.flip(1)], 64, generator(0, "test", index))
        covered = np.zeros_like(scene.mask)
        for (x0, y0, x1, y1), label in zip(scene.boxes, scene.labels, strict=True):
            assert not covered[y0:y1, x0:x1].any(), "boxes overlap"
            covered[y0:y1, x0:x1] = label + 1
        assert 1 <= len(scene.boxes) <= 3
        assert ((scene.mask == 0) | (scene.mask == covered)).all()


def test_train_and_test_scenes_share_no_digit(tmp_path: Path) -> None:
    # Of the eight digits the 1st, 3rd, ... are tall bars and the others wide ones.
    pixels = torch.zeros(8, 8, 8, dtype=torch.uint8)
    pixels[0::2, 1:7, 3:5] = 16
    pixels[1::2, 3:5, 1:7] = 16
    labels = torch.zeros(8).long()
    write_scenes(tmp_path / "s", pixels, labels, classes=1, train_images=8, test_images=8)
    tall = {}
    for split in ("train", "val"):
        path = tmp_path / "s" / "annotations" / f"instances_{split}.json"
        annotations = json.loads(path.read_text())["annotations"]
        tall[split] = {a["bbox"][3] > a["bbox"][2] for a in annotations}
    assert tall == {"train": {True}, "val": {False}}


def test_crops_have_a_folder_per_class_and_split(scenes: Write) -> None:
    crops = scenes() / "crops"
    folders = {str(p.parent.relative_to(crops)) for p in crops.rglob("*.png")}
    assert folders == {f"{split}/{name}" for split in ("train", "test") for name in "012"}


def test_class_without_two_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="class 1"):
        write_scenes(
            tmp_path / "s", torch.ones(4, 8, 8).to(torch.uint8), torch.zeros(4).long(), classes=2
        )
