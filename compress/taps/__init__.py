"""Named feature taps of any network: discovered, read by hooks, or traced to a graph.

>>> import torch
>>> from torch import nn
>>> from compress.taps import Tapped, discover
>>> network = nn.Sequential(
...     nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
...     nn.Linear(8, 10),
... )
>>> specs = discover(network, (3, 16, 16), "mine")
>>> specs.last_map.path, specs.last_map.channels, specs.last_map.stride, specs.classifier
('1', 8, 2, '4')
>>> taps = Tapped(network, specs, ["last_map", "logits", "0"])(torch.zeros(2, 3, 16, 16))
>>> taps.tensor("last_map").shape, taps.tensor("logits").shape
(torch.Size([2, 8, 8, 8]), torch.Size([2, 10]))
"""

from compress.taps.discovery import discover, switch_off_inplace
from compress.taps.graph import (
    GraphForward,
    Tail,
    TappedGraph,
    Untraceable,
    batch_norm_of,
    encoder_until,
    map_node,
    tail_after,
)
from compress.taps.specs import KINDS, Kind, MapSpec, TapSpecs, TokensSpec, VectorSpec
from compress.taps.tapped import Tapped, TappedForward, Taps

__all__ = [
    "KINDS",
    "GraphForward",
    "Kind",
    "MapSpec",
    "Tail",
    "TapSpecs",
    "Tapped",
    "TappedForward",
    "TappedGraph",
    "Taps",
    "TokensSpec",
    "Untraceable",
    "VectorSpec",
    "batch_norm_of",
    "discover",
    "encoder_until",
    "map_node",
    "switch_off_inplace",
    "tail_after",
]
