"""Compare an ONNX file with the trained network on real images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from compress.data import Preprocessing
from compress.data.dense.masked_images import IGNORE_INDEX
from compress.errors import UserError
from compress.onnx.files import run_session
from compress.tasks.confusion import confusion_matrix, segmentation_metrics
from export.onnx import Enlarged

# From normalised images (N, C, H, W) to a file's input.
ToInput = Callable[[Tensor], NDArray[np.generic]]
# Is given the name of a file, its outputs (N, K) or (N, K, H, W) of a batch, and the labels.
OnLogits = Callable[[str, Tensor, Tensor], object]
_LOW = 0.01  # quantile of the images' cosines


@dataclass(frozen=True)
class OutputParity(ABC):
    """A comparison of outputs over `images` images; differences are absolute.

    The mean is over every number of every image. `noun` is what an output's numbers are called.
    """

    noun: ClassVar[str]
    images: int
    max_abs_difference: float
    mean_abs_difference: float

    @property
    @abstractmethod
    def scale(self) -> float:
        """The largest absolute output of the torch network, as rounding grows with the values."""

    @property
    @abstractmethod
    def agreement_percent(self) -> float:
        """Of the images: 100 where file and network say the same of every one."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain values, for JSON."""
        return asdict(self)

    @abstractmethod
    def gate_values(self) -> dict[str, float | int]:
        """Plain values that limits of an int8 file are about."""

    def drop_words(self) -> str | None:
        """The metric's change, images and standard error; None of a file that is not judged so."""
        return None

    @abstractmethod
    def in_words(self) -> str:
        """The file's worth, for messages."""

    @abstractmethod
    def int8_words(self) -> str:
        """The same of an int8 file."""

    def search_words(self) -> str:
        """The same of a trial of the search."""
        return self.int8_words()

    @property
    def relative_difference(self) -> float:
        """The largest difference over the trained network's largest output."""
        if self.scale == 0:
            return 0.0 if self.max_abs_difference == 0 else math.inf
        return self.max_abs_difference / self.scale

    def require(self, tolerance: float) -> None:
        """Refuse a file whose outputs are further off than `tolerance` x `scale`.

        Raises:
            UserError: naming the numbers; also where an output is not a number.
        """
        limit = tolerance * self.scale
        # Written so that a NaN on either side is refused.
        if not self.max_abs_difference <= limit:
            raise UserError(
                f"the ONNX file differs from the trained network: {self.noun}s are off by up to "
                f"{self.max_abs_difference:.3g} over {self.images} images, accepted is "
                f"{limit:.3g} (tolerance {tolerance:g} x largest {self.noun} {self.scale:.3g}); "
                f"{self._beside()}"
            )

    @abstractmethod
    def _beside(self) -> str: ...


@dataclass(frozen=True)
class LogitParity(OutputParity):
    """The comparison of networks that give logits; `logit_scale` is the `scale`."""

    noun: ClassVar[str] = "logit"
    logit_scale: float

    @property
    def scale(self) -> float:
        """The largest absolute logit."""
        return self.logit_scale


@dataclass(frozen=True)
class Parity(LogitParity):
    """The comparison of a classifier.

    `discordant_images` are those that exactly one of file and trained network gets right.
    """

    top1_agreement_percent: float
    onnx_top1_percent: float
    torch_top1_percent: float
    discordant_images: int = 0

    @property
    def agreement_percent(self) -> float:
        """Images with the same class."""
        return self.top1_agreement_percent

    @property
    def top1_drop(self) -> float:
        """Percentage points that the file's top-1 is below the trained network's."""
        return self.torch_top1_percent - self.onnx_top1_percent

    @property
    def drop_standard_error(self) -> float:
        """Standard error of `top1_drop` in percentage points, paired: on the same n images.

        Each image adds 1 (only the network is right), -1 (only the file is) or 0 to the drop, so
        with d discordant images and a drop of D images it is sqrt(d - D^2 / n) / n.
        """
        drop = self.top1_drop / 100
        # Rounding alone makes it negative where every discordant image counts the same way.
        variance = max(self.discordant_images / self.images - drop**2, 0.0)
        return 100 * math.sqrt(variance / self.images)

    def gate_values(self) -> dict[str, float | int]:
        """See `OutputParity`."""
        return {
            "images": self.images,
            "top1_drop": self.top1_drop,
            "drop_standard_error": self.drop_standard_error,
            "agreement_percent": self.top1_agreement_percent,
            "difference": self.relative_difference,
        }

    def drop_words(self) -> str:
        """See `OutputParity`."""
        change = self.onnx_top1_percent - self.torch_top1_percent
        if not self.discordant_images and not change:
            return f"{change:+.2f} points, right on the same of {self.images} images"
        return _change_words(change, "points", self.images, self.drop_standard_error)

    def in_words(self) -> str:
        """See `OutputParity`."""
        return f"top-1 {self.onnx_top1_percent:.2f} %"

    def int8_words(self) -> str:
        """See `OutputParity`."""
        return (
            f"top-1 {self.onnx_top1_percent:.2f} % ({self.drop_words()}), same class "
            f"{self.top1_agreement_percent:.2f} %, logits within {self.relative_difference:.2g} of "
            "the largest"
        )

    def search_words(self) -> str:
        """See `OutputParity`."""
        return (
            f"same class {self.top1_agreement_percent:.2f} %, top-1 {-self.top1_drop:+.2f}, logits "
            f"within {self.relative_difference:.2g} of the largest"
        )

    def _beside(self) -> str:
        return (
            f"the same class in {self.top1_agreement_percent:.2f} % of the images, top-1 "
            f"{self.onnx_top1_percent:.2f} % instead of {self.torch_top1_percent:.2f} %"
        )


