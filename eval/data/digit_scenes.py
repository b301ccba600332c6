"""The data set `digit_scenes`: scenes of the digits that the distillation never trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from compress.data.digits import held_out_scenes_digits
from eval.data.scenes import write_scenes

Data = TypeVar("Data")


def write_digit_scenes(folder: Path, **settings: int) -> tuple[str, ...]:
    """Write the scenes into `folder` unless they are there; see `write_scenes`."""
    pixels, labels = held_out_scenes_digits()
    return write_scenes(folder, pixels, labels, **settings)


def digit_scenes_read_by(
    read: Callable[[Path, tuple[str, ...]], Data], *, usual_classes: int
) -> Callable[..., Data]:
    """Make the data set function `digit_scenes` of a task.

    Args:
        read: opens the folder of scenes, given the names of their classes.
        usual_classes: as many digits as a recipe gets that does not say.
    """

    def digit_scenes(
        folder: Path,
        *,
        classes: int = usual_classes,
        train_images: int = 200,
        test_images: int = 100,
        image_size: int = 64,
        seed: int = 0,
    ) -> Data:
        """Scenes of held-out digits, written below `folder` and read from there."""
        names = write_digit_scenes(
            folder,
            classes=classes,
            train_images=train_images,
            test_images=test_images,
            image_size=image_size,
            seed=seed,
        )
        return read(folder, names)

    return digit_scenes
