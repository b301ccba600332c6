"""Whether an ONNX file computes what the trained network computes, on real images."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import onnxruntime
import torch
from torch import Tensor, nn

from compress.errors import UserError
from export.onnx import run_session


@dataclass(frozen=True)
class Parity:
    """The comparison over `images` images.

    `logit_scale` is the largest absolute logit of the torch network; the tolerance of `require`
    is relative to it, as float32 rounding grows with the values.
    """

    images: int
    max_abs_difference: float
    logit_scale: float
    top1_agreement_percent: float
    onnx_top1_percent: float
    torch_top1_percent: float

    def as_dict(self) -> dict[str, float | int]:
        """Plain values, for JSON."""
        return asdict(self)

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


def compare(
    network: nn.Module,
    session: onnxruntime.InferenceSession,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> Parity:
    """Run both on the same images, on the CPU.

    Args:
        network: the trained network as it is stored, batch norm unfolded.
        session: ONNX Runtime on the exported file.
        batches: normalised images (N, C, H, W) and labels (N,), all on the CPU.

    Raises:
        UserError: there is no image to compare on.
    """
    network.eval()
    images, agreeing, onnx_right, torch_right = 0, 0, 0, 0
    # fmax and fmin would skip a NaN; torch's maximum keeps it.
    difference, scale = torch.zeros(()), torch.zeros(())
    for inputs, labels in batches:
        with torch.inference_mode():
            expected = network(inputs).double()
        found = torch.from_numpy(run_session(session, inputs.numpy())).double()
        difference = torch.maximum(difference, (found - expected).abs().max())
        scale = torch.maximum(scale, expected.abs().max())
        images += len(labels)
        agreeing += int((found.argmax(1) == expected.argmax(1)).sum())
        onnx_right += int((found.argmax(1) == labels).sum())
        torch_right += int((expected.argmax(1) == labels).sum())
    if images == 0:
        raise UserError("there are no test images to compare the ONNX file on")
    return Parity(
        images=images,
        max_abs_difference=float(difference),
        logit_scale=float(scale),
        top1_agreement_percent=100.0 * agreeing / images,
        onnx_top1_percent=100.0 * onnx_right / images,
        torch_top1_percent=100.0 * torch_right / images,
    )
