"""The readers of masks: what their values mean, and damaged data named by its file."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from compress.data.dense.classes import CITYSCAPES_CLASSES, VOC_CLASSES
from compress.data.dense.layouts import camvid, cityscapes, mask_folders, voc_segmentation
from compress.data.dense.masked_images import IGNORE_INDEX, SegmentationData
from compress.errors import UserError

Write = Callable[..., Path]


def read(root: Path) -> SegmentationData:
    return voc_segmentation(root=str(root), classes=("background", "0", "1", "2"))


def save_pair(image: Path, mask: Path, values: list[list[int]]) -> None:
    array = np.array(values, dtype=np.uint8)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*array.shape, 3), dtype=np.uint8)).save(image)
    Image.fromarray(array).save(mask)


def write_folders(root: Path, values: list[list[int]]) -> Path:
    for split in ("train", "val"):
        save_pair(root / split / "one.png", root / f"{split}annot" / "one.png", values)
    return root


def write_city(root: Path, kind: str, values: list[list[int]]) -> Path:
    for split in ("train", "val"):
        save_pair(
            root / "leftImg8bit" / split / "ulm" / "ulm_000000_000019_leftImg8bit.png",
            root / "gtFine" / split / "ulm" / f"ulm_000000_000019_gtFine_{kind}.png",
            values,
        )
    return root


def test_void_is_read_as_void_and_not_as_a_class(scenes: Write) -> None:
    root = scenes()
    path = root / "SegmentationClass" / "train_00000.png"
    values = np.asarray(Image.open(path)).copy()
    values[:5] = 255
    Image.fromarray(values).save(path)
    assert (read(root).train[0].classes()[:5] == IGNORE_INDEX).all()


def test_voc_has_its_twenty_classes_and_background() -> None:
    assert len(VOC_CLASSES) == 21
    assert [*VOC_CLASSES[1:]] == sorted(VOC_CLASSES[1:])


def test_year_of_voc_is_found_below_its_folder(scenes: Write) -> None:
    root = scenes("above/VOC2012")
    assert read(root.parent) == read(root)
    (root.parent / "VOC2007" / "SegmentationClass").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has VOC2007, VOC2012; give the folder of one"):
        read(root.parent)


def test_label_ids_become_the_nineteen_train_ids(tmp_path: Path) -> None:
    root = write_city(tmp_path, "labelIds", [list(range(34)), [255] * 34])
    data = cityscapes(root=str(root))
    classes = data.train[0].classes()
    evaluated = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert [*CITYSCAPES_CLASSES.values()] == evaluated
    assert classes[0, evaluated].tolist() == list(range(19))
    others = [value for value in range(34) if value not in evaluated]
    assert (classes[0, others] == IGNORE_INDEX).all()
    assert (classes[1] == IGNORE_INDEX).all()
    assert not data.background


def test_train_ids_are_read_as_they_stand_and_before_label_ids(tmp_path: Path) -> None:
    write_city(tmp_path, "labelIds", [[7, 33]])
    write_city(tmp_path, "labelTrainIds", [[18, 255]])
    assert cityscapes(root=str(tmp_path)).test[0].classes().tolist() == [[18, IGNORE_INDEX]]


def test_label_beyond_the_thirty_four_is_refused(tmp_path: Path) -> None:
    root = write_city(tmp_path, "labelIds", [[7, 34]])
    with pytest.raises(UserError, match=r"labelIds\.png has the value 34, .* values 0 to 33, 255"):
        cityscapes(root=str(root))


def test_void_of_folder_pairs_is_an_argument(tmp_path: Path) -> None:
    root = write_folders(tmp_path, [[0, 1, 7, 255]])
    data = mask_folders(root=str(root), classes=("sky", "road"), void=7)
    assert data.train[0].classes().tolist() == [[0, 1, IGNORE_INDEX, IGNORE_INDEX]]
    with pytest.raises(UserError, match=r"one\.png has the value 7, .* values 0 to 1, 255"):
        mask_folders(root=str(root), classes=("sky", "road"))


def test_void_may_lie_among_the_classes(tmp_path: Path) -> None:
    root = write_folders(tmp_path, [[0, 1, 2]])
    data = mask_folders(root=str(root), classes=("void", "sky", "road"), void=0)
    assert data.test[0].classes().tolist() == [[IGNORE_INDEX, 1, 2]]


def test_camvid_has_eleven_classes_and_void(tmp_path: Path) -> None:
    root = write_folders(tmp_path, [[0, 10, 11]])
    data = camvid(root=str(root))
    assert len(data.class_names) == 11
    assert data.train[0].classes().tolist() == [[0, 10, IGNORE_INDEX]]
    assert data.train[0].pixels().shape == (3, 1, 3)


@pytest.mark.parametrize("layout", [cityscapes, camvid])
def test_folder_without_images_is_named(
    layout: Callable[..., SegmentationData], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"train has no image"):
        layout(root=str(tmp_path))


@pytest.mark.parametrize("folder", ["val", "valannot"])
def test_folder_pairs_name_the_file_that_a_pair_lacks(tmp_path: Path, folder: str) -> None:
    root = write_folders(tmp_path, [[0, 1]])
    save_pair(root / "val" / "two.png", root / "valannot" / "two.png", [[0, 1]])
    assert len(camvid(root=str(root)).test) == 2
    (root / folder / "two.png").unlink()
    with pytest.raises(UserError, match=rf"{folder}/two\.\S+.* not found"):
        camvid(root=str(root))


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
@pytest.mark.parametrize("side", ["leftImg8bit", "gtFine"])
def test_cityscapes_names_the_file_that_a_pair_lacks(tmp_path: Path, side: str, kind: str) -> None:
    root = write_city(tmp_path, kind, [[7, 8]])
    image = root / "leftImg8bit" / "val" / "jena" / "jena_1_leftImg8bit.png"
    mask = root / "gtFine" / "val" / "jena" / f"jena_1_gtFine_{kind}.png"
    save_pair(image, mask, [[7, 8]])
    assert len(cityscapes(root=str(root)).test) == 2
    (image if side == "leftImg8bit" else mask).unlink()
    with pytest.raises(UserError, match=rf"{side}/val/jena/jena_1_\w+\.png not found"):
        cityscapes(root=str(root))


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_whose_masks_are_all_void_is_named(tmp_path: Path, split: str) -> None:
    root = write_folders(tmp_path, [[0, 11]])
    save_pair(root / split / "one.png", root / f"{split}annot" / "one.png", [[11, 255]])
    with pytest.raises(UserError, match=rf"{split}annot: every pixel of its 1 masks is void"):
        camvid(root=str(root))
    save_pair(root / split / "two.png", root / f"{split}annot" / "two.png", [[11, 3]])
    camvid(root=str(root))  # one pixel of a class is enough


def damage_size(root: Path) -> str:
    path = root / "SegmentationClass" / "train_00001.png"
    Image.open(path).crop((0, 0, 60, 64)).save(path)
    return r"train_00001\.png has 60 x 64 pixels, its image train_00001\.png has 64 x 64"


def damage_values(root: Path) -> str:
    path = root / "SegmentationClass" / "train_00001.png"
    Image.fromarray(np.full((64, 64), 7, dtype=np.uint8)).save(path)
    return r"train_00001\.png has the value 7, which is no class; there are values 0 to 3, 255"


def damage_mode(root: Path) -> str:
    path = root / "SegmentationClass" / "val_00000.png"
    Image.open(path).convert("RGB").save(path)
    return r"val_00000\.png is no mask"


def damage_bytes(root: Path) -> str:
    (root / "SegmentationClass" / "val_00000.png").write_bytes(b"")
    return r"val_00000\.png is not a readable image"


def damage_end(root: Path) -> str:
    path = root / "SegmentationClass" / "val_00000.png"
    path.write_bytes(path.read_bytes()[:-30])
    return r"SegmentationClass/val_00000\.png is not a readable image"


def damage_image(root: Path) -> str:
    (root / "JPEGImages" / "val_00000.png").write_bytes(b"")
    return r"JPEGImages/val_00000\.png is not a readable image"


def damage_last_test_image(root: Path) -> str:
    path = root / "JPEGImages" / "val_00003.png"
    path.write_bytes(path.read_bytes()[:-200])
    return r"JPEGImages/val_00003\.png is not a readable image"


def damage_depth(root: Path) -> str:
    Image.new("I;16", (64, 64), 40_000).save(root / "JPEGImages" / "train_00001.png")
    return r"JPEGImages/train_00001\.png has more than 8 bits per channel \(mode I;16\)"


def remove_mask(root: Path) -> str:
    (root / "SegmentationClass" / "val_00000.png").unlink()
    return r"val_00000\.png not found"


def remove_image(root: Path) -> str:
    (root / "JPEGImages" / "val_00000.png").unlink()
    return r"val_00000.* not found"


def empty_list(root: Path) -> str:
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("")
    return r"train\.txt lists no image"


def no_text(root: Path) -> str:
    (root / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"val_\xff\xfe\n")
    return r"val\.txt is no UTF-8 text"


def all_void(root: Path) -> str:
    for path in (root / "SegmentationClass").glob("val_*.png"):
        Image.fromarray(np.full((64, 64), 255, dtype=np.uint8)).save(path)
    return r"val\.txt: every pixel of its 4 masks is void"


def no_list(root: Path) -> str:
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    return r"val\.txt not found"


def outside(name: str) -> Callable[[Path], str]:
    """A pair that is there, but not in the data set."""

    def damage(root: Path) -> str:
        above = root.parent
        save_pair(above / "JPEGImages" / "x.png", above / "SegmentationClass" / "x.png", [[0, 1]])
        save_pair(above / "y.png", above / "y.jpg", [[0, 1]])
        (root / "ImageSets" / "Segmentation" / "val.txt").write_text(name.format(above))
        return r"val\.txt names '.*', which is outside"

    return damage


def pipe(path: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        (root / path).unlink()
        os.mkfifo(root / path)
        return rf"{path[:5]}.* (is a named pipe|not found)"

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        outside("../../JPEGImages/x"),
        outside("../../SegmentationClass/x"),
        outside("{}/y"),
        pipe("ImageSets/Segmentation/val.txt"),
        pipe("SegmentationClass/val_00000.png"),
        pipe("JPEGImages/val_00000.png"),
        damage_size,
        damage_values,
        damage_mode,
        damage_bytes,
        damage_end,
        damage_image,
        damage_last_test_image,
        damage_depth,
        remove_mask,
        remove_image,
        empty_list,
        no_text,
        all_void,
        no_list,
    ],
)
def test_damaged_data_names_its_file(scenes: Write, damage: Callable[[Path], str]) -> None:
    root = scenes()
    with pytest.raises(UserError, match=damage(root)):
        read(root)


def test_image_that_ends_early_is_named_when_it_is_read(scenes: Write) -> None:
    root = scenes()
    path = root / "JPEGImages" / "train_00000.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"train_00000\.png is not a readable image"):
        read(root).train[0].pixels()


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_huge_file_is_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folders(tmp_path, [[0, 1]])
    huge = root / "train" / "one.png" if kind == "image" else root / "trainannot" / "one.png"
    Image.new("RGB" if kind == "image" else "L", (10, 5)).save(huge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=rf"{huge} is not a readable image .*bomb"):
        camvid(root=str(root))


@pytest.mark.parametrize("orientation", [3, 6])
def test_image_is_turned_as_exif_says_and_its_mask_is_not(tmp_path: Path, orientation: int) -> None:
    lying = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = np.rot90(lying, {3: 2, 6: 3}[orientation])
    root = write_folders(tmp_path, np.zeros(turned.shape[:2]).tolist())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(lying).save(root / "train" / "one.png", exif=exif)
    item = camvid(root=str(root)).train[0]
    assert np.array_equal(item.pixels().permute(1, 2, 0), turned)
    Image.new("L", (3, 3)).save(item.mask)
    with pytest.raises(UserError, match=r"one\.png has 3 x 3 pixels, its image one\.png has \d x"):
        camvid(root=str(root))


def test_two_images_of_one_mask_are_named(tmp_path: Path) -> None:
    root = write_folders(tmp_path, [[0, 1]])
    for name in ("one.jpg", "one.k.png"):  # the latter stands between them
        Image.new("RGB", (2, 1)).save(root / "train" / name)
    with pytest.raises(UserError, match=r"train/one\.jpg and .*train/one\.png have one mask"):
        camvid(root=str(root))


def test_byte_order_mark_is_no_part_of_a_name(scenes: Write) -> None:
    root = scenes()
    before = read(root)
    for path in (root / "ImageSets" / "Segmentation").iterdir():
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read(root) == before


def test_masks_are_int64_and_images_uint8(scenes: Write) -> None:
    item = read(scenes()).train[0]
    assert item.classes().dtype == torch.int64
    assert item.pixels().dtype == torch.uint8
