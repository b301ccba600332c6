"""Classify image files with a bundle: needs numpy, Pillow and onnxruntime, nothing else.

    python BUNDLE/predict.py image.png [folder ...]
    python -m export.bundle.predict BUNDLE image.png [folder ...]

A bundle without classes embeds them instead; --embed FILE.npz writes `files` (N,) and `embeddings`
(N, D), FILE.csv a line for each image. One that gives a class to every pixel takes images of any
size and prints the share of each class; --masks DIR writes PNGs with a palette, whose values are
the classes (lines of labels.txt, from 0), --overlays DIR the images under their classes' colours.

It is one file: every bundle holds a copy, and where manifest.json lies beside it, that folder is
the bundle; elsewhere the first argument is. Before anything else it compares every file of the
bundle with the manifest. What cannot be classified is said in one sentence on stderr, the rest is
still done, and the exit code is 2 (0: all went well, 130: interrupted, 141: the reader left).

Pixels are prepared as preprocess.json says, as in training. Without a resize they are the same bit
for bit. Pillow's resize (bilinear, antialiased) differs from torchvision's on tensors by at most
one grey level: measured in 0.05 % of the values of two photographs where torch has AVX2 (the same
fixed-point algorithm with other rounding), in 10 % of them where it has not (it computes in float).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

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
    """A bundle's network in ONNX Runtime on the CPU, and the preparation of its images.

    Args:
        int8: use student.int8.onnx.
        threads: of one operator; None leaves the choice to ONNX Runtime.
        convert: make RGB and the right size of every image that has not.

    Raises:
        Refusal: a package or the int8 file is missing, or ONNX Runtime cannot run the file.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        int8: bool = False,
        threads: int | None = None,
        convert: bool = False,
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
        self.convert = convert
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what matters is raised
        if threads is not None:
            options.intra_op_num_threads = threads
        path = bundle.folder / name
        try:
            self.size: int = bundle.preprocess["image_size"]
            self.session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            self.output: str = self.session.get_outputs()[0].name
            found = self.logits([numpy.zeros((self.size, self.size, 3), numpy.uint8)]).shape
        except Exception as error:  # its exceptions have no common base that is public
            raise Refusal(f"onnxruntime cannot run {path}: {_line(error)}") from None
        if bundle.labels is None and (self.output != "embedding" or len(found) != 2):
            raise Refusal(
                f"{path} gives classes, whose {_LABELS} is missing; copy the bundle again"
            )
        pixels = (self.size, self.size) if bundle.segments else ()
        if bundle.labels is not None and found != (1, len(bundle.labels), *pixels):
            raise Refusal(f"{path} gives {found} for one image and {len(bundle.labels)} labels")

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """An image file as the square (S, S, 3) that the network sees, or as large as it is.

        Raises:
            Refusal: it is broken, or not of the size, mode or depth that the bundle takes.
        """
        import numpy
        from PIL import Image, UnidentifiedImageError

        if not os.path.isfile(path):  # opening a pipe would wait
            raise Refusal(f"{path} is not there or not a file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow remarks on oddities of files
                # Orientation from EXIF is not applied, as it was not in training.
                with Image.open(path, formats=_FORMATS) as image:
                    self._check(path, image)
                    rgb = image.convert("RGB")
                    return numpy.asarray(rgb if self.bundle.segments else self._cut(rgb))
        except UnidentifiedImageError:
            raise Refusal(
                f"{path} is not an image of one of the formats {', '.join(_FORMATS)}; convert it"
            ) from None
        except Refusal:
            raise
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise Refusal(f"{path} is not a readable image ({_line(error)})") from None

    def _check(self, path: str | Path, image: Image.Image) -> None:
        if image.mode.startswith(("I", "F")):
            raise Refusal(
                f"{path} has more than 8 bits per channel (mode {image.mode}), which would be "
                "clipped; convert it to 8 bits first"
            )
        side = self.bundle.preprocess["resize"]
        if self.bundle.segments:
            if not self.convert and image.mode != "RGB":
                raise Refusal(f"{path} has mode {image.mode}; --convert converts it to RGB")
            return
        fits = side or image.size == (self.size, self.size)
        if not self.convert and not (fits and image.mode == "RGB"):
            wanted = "of any size" if side else f"of {self.size} x {self.size} pixels"
            raise Refusal(
                f"{path} has mode {image.mode} and {image.width} x {image.height} pixels, the "
                f"network takes RGB {wanted}; --convert converts it to RGB and resizes it (shorter "
                f"side to {side or self.size}, centre crop of {self.size})"
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
        batch: NDArray[Any] = numpy.stack(images)
        own = batch.shape[1:3] if self.bundle.segments else (self.size, self.size)
        if batch.shape[1:] != (*own, 3) or batch.dtype != numpy.uint8:
            raise ValueError(f"expected uint8 ({self.size}, {self.size}, 3)")
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
    predictor: Predictor, found: Sequence[dict[str, Any]], *, batch: int, top: int
) -> Iterator[dict[str, Any]]:
    """The records of `find_images` in their order, with `predictions`, `embedding` or `error`."""
    for start in range(0, len(found), batch):
        records = [dict(record) for record in found[start : start + batch]]
        good: list[dict[str, Any]] = []
        pixels: list[NDArray[np.uint8]] = []
        for record in records:
            try:
                if "error" not in record:
                    pixels.append(predictor.read(record["file"]))
                    good.append(record)
            except Refusal as refusal:
                record["error"] = str(refusal)
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
    predictor: Predictor, found: Sequence[dict[str, Any]], pictures: Pictures, *, top: int
) -> Iterator[dict[str, Any]]:
    """The records of `find_images` in their order, with `shares` and pictures, or `error`."""
    for given in found:
        record = dict(given)
        try:
            if "error" not in record:
                pixels = predictor.read(record["file"])
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


