"""Reading boxes and outlines in COCO's format (JSON)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from compress.console.messages import log
from compress.data.image_files import check_whole
from compress.errors import UserError
from compress.storage.user_files import inside, read_listing
from eval.data.annotations import (
    AnnotatedImage,
    Box,
    DetectionData,
    check_annotation,
    is_empty_after_cut,
    require_objects,
)
from eval.data.masks import Segment, check_segment


def coco(folder: Path, *, root: str, train: str = "train", test: str = "val") -> DetectionData:
    """COCO format: `annotations/instances_<split>.json` and the images in `<split>/`.

    The original's splits are `train: train2017, test: val2017`. Boxes that have no width or height
    within their image, of which it has two, are left out.
    """
    names: tuple[str, ...] = ()
    splits = []
    for role, split in (("training", train), ("test", test)):
        path = Path(root) / "annotations" / f"instances_{split}.json"
        images, split_names = read_coco(path, partial(_place, Path(root), path, Path(root) / split))
        if names and split_names != names:
            raise UserError(f"{path} has other categories than the training split's file.")
        require_objects(images, f"{role} split {path}", ignored=False)
        names = split_names
        splits.append(images)
    check_whole(image.path for image in splits[1])
    return DetectionData(names, splits[0], splits[1], trains_on_ignored=False)


def read_coco(
    path: Path, place: Callable[[str], Path]
) -> tuple[tuple[AnnotatedImage, ...], tuple[str, ...]]:
    """The annotated images of a file, and the names of its categories by rising id.

    Args:
        place: of an image by its `file_name`.

    Raises:
        UserError: the file is damaged, or an image is not where it should be.
    """
    content = _json(path)
    try:
        categories = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
        label_of = {identifier: index + 1 for index, (identifier, _) in enumerate(categories)}
        if not categories:
            raise UserError(f"{path} lists no category.")
        if len(label_of) < len(categories):
            raise UserError(f"{path} gives one id to several categories.")
        listed = content["images"]
        annotations = _by_image(path, content, label_of)
        places = [place(str(image["file_name"])) for image in listed]
        result = [
            _image(path, target, image, annotations[image["id"]], label_of)
            for target, image in zip(places, listed, strict=True)
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a COCO annotation file ({error!r}).") from None
    if not result:
        raise UserError(f"{path} lists no image.")
    return tuple(result), tuple(name for _, name in categories)


def _by_image(
    path: Path, content: dict[str, Any], label_of: dict[int, int]
) -> dict[Any, list[dict[str, Any]]]:
    """The annotations of each image's id, but for those whose box is empty."""
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    sizes = {image["id"]: _size(image) for image in content["images"]}
    empty = 0
    for annotation in content["annotations"]:
        if annotation["image_id"] not in by_image:
            raise UserError(f"{path} annotates image {annotation['image_id']}, not in its list.")
        if annotation["category_id"] not in label_of:
            raise UserError(f"{path} uses the unknown class id {annotation['category_id']}.")
        flat = is_empty_after_cut(_box(annotation), sizes[annotation["image_id"]])
        if flat and not annotation.get("iscrowd", 0):
            empty += 1
        else:
            by_image[annotation["image_id"]].append(annotation)
    if empty:
        log(f"{path}: objects left out because their box has no width or no height: {empty}.")
    return by_image


def _size(image: dict[str, Any]) -> tuple[int, int]:
    return int(image["height"]), int(image["width"])


def _box(annotation: dict[str, Any]) -> Box:
    x, y, width, height = map(float, annotation["bbox"])
    return x, y, x + width, y + height


def _place(root: Path, path: Path, images: Path, name: str) -> Path:
    return inside(root, images / name, name, path)


def _image(
    path: Path,
    target: Path,
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    label_of: dict[int, int],
) -> AnnotatedImage:
    size = _size(image)
    return check_annotation(
        path,
        target,
        size,
        boxes=[_box(annotation) for annotation in annotations],
        labels=[label_of[a["category_id"]] for a in annotations],
        ignored=[bool(a.get("iscrowd", 0)) for a in annotations],
        segments=_segments(path, target, size, annotations),
    )


def _segments(
    path: Path, target: Path, size: tuple[int, int], annotations: list[dict[str, Any]]
) -> tuple[Segment, ...] | None:
    """The outlines of an image's objects; None unless every object has one."""
    segments = tuple(annotation.get("segmentation") for annotation in annotations)
    if not all(segments):
        return None
    try:
        for segment in segments:
            check_segment(segment, size)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} has a damaged segmentation for {target.name} ({error}).") from None
    return segments  # type: ignore[return-value]  # checked just now


def _json(path: Path) -> Any:
    try:
        return json.loads(read_listing(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from None
