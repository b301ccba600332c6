"""The backbone of a detector: an encoder's last map, pooled where its stride is small."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import UserError
from compress.model_files.artifacts import Encoder


class FrozenModule(nn.Module):
    """A network that never learns: eval mode whatever its parent's, no gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenModule":
        """Stay in eval mode, so that batch norm keeps its statistics."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Run the network without gradient."""
        outputs: Tensor = self.network(inputs)
        return outputs


class DetectorBackbone(nn.Module):
    """The encoder as torchvision's detectors expect it; a map of a small stride is pooled.

    The stride is that of a dry run. A finer map becomes one of `stride` pixels by average
    pooling of the map, or by max pooling behind the first convolution (`pool_stem`), which costs
    far less and makes everything smaller for the encoder.
    """

    def __init__(
        self, encoder: Encoder, stride: int, *, pool_stem: bool = False, freeze: bool = False
    ) -> None:
        super().__init__()
        own = probe_map(encoder)[1]
        if stride % own and own < stride:
            raise UserError(f"detection: stride {stride} is not a multiple of the encoder's {own}.")
        factor = max(1, stride // own)
        self.pool = 1 if pool_stem else factor
        self.out_channels = encoder.channels
        if pool_stem and factor > 1:
            first = _first_convolution(encoder)
            first.register_forward_hook(lambda _, __, output: functional.max_pool2d(output, factor))
        self.encoder: nn.Module = FrozenModule(encoder) if freeze else encoder

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> (N, channels, H / stride, W / stride)."""
        features: Tensor = self.encoder(images)
        return functional.avg_pool2d(features, self.pool) if self.pool > 1 else features


@torch.no_grad()
def probe_map(network: nn.Module, channels: int = 3, side: int = 128) -> tuple[int, int]:
    """Channels of a network's map, and its stride, found by a dry run on an empty image.

    Raises:
        UserError: the network takes no images of this side.
    """
    modes = {module: module.training for module in network.modules()}
    place = next(network.parameters()).device
    try:
        feature_map: Tensor = network.eval()(torch.zeros(1, channels, side, side, device=place))
    except RuntimeError as error:
        raise UserError(f"the encoder takes no images of {side} pixels ({error}).") from None
    finally:
        for module, mode in modes.items():
            module.training = mode
    return feature_map.shape[1], side // feature_map.shape[2]


def _first_convolution(encoder: nn.Module) -> nn.Module:
    """The convolution that sees the image, found by a dry run."""
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda convolution, _, __: called.append(convolution))
        for module in encoder.modules()
        if isinstance(module, nn.Conv2d)
    ]
    probe_map(encoder)
    for hook in hooks:
        hook.remove()
    return called[0]
