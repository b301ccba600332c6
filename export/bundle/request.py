"""The inputs of a bundle, and its images in the form that the files take."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from compress.comparison.predictions import prediction_arrays, write_predictions
from compress.console.messages import bar
from compress.data import Dataset, Images, evaluation_batches, evenly
from compress.model_files.artifacts import Student
from compress.onnx.files import open_session
from compress.recipe.schema import Export, LatencyPart
from export.bundle.contents import embeds
from export.bundle.parity import OutputParity, ToInput, compare, pixels_of

_BATCH = 64
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class BundleRequest:
    """The inputs of a bundle.

    `data_section` is the recipe's, without root and with the seed that subsets are drawn by;
    `latency` None leaves out timing; `costs` are the student's columns of `account`, if it ran;
    `training` are the values of the student's distill stage, `teachers` those of the teachers;
    `remark` says why it is not the recommended student. `teacher` is the folder of the teacher that
    is timed beside the files, `predictions` the one for what each file says of the test images.
    """

    name: str
    student: Student
    data: Dataset
    data_section: Mapping[str, Any]
    settings: Export
    latency: LatencyPart | None = None
    costs: Mapping[str, Any] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    teachers: Sequence[Mapping[str, Any]] = ()
    remark: str | None = None
    teacher: Path | None = None
    predictions: Path | None = None


def calibration_batches(request: BundleRequest, count: int) -> Iterator[NDArray[Any]]:
    """Training images without augmentation, spread over the split, as the file takes them."""
    train = request.data.train
    subset = train.subset(evenly(train, count))
    to_input = _to_input(request)
    for images, _ in evaluation_batches(subset, _BATCH, request.data.preprocessing, _CPU):
        yield images.numpy() if to_input is None else to_input(images)


def compare_file(
    request: BundleRequest, path: Path, images: Images, *, exact: bool = False
) -> OutputParity:
    """Compare a file with the trained network; `exact` is that of `open_session`.

    What a classifier says of the test split is saved, see `BundleRequest.predictions`.
    """
    gives_embeddings = embeds(request.student.description)
    is_kept = images is request.data.test and not exact and not gives_embeddings
    folder = request.predictions if is_kept else None
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: str, logits: torch.Tensor) -> None:
        kept.append((logits.argmax(1), logits.softmax(1).half()))

    batches = evaluation_batches(images, _BATCH, request.data.preprocessing, _CPU)
    with bar(f"  comparing {path.name}", len(images)) as advance:

        def with_progress() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for inputs, labels in batches:
                yield inputs, labels.cpu()
                advance(len(labels))

        session = open_session(path, exact=exact)
        parity = compare(
            request.student.network,
            session,
            with_progress(),
            to_input=_to_input(request),
            on_logits=keep if folder is not None else None,
            embeds=gives_embeddings,
        )
    if folder is not None:
        top1, probabilities = (torch.cat(parts).numpy() for parts in zip(*kept, strict=True))
        arrays = prediction_arrays(images.labels.cpu().numpy(), top1, probabilities)
        folder.mkdir(exist_ok=True)
        write_predictions(folder / f"{path.name}.npz", arrays, images.digest())
    return parity


def _to_input(request: BundleRequest) -> ToInput | None:
    if not request.settings.raw_pixels:
        return None
    return partial(pixels_of, preprocessing=request.data.preprocessing)
