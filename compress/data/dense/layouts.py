"""Layouts of segmentation data: PASCAL VOC, Cityscapes, CamVid and pairs of folders."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

from compress.console.messages import log
from compress.data.dense.classes import (
    CAMVID_CLASSES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_LABELS,
    VOC_CLASSES,
)
from compress.data.dense.masked_images import (
    IGNORE_INDEX,
    MaskedImage,
    SegmentationData,
    check_masks,
    meaning,
)
from compress.data.image_files import SUFFIXES, check_whole, image_named
from compress.errors import UserError
from compress.storage.user_files import inside, read_listing


def voc_segmentation(
    *,
    root: str,
    classes: tuple[str, ...] = VOC_CLASSES,
    train: str = "train",
    test: str = "val",
) -> SegmentationData:
    """VOC format: `ImageSets/Segmentation/<split>.txt`, `JPEGImages/*`, `SegmentationClass/*.png`.

    `classes` names the mask values 0, 1, 2, ... in order, background included; 255 is void. `root`
    may also be the folder above, with one `VOC<year>` in it.
    """
    values = meaning({index: index for index in range(len(classes))})
    year = _year(Path(root))

    def read(split: str) -> tuple[MaskedImage, ...]:
        path = year / "ImageSets" / "Segmentation" / f"{split}.txt"
        stems = read_listing(path).split()
        if not stems:
            raise UserError(f"{path} lists no image.")
        images, masks = year / "JPEGImages", year / "SegmentationClass"

        def item(stem: str) -> MaskedImage:
            image = _image(inside(Path(root), images / stem, stem, path))
            mask = inside(Path(root), masks / f"{stem}.png", stem, path)
            return MaskedImage(image, mask, values)

        return check_masks(map(item, stems), path)

    return _both(classes, read, train, test, background=True)


def cityscapes(*, root: str, train: str = "train", test: str = "val") -> SegmentationData:
    """Cityscapes format: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and masks in `gtFine`.

    A mask is `*_gtFine_labelTrainIds.png`, else `*_gtFine_labelIds.png`, whose 19 evaluated labels
    become 0 to 18 and whose others are void. A mask without its image is an error.
    """
    count = len(CITYSCAPES_CLASSES)
    labels = {label: index for index, label in enumerate(CITYSCAPES_CLASSES.values())}
    others = {*range(CITYSCAPES_LABELS)} - {*labels}
    of_train_ids = meaning({index: index for index in range(count)})
    of_labels = meaning(labels, {IGNORE_INDEX, *others})

    def item(image: Path) -> MaskedImage:
        stem = image.name.removesuffix("_leftImg8bit.png")
        city = Path(root, "gtFine", image.parent.parent.name, image.parent.name)
        mask = city / f"{stem}_gtFine_labelTrainIds.png"
        if mask.is_file():
            return MaskedImage(image, mask, of_train_ids)
        return MaskedImage(image, city / f"{stem}_gtFine_labelIds.png", of_labels)

    def read(split: str) -> tuple[MaskedImage, ...]:
        source = Path(root, "leftImg8bit", split)
        images = sorted(source.glob("*/*_leftImg8bit.png"))
        if not images:
            raise UserError(f"{source} has no image <city>/*_leftImg8bit.png.")
        masks = Path(root, "gtFine", split)
        for mask in sorted(masks.glob("*/*_gtFine_label*Ids.png")):
            stem = mask.name.partition("_gtFine_label")[0]
            image = source / mask.parent.name / f"{stem}_leftImg8bit.png"
            if not image.is_file():
                raise UserError(f"{image} not found; {mask} is its mask.")
        return check_masks((item(image) for image in images), masks)

    return _both(tuple(CITYSCAPES_CLASSES), read, train, test)


def mask_folders(
    *,
    root: str,
    classes: tuple[str, ...],
    void: int | None = None,
    train: str = "train",
    test: str = "val",
    masks: str = "annot",
) -> SegmentationData:
    """Pairs of folders: images in `<split>/`, masks `<name>.png` in `<split><masks>/`.

    `classes` names the mask values 0, 1, 2, ... in order; `void` is a value that is ignored, as
    255 always is. A mask without its image is an error.
    """
    own = {index: index for index in range(len(classes))}
    values = meaning(own, {IGNORE_INDEX} if void is None else {IGNORE_INDEX, void})

    def read(split: str) -> tuple[MaskedImage, ...]:
        source = Path(root, split)
        images = sorted(p for p in source.glob("*") if p.suffix in SUFFIXES)
        if not images:
            raise UserError(f"{source} has no image.")
        for one, other in pairwise(sorted(images, key=lambda image: image.stem)):
            if one.stem == other.stem:
                raise UserError(f"{one} and {other} have one mask; remove one of them.")
        annotations = Path(root, split + masks)
        for mask in sorted(annotations.glob("*.png")):
            _image(source / mask.stem)
        return check_masks(
            (MaskedImage(image, annotations / f"{image.stem}.png", values) for image in images),
            annotations,
        )

    return _both(classes, read, train, test)


def test_split(root: str) -> str:
    """CamVid's `test`, where its folder is there, else `val`."""
    return "test" if Path(root, "test").is_dir() else "val"


def camvid(*, root: str, train: str = "train", test: str | None = None) -> SegmentationData:
    """CamVid in folder pairs `<split>/` and `<split>annot/`: 11 classes, 11 is void.

    It is judged on `test`, where there is one, else on `val`.
    """
    if test is None:
        test = test_split(root)
        log(f"{root}: judged on its split '{test}'")
    return mask_folders(
        root=root,
        classes=CAMVID_CLASSES,
        void=len(CAMVID_CLASSES),
        train=train,
        test=test,
    )


LAYOUTS: Mapping[str, Callable[..., SegmentationData]] = {
    "voc_segmentation": voc_segmentation,
    "cityscapes": cityscapes,
    "camvid": camvid,
    "mask_folders": mask_folders,
}


def _both(
    classes: tuple[str, ...],
    read: Callable[[str], tuple[MaskedImage, ...]],
    train: str,
    test: str,
    *,
    background: bool = False,
) -> SegmentationData:
    """Both splits; the test images are decoded now, as they are next read after the training."""
    data = SegmentationData(tuple(classes), read(train), read(test), background)
    check_whole(item.image for item in data.test)
    return data


def _year(root: Path) -> Path:
    """The folder with `SegmentationClass`: the root, or the one year of VOC below it."""
    if (root / "SegmentationClass").is_dir():
        return root
    years = [path.parent for path in sorted(root.glob("VOC*/SegmentationClass"))]
    if len(years) > 1:
        raise UserError(f"{root} has {', '.join(y.name for y in years)}; give the folder of one.")
    return years[0] if years else root


def _image(stem: Path) -> Path:
    """The image of that name, whatever its suffix."""
    path = image_named(stem)
    if path is None:
        raise UserError(f"{stem}.jpg or .png not found.")
    return path
