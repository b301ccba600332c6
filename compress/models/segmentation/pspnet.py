"""PSPNet (Zhao et al., CVPR 2017) over the encoder of any classification network."""

from collections.abc import Callable

from torch import Tensor, nn

from compress.errors import UserError
from compress.models.segmentation.deep_stem import deepen, has_imagenet_stem
from compress.models.segmentation.dilation import dilate
from compress.models.segmentation.pyramid import PyramidPoolingHead, usual_width
from compress.taps import MapSpec, TapSpecs, discover, encoder_until

_SIDES = {False: 32, True: 224}  # at which an encoder is looked at: ours, and those with a prefix


class PSPNet(nn.Module):
    """Normalised images (N, 3, H, W), of any H and W -> logits (N, num_classes, h, w).

    h and w are those of the encoder's last map: an eighth of H and W for ImageNet-style ResNets,
    which are dilated (`dilation`). The parts are `encoder`, under the names of the network that it
    was cut from, and `head`. The auxiliary head of the paper reads the map `auxiliary_path`; it is
    no part of the network, but of its training, see `compress.tasks`.
    """

    def __init__(
        self,
        network: nn.Module,
        specs: TapSpecs,
        *,
        num_classes: int,
        width: int | None = None,
        dilated: bool = True,
    ) -> None:
        """Cut the encoder out of a classification network, and put a head on it.

        Args:
            specs: the network's taps, see `compress.taps.discover`.
            width: channels of each pyramid branch; None: a quarter of the encoder's, 64 or more.
            dilated: bring an ImageNet-style ResNet to output stride 8.

        Raises:
            UserError: the network has no last map, or cannot be cut there.
        """
        super().__init__()
        self.encoder_name = ""
        self.deep_stem = False
        last = specs.last_map
        if last is None:
            raise UserError(f"{type(network).__name__} has no last map to put a head on")
        stages = [stage for stage in specs.stages if stage.side == "output"]
        self.encoder = encoder_until(network, last, whole=[s.path for s in (*stages, last)])
        if dilated:
            dilate(self.encoder, last.stride)
        self.head = PyramidPoolingHead(
            last.channels, num_classes, usual_width(last.channels) if width is None else width
        )
        runs = dict(self.encoder.named_modules())
        self.stage_paths = tuple(f"encoder.{s.path}" for s in stages if s.path in runs)
        self.auxiliary_path = _auxiliary_path(stages, last)
        stem = getattr(network, "stem_path", None)
        if stem is not None:
            self.stem_path = f"encoder.{stem}"

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


def _auxiliary_path(stages: list[MapSpec], last: MapSpec) -> str | None:
    """The last stage that is finer than the last map."""
    finer = [stage.path for stage in stages if stage.stride < last.stride]
    return f"encoder.{finer[-1]}" if finer else None


def pspnet_over(find: Callable[[str], Callable[..., nn.Module]]) -> Callable[..., nn.Module]:
    """Make the builder of `pspnet`, whose encoders `find` builds by name."""

    def pspnet(
        *,
        num_classes: int,
        encoder: str,
        width: int | None = None,
        dilated: bool = True,
        deep_stem: bool = False,
    ) -> nn.Module:
        """PSPNet over a network of ours, torchvision's, timm's or a user's own.

        Args:
            num_classes: of the pixels.
            encoder: a classification network by name.
            width: channels of each pyramid branch; None: a quarter of the encoder's, 64 or more.
            dilated: bring an ImageNet-style ResNet to output stride 8.
            deep_stem: give it the papers' stem of three 3x3 convolutions.
        """
        if num_classes < 1:
            raise UserError("pspnet: a segmentation network has one class or more")
        network = find(encoder)(num_classes=2)
        side = _SIDES[":" in encoder]
        specs = discover(network, (3, side, side), encoder)
        if deep_stem:
            if not has_imagenet_stem(network):
                raise UserError(f"pspnet: {encoder} has no stem of an ImageNet-style ResNet")
            deepen(network)
        made = PSPNet(network, specs, num_classes=num_classes, width=width, dilated=dilated)
        made.encoder_name, made.deep_stem = encoder, deep_stem
        return made

    return pspnet
