"""Images with boxes as tools write them: VOC's XML, COCO's JSON or YOLO's text, in any folders.

What is where is found by looking, so that a data set from elsewhere need not be moved:

    ROOT/Annotations/*.xml and ROOT/images/*      VOC without lists of its splits
    ROOT/train/*.xml beside the images            Roboflow's VOC
    ROOT/train/_annotations.coco.json             Roboflow's COCO; or one file of COCO anywhere
    ROOT/data.yaml, ROOT/labels/*, ROOT/images/*  YOLO; or ROOT/train/labels/*

A folder, or of COCO a file, whose name says train, test, val or valid is that split.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from compress.console.messages import log
from compress.data.image_files import SUFFIXES, check_whole, upright_size
from compress.errors import UserError
from compress.storage.user_files import read_listing
from eval.data.annotations import (
    AnnotatedImage,
    Box,
    DetectionData,
    check_annotation,
    require_objects,
)
from eval.data.coco import read_coco
from eval.data.voc import read_voc, voc_names

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_SUFFIXES = {suffix.lower() for suffix in SUFFIXES} | {".bmp", ".webp"}
_EXPECTED = (
    "expected VOC's *.xml, a *.json of COCO, or YOLO's labels/*.txt with data.yaml, and the images "
    "beside them or in folders of their own"
)
_LEAST_OF_JSON = re.compile(rb'"(images|annotations|categories)"\s*:')


def boxes(
    folder: Path, *, root: str, train_share: float = 0.8, test: str | None = None
) -> DetectionData:
    """Images with boxes in any common arrangement of folders, see `eval.data.boxes`.

    `test` says which split is judged, `test` or `val`: by default `test` where there is one.
    Without splits, `train_share` of the images are trained on, the same for the same names, and
    the others are judged.
    """
    place = Path(root)
    found = _find(place)
    splits = {name: images for name, images in found.splits.items() if images}
    if "train" in splits and len(splits) == 1:
        splits = _drawn(splits["train"], train_share)
    elif "train" not in splits:
        splits = _drawn([image for images in splits.values() for image in images], train_share)
    judged = test or ("test" if "test" in splits else "val")
    if judged not in splits or judged == "train":
        raise UserError(
            f"--test {judged}: {root} has the splits {', '.join(splits)}; give one to be judged"
        )
    log(
        f"{root}: {found.format}, {len(found.class_names)} classes, {len(splits['train'])} images "
        f"to train on, {len(splits[judged])} of '{judged}' to judge"
    )
    require_objects(splits["train"], f"training images of {root}", ignored=True)
    require_objects(splits[judged], f"split '{judged}' of {root}", ignored=False)
    check_whole(image.path for image in splits[judged])
    return DetectionData(
        found.class_names,
        tuple(splits["train"]),
        tuple(splits[judged]),
        trains_on_ignored=found.format.startswith("VOC"),
    )


def has_boxes(root: Path) -> bool:
    """Whether a folder holds annotations of a kind that `boxes` reads."""
    return any(any(finder(root)) for finder in (_xml_files, _coco_files, _yolo_files))


@dataclass(frozen=True)
class _Found:
    """A data set: what it is, its classes, the images of each split; '' where none is named."""

    format: str
    class_names: tuple[str, ...]
    splits: Mapping[str, list[AnnotatedImage]]


def _find(root: Path) -> _Found:
    if not root.is_dir():
        raise UserError(f"folder '{root}' not found (looked in {Path.cwd()}); {_EXPECTED}")
    kinds: dict[str, tuple[list[Path], Callable[[Path, list[Path]], _Found]]] = {
        "COCO": ([*_coco_files(root)], _coco),
        "VOC": ([*_xml_files(root)], _voc),
        "YOLO": ([*_yolo_files(root)], _yolo),
    }
    present = {name: one for name, one in kinds.items() if one[0]}
    if not present:
        raise UserError(f"'{root}' holds no annotations that are known; {_EXPECTED}")
    if len(present) > 1:
        raise UserError(
            f"'{root}' holds annotations of {' and '.join(present)}; give a folder with one kind"
        )
    files, read = next(iter(present.values()))
    return read(root, files)


def _visible(root: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(root.rglob(pattern)):
        if not any(part.startswith((".", "__")) for part in path.relative_to(root).parts):
            yield path


def _split_of(root: Path, path: Path, *, by_name: bool = False) -> str:
    """The split that a folder on the way names, the innermost first; of COCO the file, too."""
    parts = [*path.relative_to(root).parts[:-1]]
    if by_name:
        parts += re.split(r"[^a-zA-Z]+", path.stem)
    words = (re.sub(r"\d+$", "", part.lower()) for part in reversed(parts))
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


class _ImagesByName:
    """The images below a folder, by name with and without suffix."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_name: dict[str, list[Path]] = {}
        for path in _visible(root, "*"):
            if path.suffix.lower() in _SUFFIXES:
                for key in (path.name, path.stem):
                    self._by_name.setdefault(key, []).append(path)

    def find(self, annotation: Path, *names: str) -> Path:
        """The image of one of these names that lies nearest to an annotation.

        Raises:
            UserError: there is none, or several are as near.
        """
        for name in names:
            found = self._by_name.get(Path(name.replace("\\", "/")).name, [])
            if found:
                return self._nearest(annotation, found)
        raise UserError(
            f"{annotation} is of the image '{names[0]}', which is not below {self._root}"
        )

    def _nearest(self, annotation: Path, found: Sequence[Path]) -> Path:
        def common(path: Path) -> int:
            pairs = zip(path.parts[:-1], annotation.parts[:-1], strict=False)
            return sum(1 for one, other in pairs if one == other)

        def same_split(path: Path) -> bool:
            return _split_of(self._root, path) == _split_of(self._root, annotation)

        ranked = sorted(found, key=lambda path: (same_split(path), common(path)), reverse=True)
        if len(ranked) > 1 and all(
            (same_split(path), common(path)) == (same_split(ranked[0]), common(ranked[0]))
            for path in ranked[:2]
        ):
            raise UserError(
                f"{annotation}: '{ranked[0].name}' is both {ranked[0]} and {ranked[1]}; keep one"
            )
        return ranked[0]


