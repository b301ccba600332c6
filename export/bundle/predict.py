"""Classify image files with a bundle: needs numpy, Pillow and onnxruntime, nothing else.

    python BUNDLE/predict.py image.png [folder ...]
    python -m export.bundle.predict BUNDLE image.png [folder ...]

A bundle without classes embeds them instead; --embed FILE.npz writes `files` (N,) and `embeddings`
(N, D), FILE.csv a line for each image.

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
        if bundle.labels is not None and found != (1, len(bundle.labels)):
            raise Refusal(f"{path} gives {found} for one image and {len(bundle.labels)} labels")

    def read(self, path: str | Path) -> NDArray[np.uint8]:
        """An image file as the square (S, S, 3) that the network sees.

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
                    return numpy.asarray(self._cut(image.convert("RGB")))
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
        """The network's input of N squares (S, S, 3): layout, type and values as described."""
        import numpy

        p = self.bundle.preprocess
        batch: NDArray[Any] = numpy.stack(images)
        if batch.shape[1:] != (self.size, self.size, 3) or batch.dtype != numpy.uint8:
            raise ValueError(f"expected uint8 ({self.size}, {self.size}, 3)")
        if p["dtype"] == "float32" and not p["normalise_in_graph"]:
            divisor, mean, std = (numpy.float32(p[k]) for k in ("divide_by", "mean", "std"))
            batch = (batch.astype(numpy.float32) / divisor - mean) / std
        if p["layout"] == "NCHW":
            batch = batch.transpose(0, 3, 1, 2)
        return numpy.ascontiguousarray(batch, dtype=p["dtype"])

    def logits(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Logits (N, K), or embeddings (N, D), of N squares (S, S, 3), as `read` gives them."""
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
    found, embedded = find_images(inputs), list[dict[str, Any]]()
    progress, failed = _Progress(len(found)), False
    progress.show(0)
    for n, record in enumerate(classify(predictor, found, batch=options.batch, top=options.top)):
        progress.clear()
        if error := record.get("error"):
            failed = True
            _write(f"error: {error}", sys.stderr)
        if options.json:
            print("[" if n == 0 else ",", json.dumps(record))
        if embeds:
            embedded += [record] if target is not None and not error else []
        elif not error and not options.json:
            shares = (f"{p['class']} {100 * p['probability']:.2f} %" for p in record["predictions"])
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
