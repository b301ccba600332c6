"""The data set `digit_scenes`: scenes of the digits that the distillation never trained on."""

from pathlib import Path

from compress.data.digits import held_out_scenes_digits
from eval.data.scenes import write_scenes


def prepare(
    folder: Path,
    *,
    classes: int,
    train_images: int,
    test_images: int,
    image_size: int,
    seed: int,
) -> tuple[Path, tuple[str, ...]]:
    """Write the scenes into `folder` unless they are there; return it and the class names."""
    pixels, labels = held_out_scenes_digits()
    names = write_scenes(
        folder,
        pixels,
        labels,
        classes=classes,
        train_images=train_images,
        test_images=test_images,
        image_size=image_size,
        seed=seed,
    )
    return folder, names
