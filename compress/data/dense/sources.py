"""Data sets of recipes whose images have masks, by name."""

from collections.abc import Callable, Mapping

import torch

from compress.data.dense import layouts
from compress.data.dense.classes import CAMVID_CLASSES, CITYSCAPES_CLASSES, VOC_CLASSES
from compress.data.dense.images import MaskedImages, MaskedPixels
from compress.data.dense.masked_images import SegmentationData
from compress.data.digits import scene_pools
from compress.data.scenes import compose
from compress.data.source import Source
from compress.seeding import generator

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# The side of training crops where a recipe does not say.
CROPS: Mapping[str, int] = {
    "camvid": 360,
    "cityscapes": 512,
    "digit_scenes": 64,
    "mask_folders": 256,
    "voc_segmentation": 480,
}


def camvid(
    *, root: str, train: str = "train", test: str | None = None, image_size: int | None = None
) -> Source:
    """CamVid in folder pairs `<split>/` and `<split>annot/`; tests on `test`, else on `val`."""
    split = test or layouts.test_split(root)
    return _source("camvid", layouts.camvid(root=root, train=train, test=split), image_size)


def cityscapes(
    *, root: str, train: str = "train", test: str = "val", image_size: int | None = None
) -> Source:
    """Cityscapes' folders `leftImg8bit` and `gtFine`."""
    return _source("cityscapes", layouts.cityscapes(root=root, train=train, test=test), image_size)


def voc_segmentation(
    *,
    root: str,
    class_names: tuple[str, ...] = VOC_CLASSES,
    train: str = "train",
    test: str = "val",
    image_size: int | None = None,
) -> Source:
    """PASCAL VOC's folders; `class_names` are those of the mask values 0, 1, 2, ..."""
    data = layouts.voc_segmentation(root=root, classes=class_names, train=train, test=test)
    return _source("voc_segmentation", data, image_size)


def mask_folders(
    *,
    root: str,
    class_names: tuple[str, ...],
    void: int | None = None,
    train: str = "train",
    test: str | None = None,
    masks: str = "annot",
    image_size: int | None = None,
) -> Source:
    """Images in `<split>/`, masks of the same names in `<split><masks>/`.

    Tests are on `test`, where there is no such folder on `val`.
    `class_names` are those of the mask values 0, 1, 2, ...; `void` is a value that is ignored, as
    255 always is.
    """
    data = layouts.mask_folders(
        root=root,
        classes=class_names,
        void=void,
        train=train,
        test=test or layouts.test_split(root),
        masks=masks,
    )
    return _source("mask_folders", data, image_size)


def digit_scenes(
    *, digits: int = 4, scenes: int = 200, test_scenes: int = 100, image_size: int | None = None
) -> Source:
    """Scenes of one to three digits 0 .. `digits` - 1 on a textured background, and their masks.

    The scenes to train on are made of the digits that `digits` trains on, those to test on of the
    digits that it tests on; see `compress.data.scenes`.
    """
    size = image_size or CROPS["digit_scenes"]
    splits = [
        _composed(scene_pools(split, digits), count, size, split)
        for split, count in (("train", scenes), ("test", test_scenes))
    ]
    return Source(splits[0], splits[1], _digit_names(digits=digits), size, _MEAN, _STD)


DENSE_DATASETS: Mapping[str, Callable[..., Source]] = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "digit_scenes": digit_scenes,
    "mask_folders": mask_folders,
    "voc_segmentation": voc_segmentation,
}


def _camvid_names(*, root: str) -> tuple[str, ...]:
    return CAMVID_CLASSES


def _cityscapes_names(*, root: str) -> tuple[str, ...]:
    return tuple(CITYSCAPES_CLASSES)


def _given_names(*, root: str, class_names: tuple[str, ...] = VOC_CLASSES) -> tuple[str, ...]:
    return tuple(class_names)


def _digit_names(*, digits: int = 4) -> tuple[str, ...]:
    return ("background", *map(str, range(digits)))


# The names of a data set's classes before it is opened.
DENSE_CLASS_NAMES: Mapping[str, Callable[..., tuple[str, ...]]] = {
    "camvid": _camvid_names,
    "cityscapes": _cityscapes_names,
    "digit_scenes": _digit_names,
    "mask_folders": _given_names,
    "voc_segmentation": _given_names,
}


def _source(name: str, data: SegmentationData, image_size: int | None) -> Source:
    train, test = (MaskedImages(items, _MEAN) for items in (data.train, data.test))
    return Source(train, test, data.class_names, image_size or CROPS[name], _MEAN, _STD)


def _composed(pools: list[torch.Tensor], count: int, size: int, split: str) -> MaskedImages:
    scenes = [compose(pools, size, generator(0, "scene", split, i)) for i in range(count)]
    items = tuple(
        MaskedPixels(
            torch.from_numpy(scene.pixels).permute(2, 0, 1).contiguous(),
            torch.from_numpy(scene.mask),
        )
        for scene in scenes
    )
    return MaskedImages(items, _MEAN)
