"""Views that belong together: turned, mirrored alike, and cropped each for itself."""

import numpy as np
import pytest
import torch

from compress.data import ImageBatches
from compress.data.augment import AUGMENTATIONS, PAD, ImageView
from compress.errors import UserError
from compress.methods import View
from compress.methods.contract import joined_views
from tests.data.test_data import CPU, PLAIN, some_images

TURNED = [ImageView("crop_flip"), *(ImageView("crop_flip", turn, 0) for turn in (90, 180, 270))]


def turned(images: int = 64, **options: object) -> ImageBatches:
    return ImageBatches(
        some_images(images), PLAIN, batch_size=images, augment=TURNED, seed=3, device=CPU,
        **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_turned_view_is_a_crop_of_the_turned_image_mirrored_with_the_others() -> None:
    """The order of the authors' code: mirror, turn, pad by 4, crop; each with crops of its own."""
    batch = next(turned().epoch(0))
    offsets, mirrored = [], []
    for index, pixels in zip(batch.index.tolist(), zip(*batch.images, strict=True), strict=True):
        image = some_images(64).pixels[index].numpy()
        found = [_crop_of(image, view, turn) for turn, view in enumerate(pixels)]
        assert len({flip for flip, _ in found}) == 1
        mirrored.append(found[0][0])
        offsets.append([offset for _, offset in found])
    assert 16 < sum(mirrored) < 48
    assert all(len({*crops}) > 1 for crops in offsets)
    assert len({crop for crops in offsets for crop in crops}) > 60


def _crop_of(image: np.ndarray, view: torch.Tensor, turn: int) -> tuple[bool, tuple[int, int]]:
    """Whether the image was mirrored, and where the crop of the turned one begins."""
    pixels = (view * 255).round().to(torch.uint8).numpy()
    for flip in (False, True):
        source = image[:, :, ::-1] if flip else image
        source = np.rot90(source, turn, (1, 2))
        padded = np.pad(source, ((0, 0), (PAD, PAD), (PAD, PAD)))
        for row in range(2 * PAD + 1):
            for column in range(2 * PAD + 1):
                if np.array_equal(padded[:, row : row + 8, column : column + 8], pixels):
                    return flip, (row, column)
    raise AssertionError(f"no crop of the image turned by {90 * turn} degrees")


def test_a_resized_crop_is_mirrored_like_another_from_its_own_box() -> None:
    mirror = AUGMENTATIONS["resized_crop"].mirror
    ids, like = torch.tensor([14, 15, 14, 15]), torch.tensor([6, 6, 7, 7])
    assert mirror(ids, like).tolist() == [14, 14, 15, 15]
    assert AUGMENTATIONS["crop"].mirror(ids, like) is ids


def test_other_views_are_what_they_were() -> None:
    """The names alone give the views of before, whatever stands beside them."""
    plain = ImageBatches(
        some_images(64), PLAIN, batch_size=64, augment=["crop_flip"], seed=3, device=CPU
    )
    assert torch.equal(next(plain.epoch(1)).images[0], next(turned().epoch(1)).images[0])


def test_views_that_are_mirrored_alike_are_not_drawn_beforehand() -> None:
    with pytest.raises(UserError, match="leave out data"):
        turned(views=4)


def test_another_turn_is_refused() -> None:
    with pytest.raises(ValueError, match="rotation is 0, 90, 180 or 270 degrees, got 45"):
        ImageView("none", 45)


def test_views_are_joined_with_those_before_them() -> None:
    alone, joined = View(), View(joined=True)
    teachers = View(student=False)
    assert joined_views([alone, joined, joined]) == [[0, 1, 2]]
    assert joined_views([alone, alone, joined, teachers, alone]) == [[0], [1, 2], [4]]
    assert joined_views([teachers, joined]) == [[1]]