def _xml_files(root: Path) -> Iterator[Path]:
    yield from _visible(root, "*.xml")


def _voc(root: Path, files: list[Path]) -> _Found:
    images = _ImagesByName(root)
    names = tuple(sorted({name for path in files for name in voc_names(path)}))
    splits: dict[str, list[AnnotatedImage]] = {}
    for path in files:
        image = read_voc(path, names, lambda of, named: images.find(of, of.stem, named))
        splits.setdefault(_split_of(root, path), []).append(image)
    return _Found("VOC's annotations", names, splits)


def _coco_files(root: Path) -> Iterator[Path]:
    """Files of JSON that list images, annotations and categories; captions and the like do not."""
    for path in _visible(root, "*.json"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if len({match for match in _LEAST_OF_JSON.findall(content)}) < 3:
            continue
        try:
            listed = json.loads(content)
        except ValueError:
            yield path  # reading it says what is wrong
            continue
        annotations = listed.get("annotations") if isinstance(listed, dict) else None
        if isinstance(annotations, list) and (not annotations or "bbox" in annotations[0]):
            yield path


def _coco(root: Path, files: list[Path]) -> _Found:
    images = _ImagesByName(root)
    splits: dict[str, list[AnnotatedImage]] = {}
    names: tuple[str, ...] = ()
    for path in files:

        def place(name: str, path: Path = path) -> Path:
            beside = path.parent / name
            return beside if beside.is_file() else images.find(path, name)

        read, categories = read_coco(path, place)
        if names and categories != names:
            raise UserError(f"{path} has other categories than {files[0]}: one list is needed")
        names = categories
        splits.setdefault(_split_of(root, path, by_name=True), []).extend(read)
    return _Found("COCO's annotations", names, splits)


def _yolo_files(root: Path) -> Iterator[Path]:
    """Label files, where there is a list of the classes."""
    if not any(_class_lists(root)):
        return
    for path in _visible(root, "*.txt"):
        if path.name not in ("classes.txt", "train.txt", "val.txt", "test.txt") and (
            "labels" in path.relative_to(root).parts or _image_beside(path)
        ):
            yield path


def _image_beside(path: Path) -> bool:
    return any(path.with_suffix(suffix).is_file() for suffix in SUFFIXES)


def _class_lists(root: Path) -> Iterator[Path]:
    yield from (path for name in ("data.yaml", "data.yml") for path in root.glob(name))
    yield from (path for path in root.glob("*.yaml") if "names" in _names_of(path))
    yield from _visible(root, "classes.txt")


def _names_of(path: Path) -> Mapping[str, object]:
    try:
        content = yaml.safe_load(read_listing(path))  # its keys may be numbers
    except (UserError, yaml.YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _yolo_classes(root: Path) -> tuple[str, ...]:
    path = next(_class_lists(root))
    if path.name == "classes.txt":
        return tuple(line.strip() for line in read_listing(path).splitlines() if line.strip())
    names = _names_of(path).get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} has no `names`, the list of the classes")
    return tuple(str(name) for name in names)


def _yolo(root: Path, files: list[Path]) -> _Found:
    names, images = _yolo_classes(root), _ImagesByName(root)
    splits: dict[str, list[AnnotatedImage]] = {}
    for path in files:
        image = images.find(path, path.stem)
        size = upright_size(image)
        found = [_yolo_box(path, line, size, len(names)) for line in _lines(path)]
        labels, corners = [label for label, _ in found], [box for _, box in found]
        annotated = check_annotation(path, image, size, corners, labels, [False] * len(found))
        splits.setdefault(_split_of(root, path), []).append(annotated)
    return _Found("YOLO's labels", names, splits)


def _lines(path: Path) -> list[str]:
    return [line for line in read_listing(path).splitlines() if line.strip()]


def _yolo_box(path: Path, line: str, size: tuple[int, int], classes: int) -> tuple[int, Box]:
    """Label from 1 and corners of `class x y width height`, shares of the image; x, y the middle.

    Of an outline (`class x y x y ...`) the box around it.
    """
    height, width = size
    try:
        label, *numbers = line.split()
        values = [float(number) for number in numbers]
        number = int(label)
    except ValueError:
        raise UserError(f"{path}: '{line}' is no line of YOLO (class x y width height)") from None
    if not 0 <= number < classes:
        raise UserError(f"{path}: class {number}; there are {classes}, from 0 up")
    if len(values) == 4:
        x, y, w, h = values
        sides = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        return number + 1, sides
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
        return number + 1, (min(xs), min(ys), max(xs), max(ys))
    raise UserError(f"{path}: '{line}' is no line of YOLO (class x y width height)")


def _drawn(images: Sequence[AnnotatedImage], share: float) -> dict[str, list[AnnotatedImage]]:
    """A share of the images to train on and the others to judge, the same for the same names."""
    if not 0 < share < 1 or len(images) < 2:
        raise UserError(
            f"--train-share {share:g}: {len(images)} images without a test split; give a share "
            "between 0 and 1 of two images or more"
        )
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator).tolist()
    count = min(len(images) - 1, max(1, round(share * len(images))))
    train, test = sorted(order[:count]), sorted(order[count:])
    return {"train": [images[i] for i in train], "test": [images[i] for i in test]}
