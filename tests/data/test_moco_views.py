"""MoCo v2's augmentation: torchvision's operations, image by image, from ids alone."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from compress.data.augment import AUGMENTATIONS
from compress.data.images import MemoryImages
from compress.data.moco_views import (
    TRIES,
    _blurring,
    _resampling,
    _separable,
    change_colours,
    crop_boxes,
    moco_view,
    uniform,
)

SIZE = 32
NUMBERS = [[14819496, 7239838], [12640619, 8981197], [7558569, 13348213]]  # of ids 0, 1, 2**32 - 1


@pytest.fixture
def images() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), generator=draw, dtype=torch.uint8)


def test_numbers_are_uniform_and_depend_on_the_id_alone() -> None:
    ids = torch.arange(5000) * 7
    numbers = uniform(ids, 8)
    assert torch.equal(numbers[17:18], uniform(ids[17:18], 8))
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    torch.testing.assert_close(numbers.mean(0), torch.full((8,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(numbers.var(0), torch.full((8,), 1 / 12), atol=0.004, rtol=0)
    correlation = torch.corrcoef(numbers.t()) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.06


def test_numbers_do_not_change_between_versions() -> None:
    assert uniform(torch.tensor([0, 1, 2**32 - 1]), 2).mul(1 << 24).long().tolist() == NUMBERS


def test_crops_are_inside_and_of_the_published_areas() -> None:
    draws = uniform(torch.arange(4000), 4 * TRIES).view(-1, TRIES, 4)
    top, left, height, width = crop_boxes(draws, SIZE)
    for start, length in ((top, height), (left, width)):
        assert int(start.min()) >= 0 and int((start + length).max()) <= SIZE
    share = (height * width).float() / SIZE**2
    assert 0.17 < float(share.min()) < 0.25 and float(share.max()) > 0.95
    aspect = width / height
    assert float(aspect.min()) > 0.68 and float(aspect.max()) < 1.48


def test_a_crop_is_torchvisions(images: torch.Tensor) -> None:
    pixels = images.float() / 255
    top, left = torch.tensor([0, 3, 9, 1, 0, 12]), torch.tensor([0, 8, 2, 0, 5, 12])
    height, width = torch.tensor([32, 20, 15, 31, 20, 20]), torch.tensor([32, 18, 30, 32, 27, 20])
    rows, columns = _resampling(top, height, SIZE), _resampling(left, width, SIZE)
    made = _separable(pixels, rows, columns)
    for i, image in enumerate(pixels):
        box = [int(v[i]) for v in (top, left, height, width)]
        expected = F.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
        torch.testing.assert_close(made[i], expected, atol=1e-5, rtol=0)


def test_colours_are_torchvisions(images: torch.Tensor) -> None:
    pixels = images.float() / 255
    pixels[0] = 0.3  # grey: it has no hue
    factors = [
        torch.linspace(0.6, 1.4, 6),
        torch.linspace(1.3, 0.7, 6),
        torch.linspace(0.6, 1.2, 6),
    ]
    hue = torch.linspace(-0.1, 0.1, 6)
    made = change_colours(pixels, *factors, hue)
    for i, image in enumerate(pixels):
        image = F.adjust_brightness(image, float(factors[0][i]))
        image = F.adjust_contrast(image, float(factors[1][i]))
        image = F.adjust_saturation(image, float(factors[2][i]))
        image = F.adjust_hue(image, float(hue[i]))
        torch.testing.assert_close(made[i], image, atol=2e-4, rtol=0)


def test_a_blur_is_the_gaussian_and_keeps_flat_images(images: torch.Tensor) -> None:
    sigma = torch.tensor([0.3, 1.0, 2.0])
    kernels = _blurring(sigma, SIZE)
    torch.testing.assert_close(kernels.sum(2), torch.ones(3, SIZE))
    blurred = _separable(images[:3].float() / 255, kernels, kernels)
    for i in (1, 2):
        reach = int(3 * sigma[i])
        expected = F.gaussian_blur(images[i].float() / 255, 2 * reach + 1, float(sigma[i]))
        inner = slice(7, -7)  # the border is another matter
        torch.testing.assert_close(
            blurred[i][:, inner, inner], expected[:, inner, inner], atol=1e-5, rtol=0
        )


def test_views_depend_on_image_and_id_alone(images: torch.Tensor) -> None:
    ids = torch.tensor([5, 2**31, 77, 5, 123456789, 9])
    made = moco_view(images, ids)
    assert made.shape == images.shape and made.dtype == torch.uint8
    alone = moco_view(images[4:5], ids[4:5])
    assert (made[4:5].int() - alone.int()).abs().max() <= 1  # products of other shapes round
    assert not torch.equal(moco_view(images[:1], ids[:1]), moco_view(images[:1], ids[1:2]))


def test_it_is_an_augmentation_of_the_recipe(images: torch.Tensor) -> None:
    kept = MemoryImages(images, torch.zeros(6, dtype=torch.long))
    moco = AUGMENTATIONS["moco"]
    ids = moco.draw(6, torch.Generator().manual_seed(3))
    assert moco.apply(kept, torch.arange(6), ids, SIZE).shape == images.shape
