"""Reading boxes in PASCAL VOC's format (XML).

VOC counts pixels from 1 and includes the last, hence x0 = xmin - 1 and x1 = xmax.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path

from compress.data.image_files import check_whole, image_named
from compress.errors import UserError
from compress.storage.user_files import inside, read_listing, require_file
from eval.data.annotations import (
    AnnotatedImage,
    Box,
    DetectionData,
    check_annotation,
    require_objects,
)

_ONE = ("train", "val")
_UNION = (("VOC2007/trainval", "VOC2012/trainval"), "VOC2007/test")


def voc(
    folder: Path,
    *,
    root: str,
    train: str | tuple[str, ...] | None = None,
    test: str | tuple[str, ...] | None = None,
    classes: tuple[str, ...] | None = None,
) -> DetectionData:
    """PASCAL VOC format: `ImageSets/Main/<split>.txt`, `Annotations/*.xml`, `JPEGImages/*`.

    `root` holds these folders, and the splits are by default `train` and `val`; or it holds several
    of them, maybe in `VOCdevkit/`, which a split then names. There the papers' 07+12 union is the
    default: `train: [VOC2007/trainval, VOC2012/trainval], test: VOC2007/test`. Without `classes`
    the names are those of the training splits, in alphabetical order.

    The image of an annotation is the one of its name; without one, that of its `<filename>`.
    """
    place = Path(root, "VOCdevkit")
    place = place if place.is_dir() else Path(root)
    usual = _ONE if (place / "ImageSets").is_dir() else _UNION
    train, test = train or usual[0], test or usual[1]
    train_files, test_files = _annotation_files(place, train), _annotation_files(place, test)
    if classes is None:
        names = {name for path in train_files for name in voc_names(path)}
        classes = tuple(sorted(names))
    find = partial(_image_of, place)
    train_images = tuple(read_voc(path, tuple(classes), find) for path in train_files)
    require_objects(train_images, f"training split {_join_splits(train)} of {root}", ignored=True)
    test_images = tuple(read_voc(path, tuple(classes), find) for path in test_files)
    require_objects(test_images, f"test split {_join_splits(test)} of {root}", ignored=False)
    check_whole(image.path for image in test_images)
    return DetectionData(tuple(classes), train_images, test_images, trains_on_ignored=True)


def _join_splits(splits: str | tuple[str, ...]) -> str:
    return splits if isinstance(splits, str) else " + ".join(splits)


def _annotation_files(root: Path, splits: str | tuple[str, ...]) -> list[Path]:
    """The annotation files of one or more `<folder>/<split>`, in their order."""
    files = []
    for split in (splits,) if isinstance(splits, str) else splits:
        folder, _, name = split.rpartition("/")
        files += _read_voc_list(root, root / folder, name)
    return files


def _read_voc_list(root: Path, year: Path, split: str) -> list[Path]:
    """The annotation files that a split's list names; a line may hold further columns."""
    path = year / "ImageSets" / "Main" / f"{split}.txt"
    stems = [line.split()[0] for line in read_listing(path).splitlines() if line.strip()]
    if not stems:
        raise UserError(f"{path} lists no image.")
    annotations = year / "Annotations"
    return [inside(root, annotations / f"{stem}.xml", stem, path) for stem in stems]


class _WithoutEntities(ElementTree.TreeBuilder):
    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Refuse a document type: a few lines of its entities may expand to gigabytes."""
        raise ValueError("it declares a document type; remove <!DOCTYPE ...>")


def _xml(path: Path) -> ElementTree.Element:
    require_file(path)
    try:
        return ElementTree.parse(path, ElementTree.XMLParser(target=_WithoutEntities())).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # an unknown encoding too
        raise UserError(f"{path} is not XML ({error}).") from None


def voc_names(path: Path) -> list[str]:
    """The classes of an annotation's objects, in their order."""
    names = [_name(item) for item in _xml(path).iter("object")]
    if not all(names):
        raise UserError(f"{path} has an object without a name.")
    return names


def read_voc(
    path: Path, classes: tuple[str, ...], find: Callable[[Path, str], Path]
) -> AnnotatedImage:
    """An annotated image.

    Args:
        classes: names of the labels from 1 up.
        find: the image of an annotation's path and the `<filename>` in it.

    Raises:
        UserError: the annotation is damaged, or names a class that is not among these.
    """
    annotation = _xml(path)
    boxes: list[Box] = []
    labels, ignored = [], []
    try:
        size = (_number(annotation, "size/height"), _number(annotation, "size/width"))
        for item in annotation.iter("object"):
            name = _name(item)
            if name not in classes:
                raise UserError(f"{path} has class '{name}'; known are {', '.join(classes)}.")
            x0, y0, x1, y1 = (
                _number(item, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")
            )
            boxes.append((x0 - 1, y0 - 1, x1, y1))
            labels.append(classes.index(name) + 1)
            ignored.append(item.findtext("difficult", "0").strip() == "1")
    except ValueError as error:
        raise UserError(f"{path} is not a PASCAL VOC annotation ({error}).") from None
    image = find(path, annotation.findtext("filename") or path.stem + ".jpg")
    return check_annotation(path, image, (int(size[0]), int(size[1])), boxes, labels, ignored)


def _image_of(root: Path, path: Path, named: str) -> Path:
    images = path.parents[1] / "JPEGImages"
    return image_named(images / path.stem) or inside(root, images / named, named, path)


def _name(item: ElementTree.Element) -> str:
    return item.findtext("name", "").strip()


def _number(element: ElementTree.Element, key: str) -> float:
    text = element.findtext(key)
    if text is None:
        raise ValueError(f"no {key}")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{key} is {number}")
    return number
