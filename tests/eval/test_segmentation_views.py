"""Training views: image and mask move together, and every draw is keyed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.data import Preprocessing
from compress.data.dense.masked_images import meaning
from compress.data.dense.views import Example, random_crop
from compress.errors import UserError
from compress.seeding import generator
from eval.data import IGNORE_INDEX, MaskedImage
from eval.data.batches import KeyedBatches
from eval.segmentation.views import Views, example, view_batches

MEAN = (0.5, 0.25, 0.125)
RAW = Preprocessing(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def items(tmp_path: Path) -> list[MaskedImage]:
    """Six images of 20 x 24 pixels whose red is 16 times the class."""
    draw = np.random.default_rng(0)
    values = meaning({index: index for index in range(8)})
    found = []
    for number in range(6):
        mask = draw.integers(0, 8, (20, 24), dtype=np.uint8)
        pixels = np.stack([16 * mask, mask * 0, mask * 0], 2)
        item = MaskedImage(tmp_path / f"{number}.png", tmp_path / f"{number}m.png", values)
        Image.fromarray(pixels).save(item.image)
        Image.fromarray(mask).save(item.mask)
        found.append(item)
    return found


def batches(
    items: list[MaskedImage], views: Views, seed: int = 0
) -> KeyedBatches[Example, Example]:
    return view_batches(items, views, RAW, batch_size=3, seed=seed, device=torch.device("cpu"))


def masks(items: list[MaskedImage], views: Views, *, seed: int = 0, epoch: int = 0) -> Tensor:
    return torch.cat([mask for _, mask in batches(items, views, seed).epoch(epoch)])


@pytest.mark.parametrize(
    "views", [Views(), Views(crop=8), Views(crop=40), Views(crop=9, flip=True)]
)
def test_every_pixel_keeps_its_class(items: list[MaskedImage], views: Views) -> None:
    for pixels, mask in batches(items, views).epoch(0):
        valid = mask != IGNORE_INDEX
        assert torch.equal((255 * pixels[:, 0]).round().long()[valid], 16 * mask[valid])
        assert valid.sum(dim=(1, 2)).min() > 0
        side = views.crop
        assert mask.shape == ((3, side, side) if side else (3, 20, 24))


def test_scaled_views_keep_their_classes_away_from_edges(tmp_path: Path) -> None:
    # Left half class 1, right half class 2: only beside the border may the two disagree.
    mask = torch.ones(40, 40, dtype=torch.int64)
    mask[:, 20:] = 2
    pixels = (100 * mask).to(torch.uint8).repeat(3, 1, 1)
    sides = set()
    for number in range(40):
        seen, labels = random_crop(
            pixels, mask, crop=24, scales=(0.7, 2.1), mean=MEAN, draw=generator(number)
        )
        valid = labels != IGNORE_INDEX
        off = (seen[0].long() != 100 * labels) & valid
        assert off.any(dim=0).sum() <= 4
        sides.add(int(valid.any(dim=0).sum()))
    assert len(sides) == 1  # 0.7 x 40 is more than 24: no view is padded


def test_outside_the_image_is_the_mean_colour_and_void() -> None:
    pixels, mask = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.int64)
    seen, labels = random_crop(pixels, mask, crop=8, scales=None, mean=MEAN, draw=generator(0))
    assert (labels != IGNORE_INDEX).sum() == 20
    assert seen[:, 7, 7].tolist() == [128, 64, 32]
    assert (seen[0] == 128).sum() == (labels == IGNORE_INDEX).sum()


def test_views_are_keyed_by_seed_epoch_and_index(items: list[MaskedImage]) -> None:
    views = Views(crop=8, scales=(0.7, 2.1), flip=True)
    torch.manual_seed(1)
    first = masks(items, views)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, masks(items, views))
    assert not torch.equal(first, masks(items, views, seed=1))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_each_epoch_sees_another_part_of_an_image(items: list[MaskedImage]) -> None:
    seen = [masks(items[:1], Views(crop=8), epoch=epoch) for epoch in range(4)]
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_crops_do_not_change_the_order_or_the_mirroring(items: list[MaskedImage]) -> None:
    whole = masks(items, Views(flip=True))
    cut = masks(items, Views(crop=20, flip=True))
    for full, square in zip(whole, cut, strict=True):
        columns = [torch.equal(full[:, left : left + 20], square) for left in range(5)]
        assert sum(columns) == 1


def test_mirroring_moves_image_and_mask_together(items: list[MaskedImage]) -> None:
    straight, mirrored = masks(items, Views()), masks(items, Views(flip=True))
    same = [torch.equal(a, b) for a, b in zip(straight, mirrored, strict=True)]
    turned = [torch.equal(a.flip(1), b) for a, b in zip(straight, mirrored, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert any(turned)
    assert any(same)


def test_mask_is_scaled_to_the_class_at_each_centre(items: list[MaskedImage]) -> None:
    mask = example(items[0], 48)[1]
    whole = items[0].classes()
    for row in range(48):
        for column in range(48):
            y, x = int((row + 0.5) * 20 / 48), int((column + 0.5) * 24 / 48)
            assert mask[row, column] == whole[y, x]


@pytest.mark.parametrize("scales", [(2.0, 0.7), (0.0, 1.0), (-1.0, 1.0), (1.0, float("inf"))])
def test_scales_that_are_no_range_are_refused(scales: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="scales are two positive, ascending factors"):
        Views(crop=8, scales=scales)


def test_scales_need_a_crop_and_sizes_must_agree(items: list[MaskedImage], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set crop"):
        Views(scales=(0.7, 2.1))
    for path in (items[0].image, items[0].mask):
        Image.open(path).crop((0, 0, 20, 20)).save(path)
    with pytest.raises(UserError, match="images of 2 sizes; set image_size or crop"):
        list(batches(items, Views()).epoch(0))
    assert masks(items, Views(crop=16)).shape == (6, 16, 16)