def write_embeddings(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the embeddings of records that have one, as the ending of the name says."""
    import numpy

    files = [record["file"] for record in records]
    rows = numpy.array([record["embedding"] for record in records], numpy.float32)
    partial = path.with_name(f"{path.name}.partial")
    if path.suffix == ".npz":
        with partial.open("wb") as binary:
            numpy.savez(binary, files=numpy.array(files, dtype=str), embeddings=rows)
    else:
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(["file", *range(rows.shape[1] if files else 0)])
            # Nine digits are enough to have each float32 again.
            writer.writerows(
                [file, *(f"{x:.9g}" for x in row)] for file, row in zip(files, rows, strict=True)
            )
    partial.replace(path)


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

    def show(self, done: int) -> None:
        if done < self.total:
            print(f"\r{done} of {self.total} images", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.total:
            print("\r" + " " * 40, end="\r", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _table(text: str) -> Path:
    if Path(text).suffix not in (".npz", ".csv"):
        raise argparse.ArgumentTypeError(f"'{text}' is no .npz or .csv")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Classify images with a bundle.",
        epilog="Where manifest.json lies beside this script, that folder is the bundle and all "
        "arguments are images; elsewhere the first argument is the bundle's folder.",
    )
    parser.add_argument("inputs", nargs="*", help="image files, and folders to search for them")
    parser.add_argument("--int8", action="store_true", help="use student.int8.onnx")
    parser.add_argument("--top", type=_positive, default=5, help="classes to name (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--embed", type=_table, metavar="FILE", help="write embeddings to FILE.npz or FILE.csv"
    )
    parser.add_argument("--masks", type=Path, metavar="DIR", help="write masks, where it segments")
    parser.add_argument("--overlays", type=Path, metavar="DIR", help="and images under them")
    parser.add_argument("--batch", type=_positive, default=64, help="images at a time (default 64)")
    parser.add_argument("--threads", type=_positive, help="default: as onnxruntime chooses")
    parser.add_argument(
        "--convert", action="store_true", help="accept other modes and sizes, made to fit"
    )
    return parser


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_intermixed_args(arguments)
    inputs: list[str] = options.inputs
    folder = Path(__file__).parent
    if not (folder / "manifest.json").is_file():
        if not inputs:
            raise Refusal("give a bundle's folder and image files or folders; see --help")
        folder = Path(inputs.pop(0))
    if not inputs:
        raise Refusal("give image files or folders of them; see --help")
    predictor = Predictor(
        load_bundle(folder), int8=options.int8, threads=options.threads, convert=options.convert
    )
    embeds, target = predictor.bundle.labels is None, options.embed
    if target is not None and not embeds:
        raise Refusal(f"{folder} gives classes and no embeddings; leave out --embed")
    if embeds and target is None and not options.json:
        raise Refusal(f"{folder} gives embeddings; --embed FILE.npz (or .csv) writes them")
    segments = predictor.bundle.segments
    if not segments and (options.masks or options.overlays):
        raise Refusal(f"{folder} gives no class to pixels; leave out --masks and --overlays")
    found, embedded = find_images(inputs), list[dict[str, Any]]()
    progress, failed = _Progress(len(found)), False
    progress.show(0)
    if segments:
        files = [record["file"] for record in found]
        labels = predictor.bundle.labels or []
        pictures = Pictures(labels, options.masks, options.overlays, files)
        records = segment(predictor, found, pictures, top=options.top)
    else:
        records = classify(predictor, found, batch=options.batch, top=options.top)
    for n, record in enumerate(records):
        progress.clear()
        if error := record.get("error"):
            failed = True
            _write(f"error: {error}", sys.stderr)
        if options.json:
            print("[" if n == 0 else ",", json.dumps(record))
        if embeds:
            embedded += [record] if target is not None and not error else []
        elif not error and not options.json:
            rows = record["shares" if segments else "predictions"]
            key = "share" if segments else "probability"
            shares = (f"{row['class']} {100 * row[key]:.2f} %" for row in rows)
            _write(f"{record['file']}: {', '.join(shares)}", sys.stdout)
        if (n + 1) % options.batch == 0:
            progress.show(n + 1)
    progress.clear()
    if options.json:
        print("]")
    if target is not None:
        write_embeddings(target, embedded)
        _write(f"{target}: {len(embedded)} embeddings", sys.stderr if options.json else sys.stdout)
    sys.stdout.flush()
    return 2 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code, see the top of this file."""
    try:
        return _run(arguments)
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
