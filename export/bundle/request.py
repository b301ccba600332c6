"""The inputs of a bundle, and its images in the form that the files take."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from compress.comparison.predictions import prediction_arrays, write_predictions
from compress.console.messages import bar
from compress.data import Dataset, Images, evaluation_batches, evenly
from compress.data.dense.images import MaskedImages
from compress.data.dense.masked_images import IGNORE_INDEX
from compress.data.dense.samples import sample_numbers, write_sample_masks
from compress.model_files.artifacts import Student, is_dense
from compress.onnx.files import open_session
from compress.recipe.schema import Export, LatencyPart
from compress.tasks.confusion import confusion_matrix
from export.bundle.contents import INT8, embeds
from export.bundle.parity import OutputParity, ToInput, compare, pixels_of

_BATCH = 64
_CPU = torch.device("cpu")
_OTHER_SIZE_IMAGES = 4


@dataclass(frozen=True)
class BundleRequest:
    """The inputs of a bundle.

    `data_section` is the recipe's, without root and with the seed that subsets are drawn by;
    `latency` None leaves out timing; `costs` are the student's columns of `account`, if it ran;
    `training` are the values of the student's distill stage, `teachers` those of the teachers;
    `remark` says why it is not the recommended student. `teacher` is the folder of the teacher that
    is timed beside the files, `predictions` the one for what each file says of the test images.
    `plain` is the student as it was trained, for the encoder's file where the description names
    code that nothing rebuilds; without it the encoder is rebuilt from the student's own two files.
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
    plain: nn.Module | None = None


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

    What it says of the test split's classes is saved, see `BundleRequest.predictions`.
    """
    description = request.student.description
    gives_embeddings, dense = embeds(description), is_dense(description)
    is_kept = images is request.data.test and not exact and not gives_embeddings
    folder = request.predictions if is_kept else None
    keeper: _Predictions = _TopClasses()
    if dense:
        keeper = _Confusions(_sample_folders(request) if path.name == INT8 else {})

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
            on_logits=keeper.keep if folder is not None else None,
            embeds=gives_embeddings,
            dense=dense,
        )
    if folder is not None:
        folder.mkdir(exist_ok=True)
        write_predictions(folder / f"{path.name}.npz", keeper.arrays(), images.digest())
    return parity


def require_other_size(request: BundleRequest, path: Path) -> None:
    """Refuse a file that is not the trained network at a size that is neither square nor even.

    Raises:
        UserError: its logits differ by more than the recipe's tolerance, or it takes no such size.
    """
    parity = compare(
        request.student.network,
        open_session(path),
        resized(request.data, _OTHER_SIZE_IMAGES, _OTHER_SIZE_IMAGES),
        to_input=_to_input(request),
        dense=True,
    )
    parity.require(request.settings.tolerance)


def resized(data: Dataset, batch: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of test images and their masks at a size that no side of the data has.

    They are `image_size` + 9 pixels high and `image_size` + 30 wide.
    """
    images = data.test.subset(evenly(data.test, count))
    size = data.preprocessing.image_size + 9, data.preprocessing.image_size + 30
    for inputs, labels in evaluation_batches(images, batch, data.preprocessing, _CPU):
        masks = interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()
        values = interpolate(inputs, size, mode="bilinear", align_corners=True)
        # Whole grey levels, so that a file that takes pixels gets the same.
        pixels = torch.from_numpy(pixels_of(values, data.preprocessing)).permute(0, 3, 1, 2)
        yield data.preprocessing.normalise(pixels), masks


class _Predictions(Protocol):
    """What a file says of images, for a predictions file."""

    def keep(self, name: str, logits: Tensor, labels: Tensor) -> None: ...

    def arrays(self) -> dict[str, NDArray[Any]]: ...


class _TopClasses:
    """Those of a classifier."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(self, _: str, logits: Tensor, labels: Tensor) -> None:
        self.kept.append((labels, logits.argmax(1), logits.softmax(1).half()))

    def arrays(self) -> dict[str, NDArray[Any]]:
        labels, top1, shares = (torch.cat(p).numpy() for p in zip(*self.kept, strict=True))
        return prediction_arrays(labels, top1, shares)


class _Confusions:
    """Those of a network that segments: a confusion matrix (K, K) of each image.

    The masks of the images in `samples` are written to their folders, for people to look at.
    """

    def __init__(self, samples: Mapping[int, Path]) -> None:
        self.kept: list[Tensor] = []
        self.samples = samples

    def keep(self, _: str, logits: Tensor, labels: Tensor) -> None:
        classes, predicted = logits.shape[1], logits.argmax(1)
        for number, mask in enumerate(predicted, len(self.kept)):
            if number in self.samples:
                write_sample_masks(self.samples[number], {number: mask})
        self.kept += [
            confusion_matrix(truth, mask, classes=classes, ignore_index=IGNORE_INDEX)
            for truth, mask in zip(labels, predicted, strict=True)
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"confusion": torch.stack(self.kept).to(torch.int32).numpy()}


def _sample_folders(request: BundleRequest) -> dict[int, Path]:
    """Of test images by number the folder for their masks: that of the export stage."""
    test, predictions = request.data.test, request.predictions
    if predictions is None or not isinstance(test, MaskedImages):
        return {}
    return dict.fromkeys(sample_numbers(test), predictions.parent)


def _to_input(request: BundleRequest) -> ToInput | None:
    if not request.settings.raw_pixels:
        return None
    return partial(pixels_of, preprocessing=request.data.preprocessing)
