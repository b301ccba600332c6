"""RandAugment as FixMatch and MLKD have it, a batch at a time on the device of its images.

Cubuk et al., RandAugment (CVPR workshops 2020), in the form of FixMatch (Sohn et al.; NeurIPS 2020)
that the released code of MLKD uses: a crop by up to 4 pixels and a mirror image as `crop_flip`
has them; then two of 14 changes, drawn with their strength; then a rectangle of up to half the
side is filled with grey. Strengths are uniform in the ranges below; the paper's common magnitude is
not used there.

Every change gives Pillow's pixels, as that code calls it. Every number is drawn from a view's id
alone, so that an id stands for the same view on every device.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.transforms.v2 import functional as F

from compress.data.moco_views import uniform

CHANGES = 2
PAD = 4
_LARGEST_CUT = 0.5
_FILL = (125, 123, 114)
_COLUMNS = 3 + 2 * CHANGES + 3
_FIXED = 1 << 16  # Pillow's fixed-point numbers

Change = Callable[[Tensor, Tensor], Tensor]


def rand_augment_view(images: Tensor, ids: Tensor) -> Tensor:
    """The views `ids` (N,) of uint8 images (N, 3, S, S): uint8 of the same shape."""
    draws = uniform(ids.to(images.device), _COLUMNS)
    down, right, mirror, *changes = draws.unbind(1)
    images = _cropped(images, down, right, mirror < 0.5)
    # Which images have a change is known to a CPU alone without waiting.
    change_each = change_chosen if images.device.type == "cpu" else change_all
    for column in range(3, 3 + 2 * CHANGES, 2):
        change = (draws[:, column] * len(STRENGTHS)).long()
        images = change_each(images, change, draws[:, column + 1])
    return _cut_out(images, *changes[-3:])


def _cropped(images: Tensor, down: Tensor, right: Tensor, mirror: Tensor) -> Tensor:
    shifts = 2 * PAD + 1
    offsets = (((draw * shifts).long() - PAD)[:, None] for draw in (down, right))
    places = torch.arange(images.shape[-1], device=images.device)
    columns = torch.where(mirror[:, None], places.flip(0), places)
    rows_from, columns_from = next(offsets) + places, next(offsets) + columns
    return _gathered(images, rows_from[:, :, None], columns_from[:, None])


def _gathered(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels at rows and columns that broadcast to (N, S, S), black outside the images."""
    size = images.shape[-1]
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    places = (rows * size + columns).masked_fill(~inside, 0).flatten(1)
    found = images.flatten(2).gather(2, places[:, None].expand(-1, 3, -1)).view_as(images)
    return found * inside[:, None]


def change_chosen(images: Tensor, change: Tensor, strength: Tensor) -> Tensor:
    """Each image with the change of its number (N,); a strength (N,) is a draw from 0 to 1."""
    result = images.clone()
    for number, (apply, (least, most)) in enumerate(STRENGTHS.items()):
        chosen = (change == number).nonzero()[:, 0]
        if len(chosen):
            values = least + (most - least) * strength[chosen].double().view(-1, 1, 1, 1)
            result[chosen] = apply(images[chosen], values)
    return result


def change_all(images: Tensor, change: Tensor, strength: Tensor) -> Tensor:
    """`change_chosen` with every change made to every image, which waits for no device."""
    result, draws = images, strength.double().view(-1, 1, 1, 1)
    for number, (apply, (least, most)) in enumerate(STRENGTHS.items()):
        is_chosen = (change == number).view(-1, 1, 1, 1)
        result = torch.where(is_chosen, apply(images, least + (most - least) * draws), result)
    return result


