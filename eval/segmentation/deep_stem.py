"""An encoder that is given the deep stem of the segmentation papers."""

from torch import nn

from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.models.segmentation.deep_stem import deepen, has_imagenet_stem
from compress.seeding import seeded
from compress.taps import MapSpec, encoder_until


def with_deep_stem(
    network: nn.Module, encoder: Encoder, last_map: MapSpec, *, seed: int
) -> Encoder:
    """The encoder of an ImageNet-style ResNet with a deep stem, whose weights `seed` draws.

    Its `matched_percent` no longer counts what is new.

    Args:
        network: the usual architecture with its weights; it is changed in place.
        encoder: the same as it was cut out before, for its preprocessing and matched share.

    Raises:
        UserError: the network has no stem of one convolution before `layer1`.
    """
    if not has_imagenet_stem(network):
        raise UserError(
            f"{type(network).__name__} has no conv1, bn1 and layer1 of an ImageNet-style ResNet to "
            "give a deep stem."
        )
    known = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    with seeded(seed, "segmentation", "deep stem"):
        deepen(network)
    body = encoder_until(network, last_map)
    own = body.state_dict()
    kept = sum(known.get(name) == tensor.data_ptr() for name, tensor in own.items())
    share = encoder.matched_percent * kept / len(own)
    return Encoder(body, last_map, encoder.preprocessing, share)
