"""Writing scenes in the formats of COCO and PASCAL VOC."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from PIL import Image

from compress.data.scenes import Scene


def write_coco(folder: Path, split: str, scenes: list[Scene], names: tuple[str, ...]) -> None:
    """Write `annotations/instances_<split>.json` and `<split>/*.png`."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        height, width = scene.mask.shape
        file_name = f"{split}_{index:05d}.png"
        Image.fromarray(scene.pixels).save(folder / split / file_name)
        images.append({"id": index + 1, "file_name": file_name, "height": height, "width": width})
        for (x0, y0, x1, y1), label in zip(scene.boxes, scene.labels, strict=True):
            area = int((scene.mask[y0:y1, x0:x1] == label + 1).sum())
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(
        json.dumps(content), encoding="utf-8"
    )


def write_voc(folder: Path, split: str, scenes: list[Scene], names: tuple[str, ...]) -> None:
    """Write the boxes, the palette masks and the lists of one split in PASCAL VOC's folders."""
    for part in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Main",
        "ImageSets/Segmentation",
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
    stems = [f"{split}_{index:05d}" for index in range(len(scenes))]
    for stem, scene in zip(stems, scenes, strict=True):
        Image.fromarray(scene.pixels).save(folder / "JPEGImages" / f"{stem}.png")
        mask = Image.fromarray(scene.mask).convert("P")
        mask.putpalette(_voc_palette())
        mask.save(folder / "SegmentationClass" / f"{stem}.png")
        tree = _voc_annotation(f"{stem}.png", scene, names)
        tree.write(folder / "Annotations" / f"{stem}.xml", encoding="utf-8")
    for part in ("Main", "Segmentation"):
        (folder / "ImageSets" / part / f"{split}.txt").write_text(
            "\n".join(stems) + "\n", encoding="utf-8"
        )


def _voc_annotation(
    file_name: str, scene: Scene, names: tuple[str, ...]
) -> "ElementTree.ElementTree[Any]":
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = file_name
    size = ElementTree.SubElement(root, "size")
    for key, value in zip(("height", "width", "depth"), scene.pixels.shape, strict=True):
        ElementTree.SubElement(size, key).text = str(value)
    for (x0, y0, x1, y1), label in zip(scene.boxes, scene.labels, strict=True):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = names[label]
        ElementTree.SubElement(item, "difficult").text = "0"
        box = ElementTree.SubElement(item, "bndbox")
        # PASCAL VOC counts pixels from 1 and includes the last one.
        for key, value in zip(
            ("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1), strict=True
        ):
            ElementTree.SubElement(box, key).text = str(value)
    return ElementTree.ElementTree(root)


def _voc_palette() -> list[int]:
    """The colour map of PASCAL VOC: the bits of the index, spread over red, green and blue."""
    return [
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
        for index in range(256)
        for channel in range(3)
    ]