def _blended(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor x (image - other), cut off below the whole number, as Pillow does."""
    return (other + factor.float() * (images - other.float())).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with black."""
    return _blended(images, torch.zeros_like(images), factor)


def colour(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with grey."""
    return _blended(images, _grey(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with the mean grey."""
    mean = (_grey(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blended(images, mean, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blended with a smoothed image."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    inner = conv2d(images.float(), kernel, groups=3)
    smooth[:, :, 1:-1, 1:-1] = (inner / 13 + 0.5).to(torch.uint8)
    return _blended(images, smooth, factor)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0 to 255."""
    least, most = (edge(images, (2, 3), keepdim=True).double() for edge in (torch.amin, torch.amax))
    # Not 255 / x, which torch takes for 255 times the reciprocal: Pillow's division rounds once.
    scale = torch.full_like(least, 255).div((most - least).clamp(min=1))
    stretched = (images * scale - least * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(most > least, stretched, images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """The histogram of each channel made flat."""
    flat: Tensor = F.equalize(images)
    return flat


def identity(images: Tensor, _: Tensor) -> Tensor:
    """Nothing."""
    return images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest bits kept."""
    mask = 256 - (1 << (8 - bits.long()))
    return (images.long() & mask).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverted from a value on."""
    return torch.where(images < threshold, images, 255 - images)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turned about the centre, counter-clockwise."""
    angle = -torch.deg2rad(degrees)
    cosine, sine = angle.cos(), angle.sin()
    centre = images.shape[-1] / 2
    return _mapped(
        images,
        (cosine, sine, centre - centre * (cosine + sine)),
        (-sine, cosine, centre - centre * (cosine - sine)),
    )


def shear_x(images: Tensor, share: Tensor) -> Tensor:
    """Each row shifted by its number times a share."""
    one, none = torch.ones_like(share), torch.zeros_like(share)
    return _mapped(images, (one, share, none), (none, one, none))


def shear_y(images: Tensor, share: Tensor) -> Tensor:
    """Each column shifted by its number times a share."""
    one, none = torch.ones_like(share), torch.zeros_like(share)
    return _mapped(images, (one, none, none), (share, one, none))


def translate_x(images: Tensor, share: Tensor) -> Tensor:
    """Shifted by a share of the width."""
    one, none = torch.ones_like(share), torch.zeros_like(share)
    return _mapped(images, (one, none, share * images.shape[-1]), (none, one, none))


def translate_y(images: Tensor, share: Tensor) -> Tensor:
    """Shifted by a share of the height."""
    one, none = torch.ones_like(share), torch.zeros_like(share)
    return _mapped(images, (one, none, none), (none, one, share * images.shape[-1]))


Row = tuple[Tensor, Tensor, Tensor]


def _mapped(images: Tensor, of_x: Row, of_y: Row) -> Tensor:
    """Each pixel taken from a x + b y + c, the nearest, in Pillow's fixed-point numbers."""
    places = torch.arange(images.shape[-1], device=images.device)
    sources = []
    for a, b, c in (of_x, of_y):
        start = _fixed(c + a * 0.5 + b * 0.5)
        source = start + places[None, None] * _fixed(a) + places[None, :, None] * _fixed(b)
        sources.append(source >> 16)
    return _gathered(images, sources[1], sources[0])


def _fixed(numbers: Tensor) -> Tensor:
    return (numbers * _FIXED + 0.5).floor().long().view(-1, 1, 1)


def _cut_out(images: Tensor, share: Tensor, across: Tensor, down: Tensor) -> Tensor:
    size = images.shape[-1]
    side = (_LARGEST_CUT * share * size)[:, None]
    places = torch.arange(size, device=images.device)
    inside = []
    for draw in (down, across):
        first = (draw[:, None] * size - side / 2).clamp(min=0).floor()
        inside.append((places >= first) & (places <= (first + side).floor()))
    filled = inside[0][:, None, :, None] & inside[1][:, None, None]
    # Made there: a tensor of numbers given here would wait for the device.
    fill = torch.cat([torch.full_like(images[:1, :1], value) for value in _FILL], dim=1)
    return torch.where(filled & (share > 0).view(-1, 1, 1, 1), fill, images)


# The changes, each with the range of its strength.
STRENGTHS: dict[Change, tuple[float, float]] = {
    autocontrast: (0, 1),
    brightness: (0.05, 0.95),
    colour: (0.05, 0.95),
    contrast: (0.05, 0.95),
    equalize: (0, 1),
    identity: (0, 1),
    posterize: (4, 8),
    rotate: (-30, 30),
    sharpness: (0.05, 0.95),
    shear_x: (-0.3, 0.3),
    shear_y: (-0.3, 0.3),
    solarize: (0, 256),
    translate_x: (-0.3, 0.3),
    translate_y: (-0.3, 0.3),
}
