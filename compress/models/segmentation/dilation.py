"""ImageNet-style ResNets at output stride 8, as PSPNet has them (Zhao et al., CVPR 2017).

They (layer1 to layer4, stride 32) keep the resolution of layer2: in layer3 every convolution has
stride 1 and every 3x3 convolution dilation 2, in layer4 dilation 4. No weight changes shape or
name, so those of the undilated training load. Any other encoder keeps its own stride.
"""

import torch
from torch import nn

from compress.errors import UserError

OUTPUT_STRIDE = 8
_DILATIONS = {"layer3": 2, "layer4": 4}
_IMAGENET_STRIDE = 32


def dilate(encoder: nn.Module, stride: int) -> int:
    """Bring an ImageNet-style ResNet to output stride 8 in place; returns the stride.

    Args:
        encoder: images -> last map, at `stride`.

    Raises:
        UserError: its layers halve the map by other means than a convolution's stride.
    """
    layers = dict(encoder.named_children())
    if stride != _IMAGENET_STRIDE or not _DILATIONS.keys() <= layers.keys():
        return stride
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
def _side(encoder: nn.Module, side: int) -> int:
    """The side of the last map of a square image."""
    training = encoder.training
    device = next(encoder.parameters()).device
    last = int(encoder.eval()(torch.zeros(1, 3, side, side, device=device)).shape[-1])
    encoder.train(training)
    return last
