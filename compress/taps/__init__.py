"""Named feature taps of any network: discovered, read by hooks, or traced to a graph."""

from compress.taps.graph import encoder_until
from compress.taps.specs import KINDS, MapSpec, TapSpecs, VectorSpec
from compress.taps.tapped import Tapped, TappedForward, Taps

__all__ = [
    "KINDS",
    "MapSpec",
    "TapSpecs",
    "Tapped",
    "TappedForward",
    "Taps",
    "VectorSpec",
    "encoder_until",
]
