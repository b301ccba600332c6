"""Whether an ONNX file computes what the trained network computes, on real images."""

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

# From normalised images (N, C, H, W) to what a file takes.
Taken = Callable[[Tensor], NDArray[np.generic]]


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
class Difference:
    """How far two outputs are apart, in absolute values; `scale` is the reference's largest."""

    max_abs: float
    mean_abs: float
    scale: float


class Gap:
    """Collects a `Difference` over batches; what is no number stays none."""

    def __init__(self) -> None:
        # fmax and fmin would skip a NaN; torch's maximum keeps it.
        self._largest, self._scale = torch.zeros(()), torch.zeros(())
        self._sum, self._count = torch.zeros((), dtype=torch.float64), 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Outputs for the same images; computed with in float64."""
        apart = (found.double() - expected.double()).abs()
        self._largest = torch.maximum(self._largest, apart.max())
        self._scale = torch.maximum(self._scale, expected.double().abs().max())
        self._sum += apart.sum()
        self._count += apart.numel()

    def result(self) -> Difference:
        """Over all that was added."""
        mean = float(self._sum) / max(self._count, 1)
        return Difference(float(self._largest), mean, float(self._scale))


def compare(
    network: nn.Module,
    session: onnxruntime.InferenceSession,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    taken: Taken | None = None,
) -> Parity:
    """Run both on the same images, on the CPU.

    Args:
        network: the trained network as it is stored, batch norm unfolded.
        session: ONNX Runtime on the exported file.
        batches: normalised images (N, C, H, W) and labels (N,), all on the CPU.
        taken: makes of the normalised images what the file takes, where that is something else.

    Raises:
        UserError: there is no image to compare on.
    """
    return compare_each(network, {"": session}, batches, taken=taken)[""]


def compare_each(
    network: nn.Module,
    sessions: Mapping[str, onnxruntime.InferenceSession],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    taken: Taken | None = None,
) -> dict[str, Parity]:
    """`compare` for several files that take the same, the network being run once."""
    network.eval()
    images, torch_right = 0, 0
    gaps = {name: Gap() for name in sessions}
    agreeing, right = dict.fromkeys(sessions, 0), dict.fromkeys(sessions, 0)
    for inputs, labels in batches:
        with torch.inference_mode():
            expected = network(inputs)
        chosen = expected.argmax(1)
        images += len(labels)
        torch_right += int((chosen == labels).sum())
        given = inputs.numpy() if taken is None else taken(inputs)
        for name, session in sessions.items():
            found = torch.from_numpy(run_session(session, given))
            gaps[name].add(expected, found)
            agreeing[name] += int((found.argmax(1) == chosen).sum())
            right[name] += int((found.argmax(1) == labels).sum())
    if images == 0:
        raise UserError("there are no test images to compare the ONNX file on")
    results = {}
    for name in sessions:
        gap = gaps[name].result()
        results[name] = Parity(
            images=images,
            max_abs_difference=gap.max_abs,
            mean_abs_difference=gap.mean_abs,
            logit_scale=gap.scale,
            top1_agreement_percent=100.0 * agreeing[name] / images,
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
