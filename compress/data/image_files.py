"""Reading image files as 8-bit RGB; whatever is wrong with one is a UserError naming it."""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from compress.errors import UserError, in_one_line
from compress.storage.user_files import require_file

# Pillow goes by content, not by name, and starts other programs for some (Ghostscript for EPS).
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_LONGEST = 256  # in shorter sides; a longer strip fills the memory where its shorter side is scaled
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ONTO_SIDE = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]
SUFFIXES = (".jpg", ".png", ".jpeg", ".JPEG", ".JPG")


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open the image of a file; its header alone is read so far.

    Raises:
        UserError: there is no such file, it is of none of `FORMATS`, too large or too long, or
            reading it in the block fails.
    """
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities of files
            with Image.open(path, formats=FORMATS) as image:
                _refuse_strip(path, image)
                yield image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is not a readable image of one of the formats {', '.join(FORMATS)}; convert "
            "or remove it."
        ) from None
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UserError(
            f"{path} is not a readable image ({in_one_line(error)}); mend or remove it."
        ) from None


def image_named(stem: Path) -> Path | None:
    """The image of that name without its suffix."""
    paths = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    return next((path for path in paths if os.path.isfile(path)), None)


def read_rgb(path: Path, *, upright: bool) -> Tensor:
    """(3, H, W) uint8.

    Args:
        upright: turned as its EXIF orientation says, as detectron2 does; torchvision's image
            folders are not.

    Raises:
        UserError: it is no readable image, or has more than 8 bits per channel.
    """
    with open_image(path) as image:
        _refuse_deep(path, image)
        image.load()
        turn = _turn(image) if upright else None
        upright_image = image if turn is None else image.transpose(turn)
        return torch.from_numpy(np.array(upright_image.convert("RGB"))).permute(2, 0, 1)


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image that is turned upright, as its header tells.

    A PNG's orientation may come after its pixels, and Pillow gives a TIFF's size turned already:
    only `read_rgb` is sure.

    Raises:
        UserError: see `read_rgb`.
    """
    with open_image(path) as image:
        _refuse_deep(path, image)
        width, height = image.size
        return (width, height) if _turn(image) in _ONTO_SIDE else (height, width)


def check_whole(paths: Iterable[Path]) -> None:
    """Decode files once, JPEGs at an eighth of their size: one that ends early has a whole header.

    That takes a quarter of the time of reading baseline JPEGs; there is no cheaper check for other
    files.

    Raises:
        UserError: one cannot be read.
    """
    for path in paths:
        with open_image(path) as image:
            image.draft(None, (1, 1))
            image.load()


def _refuse_strip(path: Path, image: Image.Image) -> None:
    if max(image.size) > _LONGEST * min(image.size):
        raise UserError(
            f"{path} has {image.width} x {image.height} pixels, one side more than {_LONGEST} "
            "times the other; cut or remove it."
        )


def _refuse_deep(path: Path, image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"{path} has more than 8 bits per channel (mode {image.mode}), which would be clipped; "
            "convert it to 8 bits first."
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that sets an image upright, by what has been read of it."""
    try:
        # Not PNG's own `getexif`, which decodes the image to look behind its pixels.
        return _TURNS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises all kinds, and says nothing of the pixels
        return None
