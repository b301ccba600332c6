"""Images with masks: views cut both alike, by their number alone; batches of one size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compress.data import ImageBatches, Preprocessing, evaluation_batches, open_data
from compress.data.augment import AUGMENTATIONS
from compress.data.dense.images import MaskedImages, MaskedPixels
from compress.errors import UserError

MEAN = (0.5, 0.25, 0.125)
VOID = 255
CPU = torch.device("cpu")


def item(height: int, width: int) -> MaskedPixels:
    """The class of a pixel is a tenth of its red."""
    mask = torch.randint(0, 5, (height // 8 + 1, width // 8 + 1))
    mask = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width].contiguous()
    pixels = torch.stack([mask * 10, mask * 0, mask * 0 + 200]).to(torch.uint8)
    return MaskedPixels(pixels, mask.to(torch.uint8))


def images(*sizes: tuple[int, int]) -> MaskedImages:
    torch.manual_seed(0)
    return MaskedImages(tuple(item(*size) for size in sizes), MEAN, scales=(0.5, 2.0))


def agrees(view: Tensor) -> float:
    """The share of the pixels with a class whose colour is that class's."""
    valid = view[3] != VOID
    off = (view[0].int() - 10 * view[3].int()).abs()[valid]
    return float((off <= 5).float().mean())


def test_a_view_is_that_of_its_number_and_cuts_image_and_mask_alike() -> None:
    data = images((40, 56))
    apply = AUGMENTATIONS["scaled_crop"].apply
    index, numbers = torch.zeros(40, dtype=torch.int64), torch.arange(40) * 977
    views = apply(data, index, numbers, 32)
    assert views.shape == (40, 4, 32, 32)
    assert torch.equal(views, apply(data, index, numbers, 32))
    assert len({view.numpy().tobytes() for view in views}) > 30
    assert all(agrees(view) > 0.75 for view in views)  # borders are blurred where it is scaled


def test_the_last_bit_of_a_number_mirrors_unless_that_is_switched_off() -> None:
    data = images((40, 56))
    plain, mirrored = (
        AUGMENTATIONS["scaled_crop"].apply(data, torch.tensor([0]), torch.tensor([100 + bit]), 32)
        for bit in (0, 1)
    )
    assert torch.equal(plain.flip(-1), mirrored)
    still = data.with_views([0.5, 2.0], flip=False)
    assert torch.equal(
        AUGMENTATIONS["scaled_crop"].apply(still, torch.tensor([0]), torch.tensor([101]), 32), plain
    )


def test_outside_the_image_is_the_mean_colour_without_a_class() -> None:
    small = MaskedImages((item(12, 20),), MEAN)
    square = small.fetch_square(torch.tensor([0]), 24)[0]
    outside = square[3] == VOID
    assert int((~outside).sum()) == 12 * 20
    assert {tuple(p) for p in square[:3, outside].T.tolist()} == {(128, 64, 32)}


def test_batches_hold_normalised_pixels_labels_and_their_count() -> None:
    data = images(*[(40, 56)] * 6)
    batches = ImageBatches(
        data,
        Preprocessing(32, MEAN, (1.0, 1.0, 1.0)),
        batch_size=3,
        augment=["scaled_crop"],
        seed=0,
        device=CPU,
    )
    batch = next(batches.epoch(0))
    assert batch.images[0].shape == (3, 3, 32, 32)
    assert batch.labels.shape == (3, 32, 32)
    assert batch.counted is not None
    assert int(batch.counted) == int((batch.labels != VOID).sum())
    again = next(batches.epoch(0))
    assert torch.equal(again.images[0], batch.images[0])
    assert torch.equal(again.labels, batch.labels)
    assert not torch.equal(next(batches.epoch(1)).labels, batch.labels)


def test_whole_images_are_evaluated_with_others_of_their_size() -> None:
    sizes = [(16, 24), (16, 24), (24, 16), (16, 24)]
    data = images(*sizes)
    batches = list(evaluation_batches(data, 64, Preprocessing(8, MEAN, MEAN), CPU))
    assert [tuple(labels.shape) for _, labels in batches] == [(2, 16, 24), (1, 24, 16), (1, 16, 24)]
    assert all(images.shape[-2:] == labels.shape[-2:] for images, labels in batches)
    with pytest.raises(UserError, match="images of 2 sizes"):
        data.fetch(torch.arange(4))


def test_a_digest_tells_other_pixels_masks_and_views() -> None:
    data = images((16, 24), (16, 24))
    others = [
        images((16, 24)),
        data.with_views([1.0, 1.0], flip=True),
        data.with_views([0.5, 2.0], flip=False),
        MaskedImages((data.items[1], data.items[0]), MEAN, scales=(0.5, 2.0)),
    ]
    digests = [data.digest(), *(one.digest() for one in others)]
    assert len({*digests}) == 5
    assert data.subset(torch.tensor([0, 1])).digest() == data.digest()


def test_folders_of_masks_are_read_by_a_recipe_and_know_their_files(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            for folder, channels in ((split, 3), (f"{split}annot", 1)):
                (tmp_path / folder).mkdir(exist_ok=True)
                shape = (12, 18, 3)[: 2 + (channels == 3)]
                values = np.full(shape, number % 2, np.uint8)
                Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    spec = {"name": "mask_folders", "root": str(tmp_path), "class_names": ["a", "b"]}
    data = open_data({**spec, "test_images": None, "image_size": 8} | {"validation": 1})
    assert (len(data.train), len(data.test), data.class_names) == (3, 2, ("a", "b"))
    version = data.train.version()
    masks = tmp_path / "trainannot"
    for number in range(4):
        (masks / f"{number}.png").write_bytes((tmp_path / "testannot" / "1.png").read_bytes())
    assert open_data({**spec, "image_size": 8, "validation": 1}).train.version() != version


def test_camvid_is_tested_on_its_test_split_where_it_has_one(tmp_path: Path) -> None:
    pixel = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    mask = Image.fromarray(np.zeros((4, 4), np.uint8))
    for split, count in (("train", 2), ("val", 1), ("test", 3)):
        for number in range(count):
            for folder, picture in ((split, pixel), (f"{split}annot", mask)):
                (tmp_path / folder).mkdir(exist_ok=True)
                picture.save(tmp_path / folder / f"{number}.png")
    data = open_data({"name": "camvid", "root": str(tmp_path)})
    assert (len(data.train), len(data.test)) == (2, 3)
    assert data.preprocessing.image_size == 360
