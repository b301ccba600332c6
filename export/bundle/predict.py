"""Classify photos with a bundle: needs numpy, Pillow and onnxruntime, nothing else.

    python BUNDLE/predict.py photo.jpg [folder ...] [--csv FILE.csv | --jsonl | --json]
    compress predict BUNDLE photo.jpg [folder ...]

Photos may have any size and mode: they are turned upright as their EXIF orientation says, made RGB,
resized and cropped as preprocess.json says. `--strict` refuses instead what is not as the network
takes it. Threads decode while the network runs, and only as many photos as the next batch are held
in memory, so that there may be any number.

A bundle without classes embeds them instead; --embed FILE.npz writes `files` (N,) and `embeddings`
(N, D), FILE.csv a line for each image. One that gives a class to every pixel takes images of any
size and prints the share of each class; --masks DIR writes PNGs with a palette, whose values are
the classes (lines of labels.txt, from 0), --overlays DIR the images under their classes' colours.

It is one file: every bundle holds a copy, and where manifest.json lies beside it, that folder is
the bundle; elsewhere the first argument is. Before anything else it compares every file of the
bundle with the manifest. What cannot be classified is said in one sentence on stderr, and the rest
is still done. Exit code: 0 all went well, 1 some images could not be used, 2 nothing was done
(a mistake in the command, a damaged bundle), 130 interrupted, 141 the reader of the output left.

Pixels are prepared as preprocess.json says, as in training (which reads files as they are stored,
whatever their EXIF orientation). Without a resize they are the same bit for bit. Pillow's resize
(bilinear, antialiased) differs from torchvision's on tensors by at most one grey level: measured in
0.05 % of the values of two photographs where torch has AVX2 (the same fixed-point algorithm with
other rounding), in 10 % of them where it has not (it computes in float).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    # Of each image a `file`, and what the network says of it or an `error`.
    Records = Generator[dict[str, Any], None, None]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
# Pillow goes by content, not by name, and starts other programs for some (Ghostscript for EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_NEEDED = ("student.onnx", "preprocess.json")
_LABELS = "labels.txt"
_KNOWN = {
    "dtype": ("float32", "uint8"),
    "layout": ("NCHW", "NHWC"),
    "color": ("RGB",),
    "interpolation": ("bilinear",),
}
_SIDES = {"image_size": (1, 1 << 14), "resize": (0, 1 << 14)}  # smallest and largest, in pixels
_LARGEST = 1 << 27  # pixels after resizing; a long thin image would fill the memory
_MOST_COLOURS = 256  # of a PNG's palette
_SHARE = 0.6  # of a class's colour in an overlay
_BACKGROUND = "background"  # as class 0 it has no colour in overlays
_ORIENTATION = 0x0112  # EXIF's tag; its values -> names of Pillow's transpositions
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_PROVIDER = "ExecutionProvider"  # ends the names of ONNX Runtime's
_STEP = 16  # images between two lines of progress, at most
_MOST_WORKERS = 8  # more threads than that wait for each other


class Refusal(Exception):
    """What was given cannot be used: one sentence for the user."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files match its manifest; `preprocess` is the content of its file.

    `labels` are None where it gives embeddings.
    """

    folder: Path
    manifest: dict[str, Any]
    labels: list[str] | None
    preprocess: dict[str, Any]

    @property
    def segments(self) -> bool:
        """Whether it gives every pixel a class, of images of any size."""
        return self.preprocess.get("any_size") is True


def load_bundle(folder: Path) -> Bundle:
    """Check every file of a bundle and read what describes it.

    Raises:
        Refusal: a file is missing, changed, truncated or not listed, or a description is damaged.
    """
    manifest = _read_mapping(folder / "manifest.json")
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise Refusal(f"{folder / 'manifest.json'} is damaged; copy the bundle again")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name in sorted({*present, *listed, *_NEEDED} - {"manifest.json"}):
        # Hidden files and caches that are not listed come from file managers and interpreters.
        if name in listed or not any(part.startswith((".", "__")) for part in name.split("/")):
            _check_file(folder / name, name in present, listed.get(name))
    labels = None
    if _LABELS in listed:
        text = (folder / _LABELS).read_text(encoding="utf-8", errors="surrogateescape")
        labels = text.removesuffix("\n").split("\n")
    preprocess = _read_mapping(folder / "preprocess.json")
    for key, known in _KNOWN.items():
        if preprocess.get(key) not in known:
            raise Refusal(f"{folder / 'preprocess.json'} is damaged: {key} is none of {known}")
    for key, (least, most) in _SIDES.items():
        side = preprocess.get(key)
        if type(side) is not int or not least <= side <= most:
            limits = f"{key} is no whole number from {least} to {most}"
            raise Refusal(f"{folder / 'preprocess.json'} is damaged: {limits}")
    return Bundle(folder, manifest, labels, preprocess)


def _check_file(path: Path, present: bool, entry: Any) -> None:
    if entry is None:
        raise Refusal(f"{path} is not listed in the bundle's manifest.json; move it elsewhere")
    digest = hashlib.sha256()
    try:
        problem = "" if present and path.is_file() else "is missing"
        if not problem and (size := path.stat().st_size) != entry["bytes"]:
            problem = f"has {size} bytes instead of {entry['bytes']}"
        if not problem:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            problem = "" if digest.hexdigest() == entry["sha256"] else "was changed (SHA-256)"
    except OSError as error:
        problem = f"cannot be read ({_line(error)})"
    except (KeyError, TypeError):
        problem = "is not described in manifest.json"
    if problem:
        raise Refusal(f"{path} {problem}; copy the bundle again")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait
            raise OSError("it is not a file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(f"{path.parent} is not a bundle: it has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"{path} is damaged ({_line(error)}); copy the bundle again") from None
    if not isinstance(content, dict) or content.get("format") != 1:
        raise Refusal(f"{path} is damaged or of another version: it does not say format 1")
    return content


class Predictor:
    """A bundle's network in ONNX Runtime, and the preparation of its images.

    Args:
        int8: use student.int8.onnx.
        threads: of one operator; None leaves the choice to ONNX Runtime.
        strict: refuse every image that is not RGB and of the right size, or is stored turned.
        provider: ONNX Runtime's execution provider by its short name: cpu, cuda, coreml, ...

    Raises:
        Refusal: a package, the provider or the int8 file is missing, or ONNX Runtime cannot run
            the file.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        int8: bool = False,
        threads: int | None = None,
        strict: bool = False,
        provider: str = "cpu",
    ) -> None:
        name = "student.int8.onnx" if int8 else "student.onnx"
        if name not in bundle.manifest["files"]:
            raise Refusal(f"{bundle.folder} has no {name}; leave out --int8")
        try:
            import numpy
            import onnxruntime
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise Refusal(
                f"{_line(error)}; install what is needed: pip install numpy pillow onnxruntime"
            ) from None
        self.bundle = bundle
        self.strict = strict
        providers = _providers(onnxruntime.get_available_providers(), provider)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what matters is raised
        # Threads that spin while they wait would take the cores of those that read photos.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        path = bundle.folder / name
        try:
            self.size: int = bundle.preprocess["image_size"]
            self.session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=providers
            )
            self.output: str = self.session.get_outputs()[0].name
            found = self.logits([numpy.zeros((self.size, self.size, 3), numpy.uint8)]).shape
        except Exception as error:  # its exceptions have no common base that is public
            raise Refusal(f"onnxruntime cannot run {path}: {_line(error)}") from None
        # Where a provider cannot start, ONNX Runtime takes the next one and says nothing.
        if self.session.get_providers()[0] != providers[0]:
            raise Refusal(
                f"onnxruntime has the execution provider '{provider}' and could not start it here "
                "(a driver or library that it needs is missing); leave out --provider"
            )
        if bundle.labels is None and (self.output != "embedding" or len(found) != 2):
            raise Refusal(
                f"{path} gives classes, whose {_LABELS} is missing; copy the bundle again"
            )
        pixels = (self.size, self.size) if bundle.segments else ()
        if bundle.labels is not None and found != (1, len(bundle.labels), *pixels):
            raise Refusal(f"{path} gives {found} for one image and {len(bundle.labels)} labels")

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """An image file as the square (S, S, 3) that the network sees, or as large as it is.

        It is turned upright as its EXIF orientation says; of 16 bits per channel the upper 8 are
        taken. Pillow may warn of oddities of the file.

        Raises:
            Refusal: it is broken, or, where `strict`, not of the bundle's size and mode.
        """
        import numpy
        from PIL import Image, UnidentifiedImageError

        if not os.path.isfile(path):  # opening a pipe would wait
            raise Refusal(f"{path} is not there or not a file")
        try:
            with Image.open(path, formats=_FORMATS) as image:
                image.load()  # a PNG's orientation may come after its pixels
                turn = _turn(image)
                self._check(path, image, turn)
                rgb = _to_rgb(image)
                if turn is not None:
                    rgb = rgb.transpose(Image.Transpose[turn])
                return numpy.asarray(rgb if self.bundle.segments else self._cut(rgb))
        except UnidentifiedImageError:
            raise Refusal(
                f"{path} is not an image of one of the formats {', '.join(_FORMATS)}; convert it"
            ) from None
        except Refusal:
            raise
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise Refusal(f"{path} is not a readable image ({_line(error)})") from None

    def _check(self, path: str | Path, image: Image.Image, turn: str | None) -> None:
        is_deep = image.mode.startswith(("I", "F"))
        if is_deep and (self.strict or not _is_of_16_bits(image)):
            raise Refusal(
                f"{path} has more than 8 bits per channel (mode {image.mode}), which would be "
                "clipped; convert it to 8 bits first"
            )
        if not self.strict:
            return
        side = self.bundle.preprocess["resize"]
        fits = self.bundle.segments or side or image.size == (self.size, self.size)
        if turn is not None:
            raise Refusal(
                f"{path} is stored turned (EXIF orientation); without --strict it is set upright"
            )
        if not (fits and image.mode == "RGB"):
            any_size = self.bundle.segments or side
            wanted = "of any size" if any_size else f"of {self.size} x {self.size} pixels"
            made = "converts it to RGB"
            if not self.bundle.segments:
                made += (
                    f" and resizes it (shorter side to {side or self.size}, centre crop of "
                    f"{self.size})"
                )
            raise Refusal(
                f"{path} has mode {image.mode} and {image.width} x {image.height} pixels, the "
                f"network takes RGB {wanted}; leaving out --strict {made}"
            )

    def _cut(self, image: Image.Image) -> Image.Image:
        """Resize and centre crop with torchvision's rounding; zeros where the image ends."""
        from PIL import Image

        width, height = image.size
        side: int = self.bundle.preprocess["resize"] or self.size
        short = min(width, height)
        if short != side:
            width, height = int(side * width / short), int(side * height / short)
            if width * height > _LARGEST:
                raise ValueError(f"{width} x {height} pixels after resizing are too many")
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (
            round((n - self.size) / 2) if n >= self.size else -((self.size - n) // 2)
            for n in (width, height)
        )
        return image.crop((left, top, left + self.size, top + self.size))

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """The network's input of N squares (S, S, 3): layout, type and values as described.

        A bundle that segments takes N images (H, W, 3) of one size.
        """
        import numpy

        p = self.bundle.preprocess
        shape = images[0].shape if len(images) else ()
        own = shape[:2] if self.bundle.segments else (self.size, self.size)
        if not len(images) or any(i.shape != (*own, 3) or i.dtype != numpy.uint8 for i in images):
            wanted = f"({self.size}, {self.size}, 3)"
            wanted = "(height, width, 3), all of one size" if self.bundle.segments else wanted
            given = ", ".join(dict.fromkeys(f"{i.dtype} {i.shape}" for i in images)) or "none"
            raise ValueError(f"expected uint8 images {wanted}, as `read` gives them, not {given}")
        batch: NDArray[Any] = numpy.stack(images)
        if p["dtype"] == "float32" and not p["normalise_in_graph"]:
            divisor, mean, std = (numpy.float32(p[k]) for k in ("divide_by", "mean", "std"))
            batch = (batch.astype(numpy.float32) / divisor - mean) / std
        if p["layout"] == "NCHW":
            batch = batch.transpose(0, 3, 1, 2)
        return numpy.ascontiguousarray(batch, dtype=p["dtype"])

    def logits(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Logits (N, K), or embeddings (N, D), of N squares (S, S, 3), as `read` gives them.

        Logits (N, K, H, W) of N images of one size where the bundle segments.
        """
        inputs = {self.bundle.preprocess["input"]: self.prepare(images)}
        found: NDArray[np.float32] = self.session.run([self.output], inputs)[0]
        return found

    def describe(self, row: NDArray[np.float32], top: int) -> dict[str, Any]:
        """An image's `predictions` of its logits, see `best`, or its `embedding` as numbers."""
        import numpy

        if self.bundle.labels is not None:
            return {"predictions": self.best(row, top)}
        if not numpy.isfinite(row).all():
            raise Refusal("its embedding is not finite")
        return {"embedding": row.tolist()}

    def mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The class (H, W) of each pixel of an image (H, W, 3)."""
        import numpy

        logits = self.logits([pixels])[0]
        if not numpy.isfinite(logits).all():
            raise Refusal("the network's logits are not finite")
        classes: NDArray[np.uint8] = logits.argmax(0).astype(numpy.uint8)
        return classes

    def shares(self, mask: NDArray[np.uint8], top: int) -> list[dict[str, Any]]:
        """The `top` classes with most pixels of a mask (H, W), the largest first."""
        import numpy

        labels = self.bundle.labels or []
        counts = numpy.bincount(mask.ravel(), minlength=len(labels))
        order = [int(i) for i in numpy.argsort(-counts, kind="stable")[:top] if counts[i]]
        return [
            {"class": labels[i], "index": i, "share": float(counts[i] / mask.size)} for i in order
        ]

    def best(self, logits: NDArray[np.float32], top: int) -> list[dict[str, Any]]:
        """The `top` most probable classes of one image's logits (K,), best first."""
        import numpy

        labels = self.bundle.labels or []
        if not numpy.isfinite(logits).all():
            raise Refusal("the network's logits are not finite")
        powers = numpy.exp(logits.astype(numpy.float64) - logits.max())  # no overflow
        shares = powers / powers.sum()
        return [
            {"class": labels[i], "index": int(i), "probability": float(shares[i])}
            for i in numpy.argsort(-shares, kind="stable")[:top]
        ]


def _providers(available: Sequence[str], name: str) -> list[str]:
    """The provider of that short name, and the CPU's for what it cannot compute."""
    short = {full.removesuffix(_PROVIDER).lower(): full for full in available}
    if name.lower() not in short:
        raise Refusal(
            f"onnxruntime has no execution provider '{name}' here; it has {', '.join(short)} "
            "(others come with other packages of it, such as onnxruntime-gpu for cuda)"
        )
    return list(dict.fromkeys([short[name.lower()], f"CPU{_PROVIDER}"]))


def _turn(image: Image.Image) -> str | None:
    """The transposition that sets a loaded image upright, as its EXIF orientation says."""
    from PIL import Image

    try:
        # Not PNG's own `getexif`, which decodes the image to look behind its pixels.
        return _TURNS.get(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises all kinds, and says nothing of the pixels
        return None


def _is_of_16_bits(image: Image.Image) -> bool:
    """Whether numbers are known to be 0 to 65535; older Pillows have PNGs of that as mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits; of 16 the upper 8, as Pillow takes them of RGB files."""
    import numpy
    from PIL import Image

    if image.mode.startswith("I"):
        grey = numpy.asarray(image).astype(numpy.int64).clip(0, 65535) >> 8
        image = Image.fromarray(grey.astype(numpy.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def find_images(inputs: Sequence[str]) -> list[dict[str, Any]]:
    """`{"file"}` for each image, folders searched recursively, or `{"file", "error"}`."""
    found: list[dict[str, Any]] = []
    for given in inputs:
        if not os.path.isdir(given):
            found.append({"file": given})
            continue
        inside = sorted(p for p in Path(given).rglob("*") if p.suffix.lower() in _SUFFIXES)
        files = [{"file": str(p)} for p in inside if not p.is_dir()]
        error = f"{given} holds no images ({', '.join(sorted(_SUFFIXES))})"
        found += files or [{"file": given, "error": error}]
    return found


def classify(
    predictor: Predictor,
    found: Sequence[dict[str, Any]],
    *,
    batch: int,
    top: int,
    workers: int = 1,
) -> Records:
    """The records of `find_images` in their order, with `predictions`, `embedding` or `error`."""
    images = _read_ahead(predictor, found, workers, max(batch, 2 * workers))
    while read := list(islice(images, batch)):
        records = [record for record, _ in read]
        good = [record for record, image in read if image is not None]
        pixels = [image for _, image in read if image is not None]
        try:
            rows = list(predictor.logits(pixels)) if good else []
        except Exception as error:  # too large a batch for the memory, for one
            rows = []
            for record in good:
                record["error"] = f"{record['file']} was not classified: {_line(error)}"
        for record, row in zip(good, rows, strict=False):
            try:
                record |= predictor.describe(row, top)
            except Refusal as refusal:
                record["error"] = f"{record['file']} was not classified: {refusal}"
        yield from records


def _read_ahead(
    predictor: Predictor, found: Sequence[dict[str, Any]], workers: int, most: int
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8] | None]]:
    """Each record with its image, or with an `error`; threads read at most `most` ahead."""

    def read(given: dict[str, Any]) -> tuple[dict[str, Any], NDArray[np.uint8] | None]:
        record = dict(given)
        try:
            return record, None if "error" in record else predictor.read(record["file"])
        except Refusal as refusal:
            return {**record, "error": str(refusal)}, None

    rest = iter(found)
    with ThreadPoolExecutor(workers) as pool:
        reading: deque[Future[tuple[dict[str, Any], NDArray[np.uint8] | None]]]
        reading = deque(pool.submit(read, given) for given in islice(rest, most))
        try:
            while reading:
                done = reading.popleft().result()
                reading.extend(pool.submit(read, given) for given in islice(rest, 1))
                yield done
        finally:
            pool.shutdown(cancel_futures=True)


class Pictures:
    """Folders for masks and overlays, in which every image has a name of its own.

    Args:
        inputs: the image files, none of which is written over.

    Raises:
        Refusal: a folder cannot be made, or the classes are more than a palette has colours.
    """

    def __init__(
        self,
        labels: Sequence[str],
        masks: Path | None,
        overlays: Path | None,
        inputs: Sequence[str],
    ) -> None:
        if len(labels) > _MOST_COLOURS:
            raise Refusal(f"{len(labels)} classes are more than a PNG's {_MOST_COLOURS} colours")
        self.folders = {"mask": masks, "overlay": overlays}
        self.colours = palette(len(labels))
        self.has_background = labels[0] == _BACKGROUND
        self.inputs = {os.path.realpath(path) for path in inputs}
        self.names: set[str] = set()
        for folder in filter(None, self.folders.values()):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Refusal(f"{folder} cannot be made ({_line(error)})") from None

    def write(
        self, file: str, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]
    ) -> dict[str, str]:
        """Write the mask (H, W) of an image (H, W, 3), and the overlay; returns their paths."""
        from PIL import Image

        picture = Image.fromarray(mask)
        picture.putpalette(self.colours.ravel().tolist())
        made = {"mask": picture, "overlay": Image.fromarray(self._overlay(pixels, mask))}
        name = self._name(Path(file).stem)
        written = {}
        for key, folder in self.folders.items():
            if folder is not None:
                path = folder / f"{name}.png"
                if os.path.realpath(path) in self.inputs:
                    raise Refusal(f"{path} is one of the images; give another folder")
                partial = path.with_name(f"{path.name}.partial")
                try:
                    made[key].save(partial, "PNG")
                    partial.replace(path)
                except OSError as error:
                    raise Refusal(f"{path} cannot be written ({_line(error)})") from None
                written[key] = str(path)
        return written

    def _name(self, stem: str) -> str:
        """The stem, with a number where another image has it too."""
        name, number = stem, 1
        while name in self.names:
            number += 1
            name = f"{stem}-{number}"
        self.names.add(name)
        return name

    def _overlay(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import numpy

        mixed = (1 - _SHARE) * pixels + _SHARE * self.colours[mask]
        bare = (mask == 0)[..., None] & self.has_background
        overlay: NDArray[np.uint8] = numpy.where(bare, pixels, mixed.round()).astype(numpy.uint8)
        return overlay


def palette(count: int) -> NDArray[np.uint8]:
    """(count, 3) uint8: hues spread by the golden ratio, dark and light in turn."""
    import numpy
    from PIL import Image

    index = numpy.arange(count)
    hues, values = (index * 0.61803) % 1 * 255, numpy.array([255, 200, 140])[index % 3]
    strip = numpy.stack([hues, numpy.full(count, 210), values], 1)[None].astype(numpy.uint8)
    colours: NDArray[np.uint8] = numpy.array(Image.fromarray(strip, "HSV").convert("RGB"))[0]
    return colours


def segment(
    predictor: Predictor,
    found: Sequence[dict[str, Any]],
    pictures: Pictures,
    *,
    top: int,
    workers: int = 1,
) -> Records:
    """The records of `find_images` in their order, with `shares` and pictures, or `error`."""
    for record, pixels in _read_ahead(predictor, found, workers, workers):
        try:
            if pixels is not None:
                mask = predictor.mask(pixels)
                record |= {
                    "shares": predictor.shares(mask, top),
                    **pictures.write(record["file"], pixels, mask),
                }
        except Refusal as refusal:
            record["error"] = f"{record['file']} was not segmented: {refusal}"
        except Exception as error:  # too large an image for the memory, for one
            record["error"] = f"{record['file']} was not segmented: {_line(error)}"
        yield record


def write_embeddings(
    path: Path, files: Sequence[str], embeddings: Sequence[NDArray[np.float32]]
) -> None:
    """Write the embeddings (D,) of files as the ending of the name says."""
    import numpy

    partial = path.with_name(f"{path.name}.partial")
    if path.suffix == ".npz":
        rows = numpy.array(embeddings, numpy.float32)
        with partial.open("wb") as binary:
            numpy.savez(binary, files=numpy.array(files, dtype=str), embeddings=rows)
    else:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(["file", *range(len(embeddings[0]) if embeddings else 0)])
            # Nine digits are enough to have each float32 again.
            writer.writerows(
                [file, *(f"{x:.9g}" for x in row.tolist())]
                for file, row in zip(files, embeddings, strict=True)
            )
    partial.replace(path)


class _Sink(Protocol):
    """Where records go; `prints` is true of those that go to stdout."""

    prints: bool

    def add(self, record: dict[str, Any]) -> None: ...

    def close(self) -> str | None:
        """Finish; a line about it, where there is something to say."""
        ...


class _Lines:
    """A line of text for each image, on stdout."""

    prints = True

    def add(self, record: dict[str, Any]) -> None:
        if "error" not in record:
            rows, value = _ranked(record)
            shares = (f"{row['class']} {100 * row[value]:.2f} %" for row in rows)
            _write(f"{record['file']}: {', '.join(shares)}", sys.stdout)

    def close(self) -> None:
        pass


class _Json:
    """Records as JSON on stdout: one list, or `lines` of one each."""

    prints = True

    def __init__(self, *, lines: bool) -> None:
        self.lines, self.count = lines, 0

    def add(self, record: dict[str, Any]) -> None:
        start = "" if self.lines else ", " if self.count else "[ "
        print(f"{start}{json.dumps(record)}")
        self.count += 1

    def close(self) -> None:
        if not self.lines:
            print("]" if self.count else "[]")


class _Csv:
    """A table with a line for each image, those with an error too; whole once it is closed.

    Until then its name ends in .partial, which an interrupt leaves.

    Raises:
        Refusal: it cannot be written, or a file of that name is no such table.
    """

    prints = False

    def __init__(self, path: Path, bundle: Bundle, options: argparse.Namespace) -> None:
        value = "share" if bundle.segments else "probability"
        ranks = range(1, min(options.top, len(bundle.labels or [])) + 1)
        self.columns = ["file"]
        for rank in ranks:
            self.columns += [name if rank == 1 else f"{name}_{rank}" for name in ("class", value)]
        self.columns += [key for key in ("mask", "overlay") if getattr(options, f"{key}s")]
        self.columns.append("error")
        self.path, self.count, self.failed = path, 0, 0
        self.partial = path.with_name(f"{path.name}.partial")
        try:
            if path.exists():
                with path.open(encoding="utf-8", errors="replace") as before:
                    if not before.readline(20).startswith(f"file,class,{value}"[:20]):
                        raise Refusal(f"{path} is there and no table of this command; rename it")
            self.file = self.partial.open(
                "w", encoding="utf-8", errors="surrogateescape", newline=""
            )
        except OSError as error:
            raise Refusal(f"{path} cannot be written ({_line(error)})") from None
        self.writer = csv.DictWriter(self.file, self.columns, restval="", extrasaction="ignore")
        self.writer.writeheader()

    def add(self, record: dict[str, Any]) -> None:
        row = dict(record)
        if "error" not in record:
            rows, value = _ranked(record)
            for rank, one in enumerate(rows, start=1):
                end = "" if rank == 1 else f"_{rank}"
                row |= {f"class{end}": one["class"], f"{value}{end}": f"{one[value]:.6g}"}
        self.writer.writerow(row)
        self.count += 1
        self.failed += "error" in record

    def close(self) -> str:
        self.file.close()
        self.partial.replace(self.path)
        failed = f", {self.failed} of them with an error" if self.failed else ""
        return f"{self.path}: {self.count} images{failed}"


class _Embeddings:
    """Embeddings as `write_embeddings` writes them, all at the end."""

    prints = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[str] = []
        self.rows: list[NDArray[np.float32]] = []

    def add(self, record: dict[str, Any]) -> None:
        import numpy

        if "error" not in record:
            self.files.append(record["file"])
            self.rows.append(numpy.array(record["embedding"], numpy.float32))

    def close(self) -> str:
        write_embeddings(self.path, self.files, self.rows)
        return f"{self.path}: {len(self.files)} embeddings"


def _ranked(record: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The classes of a record, the best first, and the key of their number."""
    if "shares" in record:
        return record["shares"], "share"
    return record["predictions"], "probability"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _write(text: str, stream: TextIO) -> None:
    # Names of files and classes may hold line breaks, control codes and undecodable bytes.
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    encoding = stream.encoding or "utf-8"
    stream.write(plain.encode(encoding, "backslashreplace").decode(encoding) + "\n")


class _Progress:
    """A line on a terminal that is gone before anything else is written."""

    def __init__(self, total: int) -> None:
        self.total = total if sys.stderr.isatty() else 0
        self.start = time.monotonic()
        self.is_shown = False

    def show(self, done: int) -> None:
        if done < self.total:
            self.is_shown = True
            left = ""
            if done:
                seconds = (time.monotonic() - self.start) / done * (self.total - done)
                left = f", about {int(seconds // 60)} min {int(seconds % 60):2} s left"
            print(f"\r{done} of {self.total} images{left}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.is_shown:
            self.is_shown = False
            print("\r" + " " * 60, end="\r", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _table(text: str) -> Path:
    if Path(text).suffix not in (".npz", ".csv"):
        raise argparse.ArgumentTypeError(f"'{text}' is no .npz or .csv")
    return Path(text)


def _csv(text: str) -> Path:
    if Path(text).suffix != ".csv":
        raise argparse.ArgumentTypeError(f"'{text}' is no .csv")
    return Path(text)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Classify photos with a bundle: of any size and mode, turned upright, resized "
        "and cropped as the network takes them.",
        epilog="Where manifest.json lies beside this script, that folder is the bundle and all "
        "arguments are images; elsewhere the first argument is the folder of the bundle, or of the "
        "run that made it. Exit code 1: some images could not be used, and were named.",
    )
    parser.add_argument("inputs", nargs="*", help="image files, and folders to search for them")
    parser.add_argument("--int8", action="store_true", help="use student.int8.onnx")
    parser.add_argument("--top", type=_positive, default=5, help="classes to name (default: 5)")
    parser.add_argument(
        "--csv", type=_csv, metavar="FILE", help="write a table with a line for each image"
    )
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print one JSON list")
    printed.add_argument(
        "--jsonl", action="store_true", help="print JSON lines, one for each image, as they come"
    )
    parser.add_argument(
        "--embed", type=_table, metavar="FILE", help="write embeddings to FILE.npz or FILE.csv"
    )
    parser.add_argument("--masks", type=Path, metavar="DIR", help="write masks, where it segments")
    parser.add_argument("--overlays", type=Path, metavar="DIR", help="and images under them")
    parser.add_argument("--batch", type=_positive, default=64, help="images at a time (default 64)")
    parser.add_argument("--threads", type=_positive, help="default: as onnxruntime chooses")
    parser.add_argument(
        "--workers",
        type=_positive,
        default=min(_cores(), _MOST_WORKERS),
        help="threads that read photos (default: %(default)s)",
    )
    parser.add_argument(
        "--provider",
        default="cpu",
        metavar="NAME",
        help="onnxruntime's execution provider: cpu (default), cuda, coreml, ...",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse images of another mode or size instead of making them fit",
    )
    # Once it asked for what is usual now.
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(arguments: Sequence[str] | None, prog: str | None) -> int:
    options = parser(prog).parse_intermixed_args(arguments)
    inputs: list[str] = options.inputs
    folder = Path(__file__).parent
    if not (folder / "manifest.json").is_file():
        if not inputs:
            raise Refusal("give a bundle's folder and image files or folders; see --help")
        folder = Path(inputs.pop(0))
        of_run = folder / "export" / "bundle"
        if not (folder / "manifest.json").exists() and (of_run / "manifest.json").is_file():
            folder = of_run
    if not inputs:
        raise Refusal("give image files or folders of them; see --help")
    if options.strict and options.convert:
        raise Refusal("--strict refuses what --convert makes fit; leave one of them out")
    predictor = Predictor(
        load_bundle(folder),
        int8=options.int8,
        threads=options.threads,
        strict=options.strict,
        provider=options.provider,
    )
    _check_outputs(predictor.bundle, options)
    found = find_images(inputs)
    if predictor.bundle.segments:
        files = [record["file"] for record in found]
        labels = predictor.bundle.labels or []
        pictures = Pictures(labels, options.masks, options.overlays, files)
        records = segment(predictor, found, pictures, top=options.top, workers=options.workers)
    else:
        records = classify(
            predictor, found, batch=options.batch, top=options.top, workers=options.workers
        )
    sinks = _sinks(predictor.bundle, options)
    failed = _drain(records, sinks, _Progress(len(found)), min(options.batch, _STEP))
    stream = sys.stderr if options.json or options.jsonl else sys.stdout
    for line in filter(None, [sink.close() for sink in sinks]):
        _write(line, stream)
    sys.stdout.flush()
    return 1 if failed else 0


def _check_outputs(bundle: Bundle, options: argparse.Namespace) -> None:
    """Refuse to be asked for what the bundle does not give."""
    embeds, prints_json = bundle.labels is None, options.json or options.jsonl
    if options.embed is not None and not embeds:
        raise Refusal(f"{bundle.folder} gives classes and no embeddings; leave out --embed")
    if embeds and options.csv is not None:
        raise Refusal(f"{bundle.folder} gives embeddings; --embed FILE.csv writes them")
    if embeds and options.embed is None and not prints_json:
        raise Refusal(f"{bundle.folder} gives embeddings; --embed FILE.npz (or .csv) writes them")
    if not bundle.segments and (options.masks or options.overlays):
        raise Refusal(f"{bundle.folder} gives no class to pixels; leave out --masks and --overlays")


def _sinks(bundle: Bundle, options: argparse.Namespace) -> list[_Sink]:
    sinks: list[_Sink] = []
    if options.json or options.jsonl:
        sinks.append(_Json(lines=options.jsonl))
    if options.csv is not None:
        sinks.append(_Csv(options.csv, bundle, options))
    if options.embed is not None:
        sinks.append(_Embeddings(options.embed))
    return sinks or [_Lines()]


def _drain(records: Records, sinks: Sequence[_Sink], progress: _Progress, step: int) -> int:
    """Hand every record to the sinks as it comes, and errors to stderr; returns their number."""
    failed = 0
    progress.show(0)
    with closing(records):
        for n, record in enumerate(records, start=1):
            if record.get("error") or any(sink.prints for sink in sinks):
                progress.clear()
            if error := record.get("error"):
                failed += 1
                _write(f"error: {error}", sys.stderr)
            for sink in sinks:
                sink.add(record)
            if n % step == 0:
                progress.show(n)
    progress.clear()
    return failed


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command, called `prog`; returns the exit code, see the top of this file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow remarks on oddities of files
            return _run(arguments, prog)
    except Refusal as refusal:
        _write(f"error: {refusal}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # stdout cannot be written
        # What is still buffered would raise once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        _write(f"error: {error}", sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
