"""Faster R-CNN around an encoder, composed of torchvision's parts.

One map, no feature pyramid: region proposals from the encoder's last map, 7 x 7 RoI features, two
fully connected layers. torchvision infers the map's stride, so anchors are given in pixels and
should match the objects' sizes. What differs from the detectors of the papers (C4 with the last
stage as head) follows from small encoders having no stage to spare.
"""

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from compress.deployment import Encoder
from compress.errors import UserError
from compress.randomness import seeded
from compress.ranks import own_share

_POOL = 7
Images = list[Tensor]
Targets = list[dict[str, Tensor]]


class Backbone(nn.Module):
    """The encoder as torchvision expects it; a map of a small stride is pooled to `stride`."""

    def __init__(self, encoder: Encoder, stride: int) -> None:
        super().__init__()
        if stride % encoder.stride and encoder.stride < stride:
            raise UserError(
                f"detection: stride {stride} is not a multiple of the encoder's {encoder.stride}."
            )
        self.encoder = encoder
        self.pool = max(1, stride // encoder.stride)
        self.out_channels = encoder.channels

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> (N, channels, H / stride, W / stride)."""
        features: Tensor = self.encoder(images)
        return functional.avg_pool2d(features, self.pool) if self.pool > 1 else features


def build_detector(
    encoder: Encoder,
    *,
    classes: int,
    stride: int,
    image_size: int | None,
    anchor_sizes: tuple[int, ...],
    anchor_ratios: tuple[float, ...],
    rois_per_image: int,
    proposals: int,
    head_width: int,
    seed: int,
) -> FasterRCNN:
    """A detector of `classes` classes; everything but the encoder is initialised from `seed`.

    image_size: the shorter side in pixels to which images are scaled (the longer to at most twice
    as many), None for their own size.
    """
    backbone = Backbone(encoder, stride)
    with seeded(seed, "detection", "head"):
        detector = FasterRCNN(
            backbone,
            rpn_anchor_generator=AnchorGenerator((anchor_sizes,), (anchor_ratios,)),
            rpn_pre_nms_top_n_train=4 * proposals,
            rpn_pre_nms_top_n_test=4 * proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_roi_pool=MultiScaleRoIAlign(["0"], _POOL, 2),
            box_head=TwoMLPHead(backbone.out_channels * _POOL**2, head_width),
            box_predictor=FastRCNNPredictor(head_width, classes + 1),
            box_batch_size_per_image=rois_per_image,
        )
    mean, deviation = list(encoder.preprocessing.mean), list(encoder.preprocessing.std)
    if image_size is None:
        detector.transform = OwnSize(1, 1, mean, deviation)
    else:
        detector.transform = GeneralizedRCNNTransform(image_size, 2 * image_size, mean, deviation)
    return detector


class OwnSize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Normalises and pads to a batch, but leaves every image its size.

    torchvision's `_skip_resize` does so in training only, and its evaluation then sees images of
    another scale than the training did.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Nothing."""
        return image, target


class DetectorLoss(nn.Module):
    """The detector's four losses (proposals and boxes, each class and place) for THE loop."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: tuple[Images, Targets]) -> dict[str, Tensor]:
        """batch is images (3, H, W) in 0..1 and their targets: boxes (n, 4), labels (n,).

        The terms are this process's share, by images, of those of all. Each process samples regions
        of its own images, so that their sum is not exactly what one process has.
        """
        images, targets = batch
        share = own_share(len(images))
        return {name: share * term for name, term in self.detector(images, targets).items()}
