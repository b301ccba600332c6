"""A bundle's ONNX files against its torch network, on real images, by batch size and threads."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from compress.data import Dataset, Preprocessing, evaluation_batches, evenly
from compress.errors import UserError
from compress.model_files.artifacts import Encoder, Student, is_dense
from compress.model_files.origins import load_encoder
from compress.onnx.files import open_session, run_session, takes_pixels
from export.bundle.contents import ENCODER, INT8, embeds
from export.bundle.parity import DifferenceMeter, OutputParity, compare, compare_each, pixels_of
from export.bundle.request import resized

_FEW = 100  # images at batch 1, and for the encoder
_RESIZED = 8  # images at another size
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ComparisonSettings:
    """Compare `images` images at batch size `batch`, and at most 100 of them at batch 1."""

    images: int
    batch: int
    threads: tuple[int, ...]

    def batches(self) -> list[tuple[int, int]]:
        """Pairs of batch size and number of images."""
        whole = [(self.batch, self.images)]
        return whole if self.batch == 1 else [(1, min(self.images, _FEW)), *whole]


@dataclass(frozen=True)
class Row:
    """A student's file against the trained network, at a batch size and number of threads.

    `exact`: computed as the file is written, without the integer kernels of this machine;
    `resized`: on images and masks of another size, where the file takes any.
    """

    file: str
    batch: int
    threads: int
    parity: OutputParity
    exact: bool = False
    resized: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        run = {"file": self.file, "batch": self.batch, "threads": self.threads}
        size = {"resized": True} if self.resized else {}
        return {**run, "exact": self.exact, **size, **self.parity.as_dict()}


@dataclass(frozen=True)
class EncoderRow:
    """encoder.onnx against the trained encoder, on images of one size: absolute differences."""

    batch: int
    threads: int
    height: int
    width: int
    images: int
    max_abs: float
    mean_abs: float
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"file": ENCODER, **asdict(self)}


def student_rows(
    bundle: Path,
    files: Sequence[str],
    student: Student,
    data: Dataset,
    settings: ComparisonSettings,
) -> Iterator[Row]:
    """Compare each file at batch 1 and at `settings.batch`, per number of threads.

    The int8 file is also compared exactly, so that its verdict does not depend on the machine, and
    files that take any size on a few images of another one.
    """
    preprocessing, gives_embeddings = data.preprocessing, embeds(student.description)
    dense = is_dense(student.description)
    for threads in settings.threads:
        sessions = {
            name: open_session(bundle / name, threads=threads, spin=False) for name in files
        }
        for session in sessions.values():
            _require_input(session, preprocessing, any_size=dense)
        is_raw = takes_pixels(sessions[files[0]])
        to_input = partial(pixels_of, preprocessing=preprocessing) if is_raw else None
        for batch, count in settings.batches():
            batches = _batches(data, batch, count)
            with _threads(threads):
                parities = compare_each(
                    student.network,
                    sessions,
                    batches,
                    to_input=to_input,
                    embeds=gives_embeddings,
                    dense=dense,
                )
            for name, parity in parities.items():
                yield Row(name, batch, threads, parity)
        if dense:
            batch = min(settings.batch, settings.images, _RESIZED)
            others = resized(data, batch, min(settings.images, _RESIZED))
            with _threads(threads):
                parities = compare_each(
                    student.network, sessions, others, to_input=to_input, dense=True
                )
            for name, parity in parities.items():
                yield Row(name, batch, threads, parity, resized=True)
    if INT8 in files:
        threads = settings.threads[-1]
        session = open_session(bundle / INT8, threads=threads, spin=False, exact=True)
        batches = _batches(data, settings.batch, settings.images)
        with _threads(threads):
            parity = compare(
                student.network,
                session,
                batches,
                to_input=to_input,
                embeds=gives_embeddings,
                dense=dense,
            )
        yield Row(INT8, settings.batch, threads, parity, exact=True)


def encoder_rows(bundle: Path, data: Dataset, settings: ComparisonSettings) -> Iterator[EncoderRow]:
    """Compare encoder.onnx likewise, also at another image size where it takes any."""
    encoder = load_encoder(bundle).eval()
    size = data.preprocessing.image_size
    for threads in settings.threads:
        session = open_session(bundle / ENCODER, threads=threads, spin=False)
        is_free = isinstance(session.get_inputs()[0].shape[2], str)
        sizes = [(size, size)]
        if is_free:
            sizes.append((size + encoder.stride, size + 2 * encoder.stride))
        for height, width in sizes:
            for batch, count in settings.batches():
                batches = _batches(data, batch, min(count, _FEW))
                with _threads(threads):
                    yield _encoder_row(encoder, session, batches, (batch, threads, height, width))


def _encoder_row(
    encoder: Encoder,
    session: onnxruntime.InferenceSession,
    batches: Iterable[tuple[Tensor, Tensor]],
    setting: tuple[int, int, int, int],  # batch size, threads, height, width
) -> EncoderRow:
    meter, images = DifferenceMeter(), 0
    for inputs, _ in batches:
        inputs = nn.functional.interpolate(inputs, setting[2:], mode="bilinear")
        with torch.inference_mode():
            expected = encoder(inputs)
        meter.add(expected, torch.from_numpy(run_session(session, inputs.numpy())))
        images += len(inputs)
    return EncoderRow(*setting, images, **asdict(meter.result()))


def _batches(data: Dataset, batch: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of `count` test images, spread over the split, which is often sorted by class."""
    images = data.test.subset(evenly(data.test, count))
    yield from evaluation_batches(images, batch, data.preprocessing, _CPU)


def _require_input(
    session: onnxruntime.InferenceSession, preprocessing: Preprocessing, *, any_size: bool
) -> None:
    size = preprocessing.image_size
    sides: list[int | str] = ["height", "width"] if any_size else [size, size]
    expected = [*sides, 3] if takes_pixels(session) else [3, *sides]
    actual = session.get_inputs()[0]
    if actual.name != "images" or list(actual.shape[1:]) != expected:
        raise UserError(
            f"an ONNX file takes '{actual.name}' {actual.shape}, not 'images' of "
            f"{['batch', *expected]}; export the bundle again"
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
