"""RandAugment: every change against Pillow, views a function of their ids, cut-outs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from compress.data import rand_augment
from compress.data.augment import AUGMENTATIONS
from compress.data.rand_augment import STRENGTHS, Change, rand_augment_view

SIZE = 16


def _images(count: int, size: int = SIZE) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    noise = torch.rand(count, 3, size, size, generator=draw)
    return (255 * (0.7 * smooth + 0.3 * noise)).to(torch.uint8)


def _sheared(x: float, y: float) -> Callable[[Image.Image], Image.Image]:
    return lambda i: i.transform(i.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0))


def _shifted(x: float, y: float) -> Callable[[Image.Image], Image.Image]:
    return lambda i: i.transform(i.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


PILLOW: dict[Change, Callable[[float], Callable[[Image.Image], Image.Image]]] = {
    rand_augment.autocontrast: lambda v: ImageOps.autocontrast,
    rand_augment.brightness: lambda v: lambda i: ImageEnhance.Brightness(i).enhance(v),
    rand_augment.colour: lambda v: lambda i: ImageEnhance.Color(i).enhance(v),
    rand_augment.contrast: lambda v: lambda i: ImageEnhance.Contrast(i).enhance(v),
    rand_augment.equalize: lambda v: ImageOps.equalize,
    rand_augment.identity: lambda v: lambda i: i,
    rand_augment.posterize: lambda v: lambda i: ImageOps.posterize(i, int(v)),
    rand_augment.rotate: lambda v: lambda i: i.rotate(v),
    rand_augment.sharpness: lambda v: lambda i: ImageEnhance.Sharpness(i).enhance(v),
    rand_augment.shear_x: lambda v: _sheared(v, 0),
    rand_augment.shear_y: lambda v: _sheared(0, v),
    rand_augment.solarize: lambda v: lambda i: ImageOps.solarize(i, v),  # type: ignore[arg-type]
    rand_augment.translate_x: lambda v: _shifted(v * SIZE, 0),
    rand_augment.translate_y: lambda v: _shifted(0, v * SIZE),
}


@pytest.mark.parametrize("change", STRENGTHS, ids=lambda c: c.__name__)
def test_a_change_gives_pillows_pixels(change: Change) -> None:
    images = _images(24)
    images[0] = 77  # one colour
    images[1, 0] = 9  # a channel of one value
    least, most = STRENGTHS[change]
    draw = torch.Generator().manual_seed(1)
    strengths = least + (most - least) * torch.rand(24, generator=draw, dtype=torch.float64)
    got = change(images, strengths.view(-1, 1, 1, 1))
    assert got.dtype == torch.uint8
    for image, strength, found in zip(images, strengths.tolist(), got, strict=True):
        whole = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(PILLOW[change](strength)(whole))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_smooth_is_the_filter_that_sharpness_blends_with() -> None:
    (image,) = _images(1)
    whole = Image.fromarray(image.permute(1, 2, 0).numpy())
    got = rand_augment.sharpness(image[None], torch.zeros(1, 1, 1, 1))[0]
    expected = np.asarray(whole.filter(ImageFilter.SMOOTH))
    assert np.array_equal(got.permute(1, 2, 0).numpy(), expected)


def test_a_view_is_a_function_of_its_id_alone() -> None:
    images, ids = _images(12), torch.arange(100, 112)
    together = rand_augment_view(images, ids)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    alone = [rand_augment_view(images[i : i + 1], ids[i : i + 1])[0] for i in range(12)]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(together, rand_augment_view(images, ids + 12))


def test_changes_that_wait_for_no_device_give_the_same_pixels() -> None:
    draw = torch.Generator().manual_seed(2)
    images, strength = _images(70), torch.rand(70, generator=draw)
    change = torch.arange(70) % len(STRENGTHS)
    expected = rand_augment.change_chosen(images, change, strength)
    assert torch.equal(rand_augment.change_all(images, change, strength), expected)
    assert not torch.equal(expected, images)


def test_every_change_crop_and_mirror_is_drawn_and_cut_outs_have_the_range() -> None:
    ids = torch.arange(4000)
    draws = rand_augment.uniform(ids, rand_augment._COLUMNS)
    for choice in (draws[:, 3], draws[:, 5]):
        counts = torch.bincount((choice * len(STRENGTHS)).long(), minlength=14)
        assert len(counts) == 14 and int(counts.min()) > 200
    grey = torch.tensor([125, 123, 114])
    white = torch.full((400, 3, 32, 32), 255, dtype=torch.uint8)
    cut = rand_augment._cut_out(white, *draws[:400, -3:].unbind(1))
    filled = (cut == grey.view(3, 1, 1)).all(1)
    assert 0.05 < float(filled.float().mean()) < 0.1  # a twelfth, less what lies outside
    assert int(filled.any(1).sum(1).max()) <= 17


def test_crops_are_those_of_crop_flip() -> None:
    size = 8
    image = torch.arange(1, 3 * size * size + 1, dtype=torch.uint8).view(1, 3, size, size)
    for down, right, mirror in ((0, 0, False), (8, 3, True), (4, 4, False)):
        drawn = [torch.tensor([(n + 0.5) / 9]) for n in (down, right)]
        got = rand_augment._cropped(image, *drawn, torch.tensor([mirror]))
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        expected = padded[..., down : down + size, right : right + size]
        assert torch.equal(got, expected.flip(-1) if mirror else expected)


def test_is_an_augmentation_of_its_own() -> None:
    augmentation = AUGMENTATIONS["rand_augment"]
    drawn = augmentation.draw(1000, torch.Generator().manual_seed(0))
    assert len(torch.unique(drawn)) > 990
