"""The augmentation of MoCo v2, a batch at a time on the device of its images.

Chen et al., Improved Baselines with Momentum Contrastive Learning (2020), and its released loader:
a random crop of 20 to 100 % of the area and of aspect 3/4 to 4/3, resized; with probability 0.8
brightness, contrast and saturation times 0.6 to 1.4 and hue shifted by up to 0.1 turns; grey with
0.2; a Gaussian blur of 0.1 to 2 pixels with 0.5; mirrored with 0.5.

What differs: the four changes of colour come in this order, which the loader draws; the blur is
the Gaussian itself, cut off at three deviations and renormalised at the border, where the loader
has Pillow's approximation. Every number is drawn from a view's id alone (`uniform`), so that an id
stands for the same view on every device.
"""

import torch
from torch import Tensor

TRIES = 10  # of a crop, as torchvision's
_AREA, _RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
_STRENGTH, _HUE = 0.4, 0.1
_COLOUR, _GREY, _BLUR, _FLIP = 0.8, 0.2, 0.5, 0.5  # probabilities
_SIGMA = (0.1, 2.0)
_LUMA = (0.2989, 0.587, 0.114)
# Columns of the numbers of a view: four of each try of a crop, then one of each change.
_CROP = 4 * TRIES
_COLUMNS = _CROP + 9


def moco_view(images: Tensor, ids: Tensor) -> Tensor:
    """The views `ids` (N,) of uint8 images (N, 3, S, S): uint8 of the same shape."""
    size = images.shape[-1]
    draws = uniform(ids.to(images.device), _COLUMNS)
    top, left, height, width = crop_boxes(draws[:, :_CROP].view(-1, TRIES, 4), size)
    changes = draws[:, _CROP:].unbind(1)
    do_colour, brightness, contrast, saturation, hue, do_grey, do_blur, sigma, do_flip = changes
    rows, columns = _resampling(top, height, size), _resampling(left, width, size)
    pixels = _separable(images.float() / 255, rows, columns)
    brightness, contrast, saturation = (
        1 + _STRENGTH * (2 * draw - 1) for draw in (brightness, contrast, saturation)
    )
    shift = _HUE * (2 * hue - 1)
    coloured = change_colours(pixels, brightness, contrast, saturation, shift)
    pixels = _where(do_colour < _COLOUR, coloured, pixels)
    pixels = _where(do_grey < _GREY, _luma(pixels).expand_as(pixels), pixels)
    kernels = _blurring(_SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * sigma, size)
    pixels = _where(do_blur < _BLUR, _separable(pixels, kernels, kernels), pixels)
    pixels = _where(do_flip < _FLIP, pixels.flip(-1), pixels)
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)


def uniform(ids: Tensor, count: int) -> Tensor:
    """Numbers (N, count) float32 in [0, 1) of ids (N,): splitmix64, equal on every device."""
    steps = torch.arange(1, count + 1, device=ids.device)
    mixed = ids.long()[:, None] * 0x2545F4914F6CDD1D + steps * -0x61C8864680B583EB
    mixed = (mixed ^ _shifted(mixed, 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ _shifted(mixed, 27)) * -0x6B2FB644ECCEEE15
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 40).float() / (1 << 24)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def crop_boxes(draws: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width (N,), int64, of crops, distributed as torchvision's.

    Args:
        draws: (N, tries, 4) in [0, 1): area, aspect and place. The first try that the image holds
            is taken; where there is none, the whole image.
    """
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[..., 0]) * size**2
    aspect = _RATIO[0] * (_RATIO[1] / _RATIO[0]) ** draws[..., 1]
    height, width = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (height <= size) & (width <= size) & (height > 0) & (width > 0)
    first = fits.int().argmax(1, keepdim=True)
    none = ~fits.any(1)
    height, width, down, right = (
        values.gather(1, first)[:, 0] for values in (height, width, draws[..., 2], draws[..., 3])
    )
    height, width = (values.masked_fill(none, size) for values in (height, width))
    top, left = (down * (size - height + 1)).floor(), (right * (size - width + 1)).floor()
    return top.long(), left.long(), height.long(), width.long()


def _resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Matrices (N, size, size) that enlarge `length` pixels from `start` to `size`, bilinearly."""
    places = torch.arange(size, device=start.device) + 0.5
    wanted = places[None] * (length / size)[:, None] - 0.5
    wanted = wanted.clamp(min=0).minimum((length - 1)[:, None].float()) + start[:, None]
    sources = torch.arange(size, device=start.device)
    return (1 - (wanted[:, :, None] - sources).abs()).clamp(min=0)


def _blurring(sigma: Tensor, size: int) -> Tensor:
    """Matrices (N, size, size) that blur a line of pixels; each row sums to 1."""
    places = torch.arange(size, device=sigma.device)
    distance = (places[:, None] - places)[None] / sigma[:, None, None]
    weights = (-0.5 * distance.square()).exp() * (distance.abs() <= 3)
    return weights / weights.sum(2, keepdim=True)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows and columns (N, S, S) applied to images (N, 3, S, S)."""
    return rows[:, None] @ images @ columns[:, None].mT


def change_colours(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Images (N, 3, S, S) from 0 to 1 with factors (N,) applied, then hue shifted by turns (N,)."""
    brightness, contrast, saturation = (
        f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation)
    )
    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(_luma(images).mean((2, 3), keepdim=True), images, contrast).clamp(0, 1)
    images = torch.lerp(_luma(images), images, saturation).clamp(0, 1)
    return _shift_hue(images, hue.view(-1, 1, 1))


def _luma(images: Tensor) -> Tensor:
    weights = images.new_tensor(_LUMA).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Images with the hue of HSV shifted, by turns (N, 1, 1).

    Channel n of RGB is v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6, n = 5, 3, 1.
    """
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    span = value - low
    safe = span + (span == 0)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sixths / 6 + turns
    channels = []
    for place in (5, 3, 1):
        k = (place + 6 * hue) % 6
        channels.append(value - span * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), changed, images)
