"""torchvision's segmentation networks as one tensor of logits at the stride of their last map."""

from collections.abc import Callable
from typing import Any

import torchvision
from torch import Tensor, nn

# Of a name's beginning: whether the head reads several maps.
_FAMILIES = {"fcn": False, "deeplabv3": False, "lraspp": True}


def is_segmenter(name: str) -> bool:
    """Return True if torchvision has a segmentation network of this name."""
    return name in torchvision.models.list_models(module=torchvision.models.segmentation)


def published_segmenter(name: str) -> Callable[..., nn.Module]:
    """The builder of one of torchvision's segmentation networks."""
    build = torchvision.models.get_model_builder(name)
    reads_several = _FAMILIES[name.partition("_")[0]]

    def segmenter(*, num_classes: int, **arguments: Any) -> nn.Module:
        usual = {} if reads_several else {"aux_loss": False}
        arguments = {"weights": None, "weights_backbone": None, **usual, **arguments}
        network: Any = build(num_classes=num_classes, **arguments)
        return PublishedSegmenter(network.backbone, network.classifier, reads_several)

    return segmenter


class PublishedSegmenter(nn.Module):
    """Normalised images (N, 3, H, W), of any H and W -> logits (N, K, h, w).

    The parts have torchvision's names, so that its files load. torchvision's own forward enlarges
    the logits to the image, without aligned corners, which here is the task's business.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, reads_several: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.reads_several = reads_several
        layers = [name for name, _ in backbone.named_children()]
        stages = [name for name in layers if name.startswith("layer")]
        if stages:
            self.stage_paths = tuple(f"backbone.{name}" for name in stages)
            self.auxiliary_path = self.stage_paths[-2]

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        maps = self.backbone(images)
        logits: Tensor = self.classifier(maps if self.reads_several else maps["out"])
        return logits
