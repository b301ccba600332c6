"""A pyramid pooling head over a distilled encoder, and the loss of both."""

from torch import Tensor, nn
from torch.nn import functional

from compress.distributed.collectives import all_reduce
from compress.model_files.artifacts import Encoder
from compress.models.segmentation.pyramid import (
    AUXILIARY_WEIGHT,
    PyramidPoolingHead,
    auxiliary_head,
    enlarge,
    usual_width,
)
from compress.seeding import seeded
from compress.taps import MapSpec
from eval.segmentation.backbone import SegmentationBackbone


class Segmenter(nn.Module):
    """Encoder and heads: normalised images (N, 3, H, W) -> logits (N, classes, H, W).

    Args:
        width: channels of each branch; None: a quarter of the encoder's, 64 or more.
        auxiliary: the map that the auxiliary head reads; None: there is no such head.
        frozen: the encoder does not learn, see `SegmentationBackbone`.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        classes: int,
        seed: int,
        width: int | None = None,
        auxiliary: MapSpec | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.preprocessing = encoder.preprocessing
        self.trunk = SegmentationBackbone(encoder, auxiliary, frozen=frozen)
        self.width = usual_width(encoder.channels) if width is None else width
        with seeded(seed, "segmentation", "head"):
            self.head = PyramidPoolingHead(encoder.channels, classes, self.width)
        self.auxiliary: nn.Sequential | None = None
        if auxiliary is not None:
            with seeded(seed, "segmentation", "auxiliary head"):
                self.auxiliary = auxiliary_head(auxiliary.channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return enlarge(self.head(self.trunk(images)[0]), images.shape[-2:])

    def both(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits, and those of the auxiliary head (None without one), at the image's size."""
        last, second = self.trunk(images)
        size = images.shape[-2:]
        logits = enlarge(self.head(last), size)
        if self.auxiliary is None or second is None:
            return logits, None
        return logits, enlarge(self.auxiliary(second), size)


class SegmentationLoss(nn.Module):
    """Mean cross-entropy over all pixels but those of `ignore_index`, for THE loop.

    The auxiliary head's counts `weight` times.
    """

    def __init__(
        self, segmenter: Segmenter, ignore_index: int, weight: float = AUXILIARY_WEIGHT
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.ignore_index = ignore_index
        self.weight = weight

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """batch is normalised images (N, 3, H, W) and masks (N, H, W) of class indices.

        A term is this process's share: its sum over the pixels of all processes. A batch
        without any class has the loss 0.
        """
        images, masks = batch
        count = all_reduce((masks != self.ignore_index).sum()).clamp(min=1)

        def mean(logits: Tensor) -> Tensor:
            return self._sum_loss(logits, masks) / count

        logits, second = self.segmenter.both(images)
        terms = {"ce": mean(logits)}
        if second is not None:
            terms["auxiliary"] = self.weight * mean(second)
        return terms

    def _sum_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, masks, ignore_index=self.ignore_index, reduction="sum"
        )
