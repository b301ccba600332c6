"""What is to be bundled, and its images as the files take them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from compress.console.messages import bar
from compress.data import Dataset, Images, evaluation_batches, evenly
from compress.model_files.artifacts import Student
from compress.onnx.files import open_session
from compress.recipe.schema import Export, Latency
from export.bundle.parity import Parity, Taken, compare, pixels_of

_BATCH = 64
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Request:
    """What is to be bundled.

    `data_section` is the recipe's, without root and with the seed that subsets are drawn by;
    `latency` None leaves out timing; `costs` are the student's columns of `account`, if it ran;
    `found` and `teachers` are what the distill and teacher stages found.
    """

    name: str
    student: Student
    data: Dataset
    data_section: Mapping[str, Any]
    settings: Export
    latency: Latency | None = None
    costs: Mapping[str, Any] | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    teachers: Sequence[Mapping[str, Any]] = ()


def calibration_batches(request: Request, count: int) -> Iterator[NDArray[Any]]:
    """Training images without augmentation, evenly over the split, as the file takes them."""
    train = request.data.train
    chosen = train.subset(evenly(train, count))
    taken = _taken(request)
    for images, _ in evaluation_batches(chosen, _BATCH, request.data.preprocessing, _CPU):
        yield images.numpy() if taken is None else taken(images)


def compare_file(request: Request, path: Path, images: Images, *, exact: bool = False) -> Parity:
    """A file against the trained network; `exact` as `open_session` takes it."""
    batches = evaluation_batches(images, _BATCH, request.data.preprocessing, _CPU)
    with bar(f"  comparing {path.name}", len(images)) as advance:

        def counted() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for inputs, labels in batches:
                yield inputs, labels.cpu()
                advance(len(labels))

        session = open_session(path, exact=exact)
        return compare(request.student.network, session, counted(), taken=_taken(request))


def _taken(request: Request) -> Taken | None:
    if not request.settings.raw_pixels:
        return None
    return partial(pixels_of, preprocessing=request.data.preprocessing)