@dataclass(frozen=True)
class EmbeddingParity(OutputParity):
    """The comparison of a network that gives embeddings, by the cosine of each image's two.

    `low_cosine` is the first percentile over the images; `largest_value` is the `scale`.
    """

    noun: ClassVar[str] = "embedding value"
    largest_value: float
    mean_cosine: float
    low_cosine: float

    @property
    def scale(self) -> float:
        """The largest absolute value."""
        return self.largest_value

    @property
    def agreement_percent(self) -> float:
        """The mean cosine in percent."""
        return 100 * self.mean_cosine

    def gate_values(self) -> dict[str, float | int]:
        """See `OutputParity`."""
        return {
            "images": self.images,
            "mean_cosine": self.mean_cosine,
            "low_cosine": self.low_cosine,
            "difference": self.relative_difference,
        }

    def in_words(self) -> str:
        """See `OutputParity`."""
        return f"cosine {self.mean_cosine:.4f}, of the lowest percent {self.low_cosine:.4f}"

    def int8_words(self) -> str:
        """See `OutputParity`."""
        return self.in_words()

    def _beside(self) -> str:
        return self.in_words()


@dataclass(frozen=True)
class PixelParity(LogitParity):
    """The comparison of a network that segments, at the images' size.

    `pixels` have a class; the others (void) count nowhere but in the differences of logits. Mean
    IoU is of one confusion matrix over all of them, as the task's is. `drop_standard_error` is that
    of `miou_drop` in percentage points, over images (the jackknife of the paired difference); one
    image has none, which 0 stands for.
    """

    pixels: int
    pixel_agreement_percent: float
    onnx_miou_percent: float
    torch_miou_percent: float
    drop_standard_error: float = 0.0

    @property
    def agreement_percent(self) -> float:
        """Pixels with the same class."""
        return self.pixel_agreement_percent

    @property
    def miou_drop(self) -> float:
        """Percentage points that the file's mean IoU is below the trained network's."""
        return self.torch_miou_percent - self.onnx_miou_percent

    def gate_values(self) -> dict[str, float | int]:
        """See `OutputParity`."""
        return {
            "images": self.images,
            "miou_drop": self.miou_drop,
            "drop_standard_error": self.drop_standard_error,
            "agreement_percent": self.pixel_agreement_percent,
            "difference": self.relative_difference,
        }

    def drop_words(self) -> str:
        """See `OutputParity`."""
        change = self.onnx_miou_percent - self.torch_miou_percent
        return _change_words(change, "points of mean IoU", self.images, self.drop_standard_error)

    def in_words(self) -> str:
        """See `OutputParity`."""
        return f"mean IoU {self.onnx_miou_percent:.2f} %"

    def int8_words(self) -> str:
        """See `OutputParity`."""
        return (
            f"mean IoU {self.onnx_miou_percent:.2f} % ({self.drop_words()}), same class in "
            f"{self.pixel_agreement_percent:.2f} % of the pixels, logits within "
            f"{self.relative_difference:.2g} of the largest"
        )

    def _beside(self) -> str:
        return (
            f"the same class in {self.pixel_agreement_percent:.2f} % of the pixels, mean IoU "
            f"{self.onnx_miou_percent:.2f} % instead of {self.torch_miou_percent:.2f} %"
        )


