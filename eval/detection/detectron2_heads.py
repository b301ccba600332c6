"""detectron2's C4 RoI heads with one more batch norm, as the MoCo protocol has them.

Importing this registers both under their class names, for `MODEL.ROI_HEADS.NAME`; it needs
detectron2. The norm after the last stage is what lets fine-tuning begin at features whose scale is
not that of supervised ImageNet weights.
"""

from typing import Any

from detectron2.layers import get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]  # detectron2 has no types
    """ResNet50's and 101's last stage as the head, then a norm."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        stage, channels = super()._build_res5_block(cfg)
        stage.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return stage, channels


@ROI_HEADS_REGISTRY.register()
class BasicRes5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
    """The same of ResNet18 and 34; detectron2's own head always has bottlenecks."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
        resnet = cfg.MODEL.RESNETS
        channels = resnet.RES2_OUT_CHANNELS * 2**3
        count = {18: 2, 34: 3}[resnet.DEPTH]
        blocks = ResNet.make_stage(
            BasicBlock,
            count,
            stride_per_block=[2] + [1] * (count - 1),
            in_channels=channels // 2,
            out_channels=channels,
            norm=resnet.NORM,
        )
        stage = nn.Sequential(*blocks)
        stage.add_module("norm", get_norm(resnet.NORM, channels))
        return stage, channels
