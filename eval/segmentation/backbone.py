"""The encoder as segmentation uses it: output stride 8, a second map for the auxiliary loss.

ImageNet-style ResNets (layer1 to layer4, stride 32) keep the resolution of layer2: in layer3 every
convolution has stride 1 and every 3x3 convolution dilation 2, in layer4 dilation 4, as in PSPNet
(Zhao et al., CVPR 2017). No weight changes shape or name, so those of the undilated training load.
Any other encoder keeps its own stride.
"""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.taps import MapSpec, TapSpecs

OUTPUT_STRIDE = 8
_DILATIONS = {"layer3": 2, "layer4": 4}
_IMAGENET_STRIDE = 32


def auxiliary_map(taps: TapSpecs) -> MapSpec | None:
    """The last stage that is finer than the last map; None where there is none."""
    last = taps.last_map
    finer = [s for s in taps.stages if last and s.stride < last.stride and s.side == "output"]
    return finer[-1] if finer else None


class SegmentationBackbone(nn.Module):
    """Normalised images (N, 3, H, W) -> the last map and the auxiliary map (None without one).

    Shares the encoder's parameters. Frozen, it stays in eval mode and takes no gradient, so
    neither its weights nor its batch-norm statistics move.
    """

    def __init__(self, encoder: Encoder, auxiliary: MapSpec | None, *, frozen: bool) -> None:
        super().__init__()
        self.output_stride = dilate(encoder)
        self.channels = encoder.channels
        self.body = encoder.body
        if auxiliary is not None:
            self.body = with_map(cast(fx.GraphModule, encoder.body), auxiliary.path)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.train(False)

    def train(self, mode: bool = True) -> "SegmentationBackbone":
        """Set the mode; a frozen encoder stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the class."""
        maps: Any = self.body(images)
        return maps if isinstance(maps, tuple) else (maps, None)


def with_map(body: fx.GraphModule, path: str) -> fx.GraphModule:
    """The same network, sharing its parameters, that gives (last map, output of `path`)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    last = graph.graph_copy(body.graph, copies)
    inside = [n for n in copies if path in n.meta.get("nn_module_stack", {})]
    if not inside:
        raise UserError(f"the encoder has no part '{path}' for the auxiliary loss")
    graph.output((last, copies[inside[-1]]))
    return fx.GraphModule(body, graph, class_name="Encoder")


def dilate(encoder: Encoder) -> int:
    """Bring an ImageNet-style ResNet to output stride 8 in place; returns the stride.

    Raises:
        UserError: its layers halve the map by other means than a convolution's stride.
    """
    layers = dict(encoder.body.named_children())
    if encoder.stride != _IMAGENET_STRIDE or not _DILATIONS.keys() <= layers.keys():
        return encoder.stride
    for name, dilation in _DILATIONS.items():
        for module in layers[name].modules():
            if isinstance(module, nn.Conv2d):
                reach = [dilation * (side // 2) for side in module.kernel_size]
                module.stride = (1, 1)
                module.dilation = (dilation, dilation)
                module.padding = (reach[0], reach[1])
    side = 8 * OUTPUT_STRIDE
    try:
        reached = _side(encoder, side)
    except RuntimeError:  # a pooled shortcut no longer fits its block
        reached = 0
    if reached != side // OUTPUT_STRIDE:
        raise UserError(
            "the encoder's layer3 and layer4 cannot be brought to output stride 8: they halve the "
            "map by something else than the stride of a convolution."
        )
    return OUTPUT_STRIDE


@torch.no_grad()
def _side(encoder: Encoder, side: int) -> int:
    """The side of the last map of a square image."""
    training = encoder.training
    device = next(encoder.parameters()).device
    last = int(encoder.eval()(torch.zeros(1, 3, side, side, device=device)).shape[-1])
    encoder.train(training)
    return last