@dataclass(frozen=True)
class OutputDifference:
    """Absolute differences of two outputs; `scale` is the largest value of the reference."""

    max_abs: float
    mean_abs: float
    scale: float


class DifferenceMeter:
    """Accumulates an `OutputDifference` over batches; a NaN stays one."""

    def __init__(self) -> None:
        # fmax and fmin would skip a NaN; torch's maximum keeps it.
        self._largest, self._scale = torch.zeros(()), torch.zeros(())
        self._sum, self._count = torch.zeros((), dtype=torch.float64), 0

    def add(self, expected: Tensor, actual: Tensor) -> None:
        """Add outputs for the same images; differences are taken in float64."""
        difference = (actual.double() - expected.double()).abs()
        self._largest = torch.maximum(self._largest, difference.max())
        self._scale = torch.maximum(self._scale, expected.double().abs().max())
        self._sum += difference.sum()
        self._count += difference.numel()

    def result(self) -> OutputDifference:
        """The difference over all batches."""
        mean = float(self._sum) / max(self._count, 1)
        return OutputDifference(float(self._largest), mean, float(self._scale))


def compare(
    network: nn.Module,
    session: onnxruntime.InferenceSession,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    to_input: ToInput | None = None,
    on_logits: OnLogits | None = None,
    embeds: bool = False,
    dense: bool = False,
) -> OutputParity:
    """Run both on the same images, on the CPU.

    Args:
        network: the trained network as it is stored, batch norm unfolded.
        session: ONNX Runtime on the exported file.
        batches: normalised images (N, C, H, W) and labels (N,), all on the CPU; of a dense network
            (N, H, W).
        to_input: turns normalised images into the file's input, if it takes something else.
        on_logits: is given the file's name (""), its outputs of each batch and the labels.
        embeds: they give embeddings (N, D), and labels are not looked at.
        dense: the network gives logits (N, K, h, w), the file enlarges them to the image.

    Raises:
        UserError: there is no image to compare on.
    """
    sessions = {"": session}
    return compare_each(
        network,
        sessions,
        batches,
        to_input=to_input,
        on_logits=on_logits,
        embeds=embeds,
        dense=dense,
    )[""]


def compare_each(
    network: nn.Module,
    sessions: Mapping[str, onnxruntime.InferenceSession],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    to_input: ToInput | None = None,
    on_logits: OnLogits | None = None,
    embeds: bool = False,
    dense: bool = False,
) -> dict[str, OutputParity]:
    """`compare` several files of the same input while the network runs once."""
    network = Enlarged(network).eval() if dense else network.eval()
    images = 0
    meters = {name: DifferenceMeter() for name in sessions}
    tally: type[_Tally] = _Pixels if dense else _Cosines if embeds else _Classes
    tallies = {name: tally() for name in sessions}
    for inputs, labels in batches:
        with torch.inference_mode():
            expected = network(inputs)
        images += len(labels)
        file_input = inputs.numpy() if to_input is None else to_input(inputs)
        for name, session in sessions.items():
            outputs = torch.from_numpy(run_session(session, file_input))
            if on_logits is not None:
                on_logits(name, outputs, labels)
            meters[name].add(expected, outputs)
            tallies[name].add(expected, outputs, labels)
    if images == 0:
        raise UserError("there are no test images to compare the ONNX file on")
    return {n: tallies[n].parity(images, meters[n].result()) for n in sessions}


def _change_words(change: float, unit: str, images: int, standard_error: float) -> str:
    return f"{change:+.2f} {unit} on {images} images, standard error {standard_error:.2g}"


class _Tally(Protocol):
    """Of the outputs of a file and the trained network what differences do not tell."""

    def add(self, expected: Tensor, actual: Tensor, labels: Tensor) -> None: ...

    def parity(self, images: int, difference: OutputDifference) -> OutputParity: ...


@dataclass
class _Classes:
    same_class: int = 0
    right: int = 0
    torch_right: int = 0
    discordant: int = 0

    def add(self, expected: Tensor, actual: Tensor, labels: Tensor) -> None:
        chosen, predicted = expected.argmax(1), actual.argmax(1)
        self.torch_right += int((chosen == labels).sum())
        self.same_class += int((predicted == chosen).sum())
        self.right += int((predicted == labels).sum())
        self.discordant += int(((chosen == labels) != (predicted == labels)).sum())

    def parity(self, images: int, difference: OutputDifference) -> Parity:
        return Parity(
            images=images,
            max_abs_difference=difference.max_abs,
            mean_abs_difference=difference.mean_abs,
            logit_scale=difference.scale,
            top1_agreement_percent=100.0 * self.same_class / images,
            onnx_top1_percent=100.0 * self.right / images,
            torch_top1_percent=100.0 * self.torch_right / images,
            discordant_images=self.discordant,
        )


