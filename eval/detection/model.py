"""Faster and Mask R-CNN around an encoder, composed of torchvision's parts.

One map, no feature pyramid. ResNets of torchvision's and timm's get the C4 form (see `c4`); every
other student, which has no stage to spare, region proposals from its last map, 7 x 7 crops and two
fully connected layers. torchvision infers the map's stride, so anchors are given in pixels and
should match the objects' sizes.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from compress.data.images import Preprocessing
from compress.distributed.collectives import own_share
from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.seeding import seeded
from eval.detection import c4
from eval.detection.backbone import DetectorBackbone

_ROI_SIZE, _MASK_ROI_SIZE, _MASK_WIDTH = 7, 14, 256
_ANCHOR_SIZES: tuple[int, ...] = (16, 24)
_ANCHOR_RATIOS: tuple[float, ...] = (1.0, 2.0)
_PRE_NMS = 6  # boxes before non-maximum suppression for each that is kept, as the papers have it
Images = list[Tensor]
Targets = list[dict[str, Tensor]]
Detector = Literal["faster_rcnn", "mask_rcnn"]
Head = Literal["auto", "c4", "two_fc"]


@dataclass(frozen=True)
class Design:
    """The parts and sizes of a detector; see `task.detection` for each."""

    detector: Detector = "faster_rcnn"
    head: Head = "auto"
    image_size: int | tuple[int, ...] | None = None
    longest_side: int | None = None
    stride: int = 4
    pool_at: Literal["map", "stem"] = "map"
    anchor_sizes: tuple[int, ...] | None = None
    anchor_ratios: tuple[float, ...] | None = None
    rois_per_image: int = 16
    roi_size: int | None = None
    proposals: int = 50
    test_proposals: int | None = None
    head_width: int = 128
    freeze_encoder: bool = False

    @property
    def has_masks(self) -> bool:
        """True if the detector predicts masks beside boxes."""
        return self.detector == "mask_rcnn"

    def head_of(self, network: nn.Module) -> Literal["c4", "two_fc"]:
        """The head that a student gets.

        Raises:
            UserError: `head` is c4, and the student has no stages for it.
        """
        fits = c4.has_form(network)
        if self.head == "c4" and not fits:
            raise UserError(
                "detection: head: c4 needs a ResNet of torchvision's or timm's with a stem of one "
                f"strided convolution, this student is a {type(network).__name__}; take head: "
                "two_fc (--head two_fc)."
            )
        return "c4" if fits and self.head != "two_fc" else "two_fc"


def build_detector(
    design: Design, encoder: Encoder, network: nn.Module, *, classes: int, seed: int
) -> FasterRCNN:
    """A detector of `classes` classes; everything but the encoder is initialised from `seed`.

    Args:
        network: the student that `encoder` was cut from, with the same weights: the C4 form takes
            its stages, all others the encoder.
    """
    with seeded(seed, "detection", "head"):
        if design.head_of(network) == "c4":
            parts = _c4_parts(design, network, classes)
            sizes, ratios = c4.ANCHOR_SIZES, c4.ANCHOR_RATIOS
        else:
            parts = _two_fc_parts(design, encoder, classes)
            sizes, ratios = _ANCHOR_SIZES, _ANCHOR_RATIOS
        sizes, ratios = design.anchor_sizes or sizes, design.anchor_ratios or ratios
        test_proposals = design.test_proposals or design.proposals
        detector = (MaskRCNN if design.has_masks else FasterRCNN)(
            **parts,
            rpn_anchor_generator=AnchorGenerator((tuple(sizes),), (tuple(ratios),)),
            rpn_pre_nms_top_n_train=_PRE_NMS * design.proposals,
            rpn_pre_nms_top_n_test=_PRE_NMS * test_proposals,
            rpn_post_nms_top_n_train=design.proposals,
            rpn_post_nms_top_n_test=test_proposals,
            box_batch_size_per_image=design.rois_per_image,
        )
    detector.transform = _transform(design, encoder.preprocessing)
    return detector


def _c4_parts(design: Design, network: nn.Module, classes: int) -> dict[str, Any]:
    backbone, stage = c4.c4_parts(network, freeze=design.freeze_encoder)
    pool = MultiScaleRoIAlign(["0"], design.roi_size or c4.ROI_SIZE, 0)
    parts = {
        "backbone": backbone,
        "box_roi_pool": pool,
        "box_head": c4.C4BoxHead(stage),
        "box_predictor": FastRCNNPredictor(stage.width, classes + 1),
    }
    if design.has_masks:
        parts["mask_roi_pool"] = pool
        parts["mask_head"] = c4.C4MaskHead(stage)
        parts["mask_predictor"] = MaskRCNNPredictor(stage.width, _MASK_WIDTH, classes + 1)
    return parts


def _two_fc_parts(design: Design, encoder: Encoder, classes: int) -> dict[str, Any]:
    backbone = DetectorBackbone(
        encoder, design.stride, pool_stem=design.pool_at == "stem", freeze=design.freeze_encoder
    )
    channels, width = backbone.out_channels, design.head_width
    size = design.roi_size or _ROI_SIZE
    parts = {
        "backbone": backbone,
        "box_roi_pool": MultiScaleRoIAlign(["0"], size, 2),
        "box_head": TwoMLPHead(channels * size**2, width),
        "box_predictor": FastRCNNPredictor(width, classes + 1),
    }
    if design.has_masks:
        parts["mask_roi_pool"] = MultiScaleRoIAlign(["0"], _MASK_ROI_SIZE, 2)
        parts["mask_head"] = MaskRCNNHeads(channels, (width,) * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(width, width, classes + 1)
    return parts


def _transform(design: Design, preprocessing: Preprocessing) -> GeneralizedRCNNTransform:
    mean, deviation = list(preprocessing.mean), list(preprocessing.std)
    if design.image_size is None:
        return OwnSize(1, 1, mean, deviation)
    sizes = design.image_size
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return GeneralizedRCNNTransform(sizes, design.longest_side or 2 * max(sizes), mean, deviation)


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
    """The detector's losses (proposals, boxes, and masks if any) for THE loop."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: tuple[Images, Targets]) -> dict[str, Tensor]:
        """batch is images (3, H, W) in 0..1 and their targets: boxes (n, 4), labels (n,), for mask
        detectors masks (n, H, W).

        The terms are this process's share, by images, of those of all. Each process samples regions
        of its own images, so that their sum is not exactly what one process has.
        """
        images, targets = batch
        share = own_share(len(images))
        return {name: share * term for name, term in self.detector(images, targets).items()}
