"""Compare an ONNX file with the trained network on real images."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.data import Preprocessing
from compress.errors import UserError
from compress.onnx.files import run_session

# From normalised images (N, C, H, W) to a file's input.
ToInput = Callable[[Tensor], NDArray[np.generic]]
# Is given the name of a file and its logits (N, K) of a batch.
OnLogits = Callable[[str, Tensor], object]


@dataclass(frozen=True)
class Parity:
    """The comparison over `images` images.

    Differences are absolute, of logits; the mean is over every logit of every image. `logit_scale`
    is the largest absolute logit of the torch network; the tolerance of `require` is relative to
    it, as float32 rounding grows with the values.
    """

    images: int
    max_abs_difference: float
    mean_abs_difference: float
    logit_scale: float
    top1_agreement_percent: float
    onnx_top1_percent: float
    torch_top1_percent: float

    def as_dict(self) -> dict[str, float | int]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def top1_drop(self) -> float:
        """Percentage points that the file's top-1 is below the trained network's."""
        return self.torch_top1_percent - self.onnx_top1_percent

    @property
    def relative_difference(self) -> float:
        """The largest difference over the trained network's largest logit."""
        if self.logit_scale == 0:
            return 0.0 if self.max_abs_difference == 0 else math.inf
        return self.max_abs_difference / self.logit_scale

    def require(self, tolerance: float) -> None:
        """Refuse a file whose logits are further off than `tolerance` x `logit_scale`.

        Raises:
            UserError: naming the numbers; also where a logit is not a number.
        """
        limit = tolerance * self.logit_scale
        # Written so that a NaN on either side is refused.
        if not self.max_abs_difference <= limit:
            raise UserError(
                f"the ONNX file differs from the trained network: logits are off by up to "
                f"{self.max_abs_difference:.3g} over {self.images} images, accepted is "
                f"{limit:.3g} (tolerance {tolerance:g} x largest logit {self.logit_scale:.3g}); "
                f"the same class in {self.top1_agreement_percent:.2f} % of the images, top-1 "
                f"{self.onnx_top1_percent:.2f} % instead of {self.torch_top1_percent:.2f} %"
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
) -> Parity:
    """Run both on the same images, on the CPU.

    Args:
        network: the trained network as it is stored, batch norm unfolded.
        session: ONNX Runtime on the exported file.
        batches: normalised images (N, C, H, W) and labels (N,), all on the CPU.
        to_input: turns normalised images into the file's input, if it takes something else.
        on_logits: is given the file's name ("") and its logits of each batch.

    Raises:
        UserError: there is no image to compare on.
    """
    sessions = {"": session}
    return compare_each(network, sessions, batches, to_input=to_input, on_logits=on_logits)[""]


def compare_each(
    network: nn.Module,
    sessions: Mapping[str, onnxruntime.InferenceSession],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    to_input: ToInput | None = None,
    on_logits: OnLogits | None = None,
) -> dict[str, Parity]:
    """`compare` several files of the same input while the network runs once."""
    network.eval()
    images, torch_right = 0, 0
    meters = {name: DifferenceMeter() for name in sessions}
    same_class, right = dict.fromkeys(sessions, 0), dict.fromkeys(sessions, 0)
    for inputs, labels in batches:
        with torch.inference_mode():
            expected = network(inputs)
        chosen = expected.argmax(1)
        images += len(labels)
        torch_right += int((chosen == labels).sum())
        file_input = inputs.numpy() if to_input is None else to_input(inputs)
        for name, session in sessions.items():
            logits = torch.from_numpy(run_session(session, file_input))
            if on_logits is not None:
                on_logits(name, logits)
            meters[name].add(expected, logits)
            same_class[name] += int((logits.argmax(1) == chosen).sum())
            right[name] += int((logits.argmax(1) == labels).sum())
    if images == 0:
        raise UserError("there are no test images to compare the ONNX file on")
    results = {}
    for name in sessions:
        meter = meters[name].result()
        results[name] = Parity(
            images=images,
            max_abs_difference=meter.max_abs,
            mean_abs_difference=meter.mean_abs,
            logit_scale=meter.scale,
            top1_agreement_percent=100.0 * same_class[name] / images,
            onnx_top1_percent=100.0 * right[name] / images,
            torch_top1_percent=100.0 * torch_right / images,
        )
    return results


def pixels_of(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Normalised (N, 3, H, W) -> the uint8 pixels (N, H, W, 3) that they were made of, exactly."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1)
        for v in (preprocessing.mean, preprocessing.std)
    )
    values = ((images.double() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    pixels: NDArray[np.uint8] = values.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