@dataclass
class _Cosines:
    cosines: list[Tensor] = field(default_factory=list)

    def add(self, expected: Tensor, actual: Tensor, labels: Tensor) -> None:
        self.cosines.append(cosine_similarity(expected.double(), actual.double()))

    def parity(self, images: int, difference: OutputDifference) -> EmbeddingParity:
        cosines = torch.cat(self.cosines)
        return EmbeddingParity(
            images=images,
            max_abs_difference=difference.max_abs,
            mean_abs_difference=difference.mean_abs,
            largest_value=difference.scale,
            mean_cosine=float(cosines.mean()),
            low_cosine=float(cosines.quantile(_LOW)),
        )


@dataclass
class _Pixels:
    pixels: int = 0
    same_class: int = 0
    confusion: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    torch_confusion: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    # Of each image (2, K): intersection and union of every class.
    overlaps: list[Tensor] = field(default_factory=list)
    torch_overlaps: list[Tensor] = field(default_factory=list)

    def add(self, expected: Tensor, actual: Tensor, labels: Tensor) -> None:
        classes = expected.shape[1]
        chosen, predicted = expected.argmax(1), actual.argmax(1)
        counted = labels != IGNORE_INDEX
        self.pixels += int(counted.sum())
        self.same_class += int((predicted == chosen)[counted].sum())
        count = partial(confusion_matrix, classes=classes, ignore_index=IGNORE_INDEX)
        for truth, trained, said in zip(labels, chosen, predicted, strict=True):
            own, reference = count(truth, said), count(truth, trained)
            self.confusion = self.confusion + own
            self.torch_confusion = self.torch_confusion + reference
            self.overlaps.append(_overlap(own))
            self.torch_overlaps.append(_overlap(reference))

    def parity(self, images: int, difference: OutputDifference) -> PixelParity:
        if self.pixels == 0:
            raise UserError("none of the images to compare on has a pixel with a class")
        return PixelParity(
            images=images,
            pixels=self.pixels,
            max_abs_difference=difference.max_abs,
            mean_abs_difference=difference.mean_abs,
            logit_scale=difference.scale,
            pixel_agreement_percent=100.0 * self.same_class / self.pixels,
            onnx_miou_percent=segmentation_metrics(self.confusion)["miou_percent"],
            torch_miou_percent=segmentation_metrics(self.torch_confusion)["miou_percent"],
            drop_standard_error=_jackknife_error(
                torch.stack(self.overlaps), torch.stack(self.torch_overlaps)
            ),
        )


def _overlap(confusion: Tensor) -> Tensor:
    """Intersection and union (2, K) of a confusion matrix (K, K)."""
    intersection = confusion.diagonal()
    return torch.stack([intersection, confusion.sum(0) + confusion.sum(1) - intersection])


def _miou_percent(overlaps: Tensor) -> Tensor:
    """(..., 2, K) -> (...): the mean over classes that have a union, as `segmentation_metrics`."""
    intersection, union = overlaps.double().unbind(-2)
    return 100 * (intersection / torch.where(union > 0, union, torch.nan)).nanmean(-1)


def _jackknife_error(own: Tensor, trained: Tensor) -> float:
    """Standard error of the difference of mean IoU over images, each (N, 2, K) without one image.

    Efron and Stein, The Jackknife Estimate of Variance, Annals of Statistics 1981.
    """
    images = len(own)
    without = [_miou_percent(one.sum(0) - one) for one in (own, trained)]
    differences = without[0] - without[1]
    if images < 2 or differences.isnan().any():  # one image alone has pixels with a class
        return 0.0
    variance = (images - 1) / images * (differences - differences.mean()).square().sum()
    return float(variance.sqrt())


def pixels_of(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Normalised (N, 3, H, W) -> the uint8 pixels (N, H, W, 3) that they were made of, exactly."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1)
        for v in (preprocessing.mean, preprocessing.std)
    )
    values = ((images.double() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    pixels: NDArray[np.uint8] = values.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
