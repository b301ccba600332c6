"""Image files that are wrong in some way, drawn from a generator."""

import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n%%EndComments\nshowpage\n%%EOF\n"
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_HEADS = (b"%PDF-1.4\n", b"\xd7\xcd\xc6\x9a", b"\x8aMNG", b"<svg/>", b"PK\x03\x04", b"GIF89a")


def png(width: int, height: int) -> bytes:
    """A grey PNG whose pixels, all zero, may be many."""
    content = b"\x89PNG\r\n\x1a\n"
    rows = zlib.compress(bytes((width + 1) * height)) if width * height < 1 << 22 else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, chunk in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        crc = zlib.crc32(kind + chunk)
        content += struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", crc)
    return content


def _whole(path: Path, draw: random.Random) -> None:
    pixels = np.frombuffer(draw.randbytes(12 * 8 * 3), np.uint8).reshape(8, 12, 3)
    Image.fromarray(pixels).save(path, draw.choice(_FORMATS))


def harmed(content: bytes, draw: random.Random) -> bytes:
    """Bytes that were cut, flipped, overwritten or doubled."""
    kind, place = draw.randrange(5), draw.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + draw.randbytes(8) + content[place + 8 :]
    if kind == 2:
        return content[:place] + b"\xff" * 4 + content[place + 4 :]
    if kind == 3:
        return content[:place] + content[place // 2 :]
    return bytes(byte ^ (1 << draw.randrange(8)) * (draw.random() < 0.02) for byte in content)


def _damaged(path: Path, draw: random.Random) -> None:
    _whole(path, draw)
    path.write_bytes(harmed(path.read_bytes(), draw))


def _foreign(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice((EPS, b"", *(head + draw.randbytes(40) for head in _HEADS))))


def _strip(path: Path, draw: random.Random) -> None:
    path.write_bytes(
        png(*draw.choice(((1, 2_000_000), (2_000_000, 1), (1, 300), (40_000, 40_000))))
    )


def _mode(path: Path, draw: random.Random) -> None:
    mode = draw.choice(("1", "L", "LA", "P", "RGBA", "I", "I;16", "F", "CMYK"))
    Image.new(mode, (12, 8)).save(path, "TIFF")


def _pipe(path: Path, draw: random.Random) -> None:
    os.mkfifo(path)


def _folder(path: Path, draw: random.Random) -> None:
    path.mkdir()


def _link(path: Path, draw: random.Random) -> None:
    path.symlink_to(draw.choice((path, path.parent, path.with_name("gone"), "/dev/zero")))


_KINDS = (_damaged, _damaged, _damaged, _foreign, _strip, _mode, _pipe, _folder, _link)


def replace_by_hostile(path: Path, draw: random.Random) -> str:
    """Put a hostile file in the place of an image; says of which kind."""
    path.unlink()
    make: Callable[[Path, random.Random], None] = draw.choice(_KINDS)
    make(path, draw)
    return make.__name__.strip("_")
