"""The data sets of the detection task, by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from eval.data.annotations import DetectionData
from eval.data.coco import coco
from eval.data.digit_scenes import prepare
from eval.data.voc import voc


def digit_scenes(
    folder: Path,
    *,
    classes: int = 10,
    train_images: int = 200,
    test_images: int = 100,
    image_size: int = 64,
    seed: int = 0,
) -> DetectionData:
    """Scenes of held-out digits, written below `folder` and read from there in COCO's layout."""
    root, _ = prepare(
        folder,
        classes=classes,
        train_images=train_images,
        test_images=test_images,
        image_size=image_size,
        seed=seed,
    )
    return coco(folder, root=str(root))


DATASETS: Mapping[str, Callable[..., DetectionData]] = {
    "coco": coco,
    "voc": voc,
    "digit_scenes": digit_scenes,
}
