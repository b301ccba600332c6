"""The images of one network made of those of another: the same crops, resized and normalised."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from compress.data import Preprocessing, conversion

USUAL = Preprocessing(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PIXELS = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)


def test_equal_preprocessing_needs_none() -> None:
    assert conversion(USUAL, USUAL) is None
    # How an image came to its size does not matter to a batch of that size.
    assert conversion(USUAL, Preprocessing(16, USUAL.mean, USUAL.std, resize=20)) is None


@pytest.mark.parametrize("size", [16, 8, 40])
def test_it_is_what_the_other_network_reads_of_the_same_pixels(size: int) -> None:
    other = Preprocessing(size, (0.1, 0.2, 0.3), (1.0, 0.5, 0.2))
    convert = conversion(USUAL, other)
    assert convert is not None
    read = USUAL.normalise(PIXELS)
    before = read.clone()
    got = convert(read)
    resized = PIXELS.float() / 255
    if size != 16:
        resized = F.resize(resized, [size, size], antialias=True)
    expected = torch.empty(3, 3, size, size)
    for channel in range(3):
        expected[:, channel] = (resized[:, channel] - other.mean[channel]) / other.std[channel]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert torch.equal(read, before)
    assert convert(read.double()).dtype == torch.float64


def test_it_says_what_it_does() -> None:
    convert = conversion(USUAL, Preprocessing(24, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    assert convert is not None
    assert convert.as_words() == (
        "resized from 16 to 24 pixels, normalised by mean 0.5, 0.5, 0.5 and std 0.25, 0.25, 0.25"
    )
